//! The door for OpenAI's own protocol: `/v1/realtime`, and the paths that Azure's clients use.
//!
//! Refuses before the upgrade where it can, in the service's own shape; what the service itself would say after it (a model
//! that nobody knows, an account without credit) is left to the service.
use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query as UrlQuery, Request, State},
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{Shared, life, run};
use crate::{
    call::{core::Core, door::Door, driver::Call, policy::Policy},
    client::openai::{self, INVALID_REQUEST, SERVER_ERROR},
    config::{AgentConfig, OpenAiConfig, OtherModels},
    net::listen::{Upgrade, UpgradeError},
    observe::fact::Fact,
    upstream::{Intent, Wanted},
};

/// A refusal before the upgrade.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    param: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self { status, kind: INVALID_REQUEST, code, message, param: None, retry_after: None }
    }

    fn at(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, kind, code, message, param, retry_after } = refusal;
        Fact::Refused { code: code.into() }.record();
        let body = openai::refusal(kind, code, &message, param);
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(after) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if status == StatusCode::UPGRADE_REQUIRED {
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

/// What a client asks for.
#[derive(Debug)]
struct Knock {
    wanted: Wanted,
    agent: Arc<AgentConfig>,
    /// The model, by the client's own name.
    asked: Option<String>,
    /// It wants the shape of the beta.
    beta: bool,
}

/// `GET /v1/realtime`, and `/openai/v1/realtime`.
pub(super) async fn realtime(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    serve(&shared, request, false)
}

/// `GET /openai/realtime`: Azure's preview, which has the shape of the beta.
pub(super) async fn azure_preview(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    serve(&shared, request, true)
}

fn serve(shared: &Arc<Shared>, mut request: Request, preview: bool) -> Response<Body> {
    let fields = match UrlQuery::<Vec<(String, String)>>::try_from_uri(request.uri()) {
        Ok(UrlQuery(fields)) => fields,
        Err(error) => {
            let message = format!("Unreadable query: {error}.");
            return Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", message).into();
        }
    };
    if fields.iter().any(|(name, _)| name == "call_id") {
        // There are no calls that could be joined, so every id is unknown: the service answers 404 with an empty body.
        Fact::Refused { code: "unknown_call".into() }.record();
        return StatusCode::NOT_FOUND.into_response();
    }
    match knock(shared, &request, &fields, preview) {
        Err(refusal) => refusal.into(),
        Ok((knock, slot)) => match Upgrade::from_request(&mut request) {
            Ok(upgrade) => admit(shared, knock, slot, upgrade),
            Err(error @ UpgradeError::NotAsked) => {
                Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", format!("{error}.")).into()
            }
            Err(error) => Refusal::new(StatusCode::BAD_REQUEST, "invalid_upgrade", format!("{error}.")).into(),
        },
    }
}

/// All checks of a request's head.
fn knock(
    shared: &Shared,
    request: &Request,
    fields: &[(String, String)],
    preview: bool,
) -> Result<(Knock, OwnedSemaphorePermit), Refusal> {
    if let Some(origin) = shared.foreign_page(request) {
        let message = format!("Origin `{origin}` may not call; allowed: this server's own pages and loopback.");
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let header = |name: &str| request.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let offered = header("sec-websocket-protocol").unwrap_or_default();
    let mut offered = offered.split(',').map(str::trim).filter(|p| !p.is_empty()).peekable();
    // Browsers give up when a list that they offered is answered with nothing, so better say why.
    if offered.peek().is_some() && !offered.clone().any(|p| p == openai::PROTOCOL) {
        let message = "The subprotocols that were offered do not include `realtime`, which is the one spoken here.";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_subprotocol", message.to_owned()));
    }
    let beta = preview
        || header("openai-beta").is_some_and(|value| value.contains("realtime="))
        || offered.any(|p| p.starts_with(openai::BETA_PROTOCOL));
    let get = |name: &str| fields.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty());
    let name = get("agent").unwrap_or(&shared.config.openai.agent);
    let agent = shared.agents.get(name).cloned().ok_or_else(|| {
        let message = format!("No agent `{}` is configured.", shorten(name));
        Refusal::new(StatusCode::NOT_FOUND, "unknown_agent", message).at("agent")
    })?;
    let intent = intent(get("intent"), get("model"))?;
    let asked = get("model").or(get("deployment"));
    let model = match intent {
        // Named later, but for Azure's preview, where it is part of the address.
        Intent::Transcription => get("deployment").unwrap_or_default().to_owned(),
        Intent::Realtime => {
            let own = agent.model.as_ref().unwrap_or(&shared.config.upstream.model);
            asked.map_or(Ok(own.clone()), |asked| resolve(&shared.config.openai, own, asked))?
        }
    };
    let slot = shared.line().map_err(|why| Refusal {
        kind: SERVER_ERROR,
        retry_after: Some(super::FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", format!("The call cannot be taken: {why}."))
    })?;
    Ok((Knock { wanted: Wanted { model, intent }, agent, asked: asked.map(str::to_owned), beta }, slot))
}

fn intent(asked: Option<&str>, model: Option<&str>) -> Result<Intent, Refusal> {
    match (asked, model) {
        (None | Some("realtime"), _) => Ok(Intent::Realtime),
        (Some("transcription"), None) => Ok(Intent::Transcription),
        (Some("transcription"), Some(_)) => {
            let message = "A transcription session takes no `model` in its URL: it is named in `session.update`, as \
                           audio.input.transcription.model.";
            Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message.to_owned()).at("model"))
        }
        (Some(other), _) => {
            let message =
                format!("Invalid value: '{}'. Supported values are: 'realtime', 'transcription'.", shorten(other));
            Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).at("intent"))
        }
    }
}

/// The service's name of the model that a client asks for.
fn resolve(config: &OpenAiConfig, own: &str, asked: &str) -> Result<String, Refusal> {
    match (config.models.get(asked), config.other_models) {
        (Some(model), _) => Ok(model.clone()),
        (None, OtherModels::Pass) => Ok(asked.to_owned()),
        (None, OtherModels::Refuse) if asked == own => Ok(asked.to_owned()),
        (None, OtherModels::Refuse) => {
            let message = format!("The model `{}` does not exist or you do not have access to it.", shorten(asked));
            Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).at("model"))
        }
    }
}

/// Foreign text in our errors stays short.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Answers 101 and runs the call in a task of its own.
fn admit(shared: &Arc<Shared>, knock: Knock, slot: OwnedSemaphorePermit, upgrade: Upgrade) -> Response<Body> {
    // Only this one is ever chosen: the others may hold a key, which must never be echoed.
    let protocol = upgrade.protocols().iter().any(|p| p == openai::PROTOCOL).then_some(openai::PROTOCOL);
    let (response, pending) = upgrade.accept(protocol);
    let task = shared.clone();
    run(shared, slot, pending, shared.config.openai.max_message_bytes, move |id, client| {
        let Knock { wanted, agent, asked, beta } = knock;
        let policy = match wanted.intent {
            Intent::Realtime => Policy::new(&agent, &wanted.model),
            // An agent's values are those of a voice session.
            Intent::Transcription => Policy::new(&AgentConfig::default(), ""),
        };
        Call {
            core: Core::pass_through(life(&task.config, id.clone()), policy, wanted.intent == Intent::Transcription),
            id,
            door: Door::openai(asked, beta),
            wanted,
            upstream: task.upstream.clone(),
            client,
            drain: task.drain.clone(),
            stop: task.stop.clone(),
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_what_the_configuration_says() {
        let refuse = OpenAiConfig { other_models: OtherModels::Refuse, ..OpenAiConfig::default() };
        for (config, asked, want) in [
            (&OpenAiConfig::default(), "gpt-realtime-2.1", Some("gpt-realtime-2.1")),
            (&OpenAiConfig::default(), "gpt-4o-realtime-preview", Some("gpt-realtime-2.1")),
            (&OpenAiConfig::default(), "of-tomorrow", Some("of-tomorrow")),
            (&refuse, "of-tomorrow", None),
            (&refuse, "own", Some("own")),
            (&refuse, "gpt-4o-mini-realtime-preview", Some("gpt-realtime-2.1-mini")),
        ] {
            assert_eq!(resolve(config, "own", asked).ok().as_deref(), want, "{asked}");
        }
    }

    #[test]
    fn a_transcription_session_names_no_model() {
        assert_eq!(intent(None, Some("m")).unwrap(), Intent::Realtime);
        assert_eq!(intent(Some("realtime"), None).unwrap(), Intent::Realtime);
        assert_eq!(intent(Some("transcription"), None).unwrap(), Intent::Transcription);
        assert_eq!(intent(Some("transcription"), Some("m")).unwrap_err().param, Some("model"));
        assert!(intent(Some("singing"), None).unwrap_err().message.contains("'singing'"));
    }
}
