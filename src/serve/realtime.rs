//! The door for OpenAI's own protocol: `/v1/realtime`, and the paths that Azure's clients use.
//!
//! Refuses before the upgrade where it can, in the service's own shape; what the service itself would say after it (a model
//! that nobody knows, an account without credit) is left to the service.
use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, request::Parts},
    response::IntoResponse as _,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{FULL_RETRY, Shared, come_back, fields, license, random_id, refusal, run};
use crate::{
    admit::{Denied, License, Principal, budget::Amount},
    call::{
        books::Books,
        core::Core,
        door::Door,
        driver::{Call, Client},
        policy::Policy,
        way::Way,
    },
    client::openai::{self, INVALID_REQUEST, SERVER_ERROR},
    config::{AgentConfig, OpenAiConfig, OtherModels, PolicyConfig, Scope},
    net::listen::{Upgrade, UpgradeError},
    observe::fact::Fact,
    upstream::{Intent, Wanted, open::Upstream, rest::is_call},
    webhook::Hooks,
};

/// Longest name of a model, bytes.
const LONGEST_MODEL: usize = 128;

/// A refusal in the service's own shape.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<Cow<'static, str>>,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self { status, kind: INVALID_REQUEST, code, message, param: None, retry_after: None }
    }

    pub(crate) fn at(self, param: impl Into<Cow<'static, str>>) -> Self {
        Self { param: Some(param.into()), ..self }
    }
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, kind, code, message, param, retry_after } = refusal;
        Fact::Refused { code: code.into() }.record();
        let body = openai::refusal(kind, code, &message, param.as_deref());
        refusal::answer(status, body, retry_after)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let (status, retry_after) = refusal::verdict(&denied);
        let (kind, code) = match denied {
            Denied::Credential => (INVALID_REQUEST, "invalid_api_key"),
            Denied::Origin(..) | Denied::Address | Denied::Scope(_) => (INVALID_REQUEST, "forbidden"),
            Denied::TooOften(_) => ("requests", "rate_limit_exceeded"),
            Denied::TooMany(_) => ("requests", "concurrency_limited"),
            Denied::Taken => (INVALID_REQUEST, "invalid_call_state"),
            Denied::Store => (SERVER_ERROR, "overloaded"),
            Denied::Budget(_) => ("insufficient_quota", "budget_exhausted"),
            Denied::Accounting => (SERVER_ERROR, "accounting_unavailable"),
        };
        Self { kind, retry_after, ..Self::new(status, code, format!("{denied}.")) }
    }
}

/// What a client asks for.
#[derive(Debug)]
struct Knock {
    who: Principal,
    way: Way,
    wanted: Wanted,
    agent: Arc<AgentConfig>,
    /// The agent's name.
    name: String,
    /// The model, by the client's own name.
    asked: Option<String>,
    /// It wants the shape of the beta.
    beta: bool,
    /// It wants to be able to come back.
    comes_back: bool,
}

/// Who may come in, and what for.
enum Visitor {
    /// A new call, and its line.
    Caller(Box<Knock>, OwnedSemaphorePermit),
    /// One that goes on.
    Returner(Principal, String, u64),
}

/// `GET /v1/realtime`, and `/openai/v1/realtime`.
pub(super) async fn realtime(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    serve(&shared, request, false).await
}

/// `GET /openai/realtime`: Azure's preview, which has the shape of the beta.
pub(super) async fn azure_preview(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    serve(&shared, request, true).await
}

async fn serve(shared: &Arc<Shared>, request: Request, preview: bool) -> Response<Body> {
    let (head, body) = request.into_parts();
    let visitor = match knock(shared, &head, preview).await {
        Err(refusal) => return refusal.into(),
        Ok(visitor) => visitor,
    };
    let mut request = Request::from_parts(head, body);
    let (knock, slot) = match visitor {
        Visitor::Caller(knock, slot) => (*knock, slot),
        Visitor::Returner(who, token, got) => {
            return match Upgrade::from_request(&mut request) {
                Ok(upgrade) => {
                    let (response, pending) = upgrade.accept(openai::PROTOCOL);
                    let max_message = shared.config.openai.max_message_bytes;
                    come_back(shared, "openai", who, pending, max_message, &token, got);
                    response
                }
                Err(error) => not_upgraded(error),
            };
        }
    };
    if knock.wanted.joins.as_ref().is_some_and(|call| !owns(shared, &knock.who, call)) {
        // The service answers 404 with an empty body for calls that it does not know; so are other people's here.
        Fact::Refused { code: "unknown_call".into() }.record();
        return StatusCode::NOT_FOUND.into_response();
    }
    match Upgrade::from_request(&mut request) {
        Ok(upgrade) => {
            let id = random_id("call");
            // A call that is joined was opened before.
            let licensed = match &knock.wanted.joins {
                Some(_) => shared.gate.admit(&id, &knock.who, "openai"),
                None => license(shared, &knock.who, &id, "openai").await,
            };
            match licensed {
                Ok(license) => admit(shared, knock, license, id, slot, upgrade),
                Err(denied) => Refusal::from(denied).into(),
            }
        }
        Err(error) => not_upgraded(error),
    }
}

fn not_upgraded(error: UpgradeError) -> Response<Body> {
    let (status, code) = match error {
        UpgradeError::NotAsked => (StatusCode::UPGRADE_REQUIRED, "upgrade_required"),
        _ => (StatusCode::BAD_REQUEST, "invalid_upgrade"),
    };
    Refusal::new(status, code, format!("{error}.")).into()
}

/// Whether a call by WebRTC or telephone is this principal's to steer.
fn owns(shared: &Shared, who: &Principal, call: &str) -> bool {
    is_call(call) && shared.gate.roster().who(call).is_some_and(|owner| who.secret().is_none() && who.steers(&owner))
}

/// All checks of a request's head.
async fn knock(shared: &Shared, head: &Parts, preview: bool) -> Result<Visitor, Refusal> {
    let fields = fields(&head.uri);
    let who = shared.identify(head, fields.as_ref().unwrap_or(&Vec::new())).await?;
    let fields = fields.map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, "invalid_query", format!("{why}.")))?;
    if !who.may(Scope::Call) {
        return Err(Denied::Scope(Scope::Call).into());
    }
    let header = |name: &str| head.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
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
    let comes_back = match get("voxrelay_resume") {
        None => false,
        Some("1") => true,
        Some(token) => {
            let got = get("voxrelay_got").unwrap_or_default();
            let got = got.parse().map_err(|_| {
                let message =
                    format!("`voxrelay_got` must be the number of messages that you have, not `{}`.", shorten(got));
                Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).at("voxrelay_got")
            })?;
            return Ok(Visitor::Returner(who, token.to_owned(), got));
        }
    };
    let joins = fields.iter().find(|(name, _)| name == "call_id").map(|(_, id)| id.clone());
    let asked = get("model").or(get("deployment"));
    let name = agent_name(&who, get("agent"))?;
    let agent = agent(shared, &who, name)?;
    let name = name.unwrap_or_else(|| usual_agent(shared, &who)).to_owned();
    let upstream = upstream(shared, &who)?;
    let intent = match (&joins, who.secret()) {
        // Both say themselves what they are: a client that could say something else could choose its rules.
        (Some(_), _) if get("intent").is_some() || asked.is_some() => {
            let message =
                "A call that is joined by `call_id` has its kind and its model: leave out `intent` and `model`.";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message.to_owned()).at("call_id"));
        }
        (None, Some(secret)) if secret.model.is_none() => Intent::Transcription,
        (None, Some(_)) => Intent::Realtime,
        _ => intent(get("intent"), get("model"))?,
    };
    let model = match (intent, who.secret().and_then(|secret| secret.model.as_deref())) {
        // The call has one already.
        _ if joins.is_some() => String::new(),
        (Intent::Realtime, Some(own)) => {
            let named = asked.map(|asked| model(shared, &who, &upstream, &agent, Some(asked))).transpose()?;
            match named {
                Some(other) if other != own && !shared.leads_to(&who, &other, own) => {
                    let message = "The client secret was made for another model.".to_owned();
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_model", message).at("model"));
                }
                _ => own.to_owned(),
            }
        }
        // Named later, but for Azure's preview, where it is part of the address.
        (Intent::Transcription, _) => match get("deployment") {
            Some(model) if !who.may_use(model) => return Err(no_model(model)),
            model => model.unwrap_or_default().to_owned(),
        },
        (Intent::Realtime, None) => model(shared, &who, &upstream, &agent, asked)?,
    };
    let who = match header("openai-safety-identifier") {
        Some(user) => named_user(shared, who, user)?,
        None => who,
    };
    let slot = line(shared)?;
    // A client secret is its account's, and so is a call that is joined; a session that only writes down names its model later.
    let way = match (intent, &joins, who.secret()) {
        (Intent::Realtime, None, None) => shared.way(&who, &upstream, &model),
        _ => Way::fixed(upstream, who.upstream(), &model),
    };
    let wanted = Wanted { joins, ..Wanted::new(way.home().route.model.as_str(), intent) };
    let asked = asked.map(str::to_owned);
    Ok(Visitor::Caller(Box::new(Knock { who, way, wanted, agent, name, asked, beta, comes_back }), slot))
}

/// A line for a call.
pub(crate) fn line(shared: &Shared) -> Result<OwnedSemaphorePermit, Refusal> {
    shared.line().map_err(|why| Refusal {
        kind: SERVER_ERROR,
        retry_after: Some(FULL_RETRY),
        ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", format!("The call cannot be taken: {why}."))
    })
}

/// A backend names its end user; what it calls them stays here.
pub(crate) fn named_user(shared: &Shared, who: Principal, user: &str) -> Result<Principal, Refusal> {
    const LONGEST: usize = 256;
    if who.user().is_some() || who.token().is_some() || who.secret().is_some() {
        return Ok(who); // whom it was made for is known
    }
    if !(1..=LONGEST).contains(&user.len()) {
        let message = format!("`OpenAI-Safety-Identifier` must have 1 to {LONGEST} characters.");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message).at("OpenAI-Safety-Identifier"));
    }
    Ok(shared.gate.for_user(who, user.to_owned()))
}

/// The agent that is named, or that the client secret was made under.
fn agent_name<'n>(who: &'n Principal, named: Option<&'n str>) -> Result<Option<&'n str>, Refusal> {
    match (who.secret().map(|secret| secret.agent.as_str()), named) {
        (Some(own), Some(other)) if own != other => {
            let message = "The client secret was made for another agent.".to_owned();
            Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message).at("agent"))
        }
        (own, named) => Ok(own.or(named)),
    }
}

/// The agent whose policy rules.
pub(crate) fn agent(shared: &Shared, who: &Principal, named: Option<&str>) -> Result<Arc<AgentConfig>, Refusal> {
    let name = named.unwrap_or_else(|| usual_agent(shared, who));
    let agent = shared.agent(name).ok_or_else(|| {
        let message = format!("No agent `{}` is configured.", shorten(name));
        Refusal::new(StatusCode::NOT_FOUND, "unknown_agent", message).at("agent")
    })?;
    if !who.may_call(name) {
        let message = format!("Agent `{}` is not one that this credential may call.", shorten(name));
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message).at("agent"));
    }
    Ok(agent)
}

/// The agent of whoever names none.
pub(crate) fn usual_agent<'a>(shared: &'a Shared, who: &'a Principal) -> &'a str {
    who.agent(&shared.config.openai.agent)
}

/// The account of whoever pays.
pub(crate) fn upstream(shared: &Shared, who: &Principal) -> Result<Upstream, Refusal> {
    shared.upstream(who).cloned().ok_or_else(|| Refusal {
        kind: SERVER_ERROR,
        ..Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream_unavailable",
            "The tenant's service is not configured.".to_owned(),
        )
    })
}

/// The service's name of the model that is asked for, or of the agent's own.
pub(crate) fn model(
    shared: &Shared,
    who: &Principal,
    upstream: &Upstream,
    agent: &AgentConfig,
    asked: Option<&str>,
) -> Result<String, Refusal> {
    let own = agent.model.as_ref().unwrap_or(&upstream.config().model);
    if let Some(asked) = asked.filter(|asked| asked.len() > LONGEST_MODEL) {
        return Err(no_model(asked));
    }
    let model = asked.map_or(Ok(own.clone()), |asked| match shared.routes.resolve(asked) {
        Some(_) => Ok(asked.to_owned()),
        None => resolve(&shared.config.openai, own, asked),
    })?;
    if shared.may_use(who, &model) { Ok(model) } else { Err(no_model(asked.unwrap_or(&model))) }
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
        (None, OtherModels::Refuse) => Err(no_model(asked)),
    }
}

/// In the service's own words: which models there are for others is nobody's business.
pub(crate) fn no_model(asked: &str) -> Refusal {
    let message = format!("The model `{}` does not exist or you do not have access to it.", shorten(asked));
    Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).at("model")
}

/// Foreign text in our errors stays short.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Answers 101 and runs the call in a task of its own.
fn admit(
    shared: &Arc<Shared>,
    knock: Knock,
    license: License,
    id: String,
    slot: OwnedSemaphorePermit,
    upgrade: Upgrade,
) -> Response<Body> {
    let (response, pending) = upgrade.accept(openai::PROTOCOL);
    let task = shared.clone();
    let (who, max_message) = (knock.who.clone(), shared.config.openai.max_message_bytes);
    run(shared, &who, &id.clone(), slot, pending, max_message, move |client| {
        let Knock { who, way, wanted, agent, name, asked, beta, comes_back } = knock;
        let policy = match wanted.intent {
            Intent::Realtime if way.tier_name().is_some() => Policy::new(&agent, "", who.policy()).routed(),
            Intent::Realtime => Policy::new(&agent, &wanted.model, who.policy()),
            // An agent's values are those of a voice session.
            Intent::Transcription => Policy::new(&AgentConfig::default(), "", PolicyConfig::default()),
        };
        let policy = policy.with_models(who.tenant().map_or(&[][..], |tenant| &tenant.config.models));
        // A call or a client secret has its session already.
        let set_up = wanted.joins.is_some() || who.secret().is_some();
        let policy = if set_up { policy.joined() } else { policy };
        let life = task.life(&who, id.clone());
        let (ledger, model) = (task.ledger.clone(), wanted.model.clone());
        let prices = task.prices.clone();
        // The client chooses it, and its session says it.
        let writer = None;
        let account = way.home().account().to_owned();
        let books = Books { ledger, prices, call: id.clone(), agent: name, account, model, writer, door: "openai" };
        let (ticket, resume) = task.way_back("openai").filter(|_| comes_back && who.secret().is_none()).unzip();
        Call {
            core: Core::pass_through(
                life,
                policy,
                wanted.intent == Intent::Transcription,
                wanted.joins.is_none(),
                resume,
            ),
            id,
            door: Door::openai(asked, beta),
            license,
            wanted,
            way,
            client: Client::Here(Box::new(client)),
            ticket,
            books,
            reconnect: task.reconnect(),
            turns: task.turns(&who),
            hold: None,
            hooks: Hooks::none(),
            budgets: task.budgets.clone(),
            spent: Amount::default(),
            heir: task.heir.clone(),
            goodbyes: task.calls.clone(),
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
        assert_eq!(intent(Some("transcription"), Some("m")).unwrap_err().param.as_deref(), Some("model"));
        assert!(intent(Some("singing"), None).unwrap_err().message.contains("'singing'"));
    }
}
