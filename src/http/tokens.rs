//! `POST /v1/tokens`: a backend that has a key makes a short-lived token for one caller.
use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode, header},
    response::IntoResponse as _,
    routing::post,
};
use serde_json::{Map, Value, json};

use super::body::{self, BodyError};
use crate::{
    admit::principal::Grant,
    audio::Codec,
    config::{Scope, is_origin},
    serve::{Shared, refusal::Refusal},
    wall::unix_now,
};

/// Longest body, bytes.
const MAX_BODY: usize = 16 << 10;
/// Life of a token where nothing is said, seconds.
const LIFE: u64 = 3_600;
/// Shortest life, seconds.
const SHORTEST: u64 = 5;
/// Longest name of an end user, bytes.
const LONGEST_USER: usize = 256;

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/tokens", post(tokens))
}

async fn tokens(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    match make(&shared, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into(),
    }
}

async fn make(shared: &Shared, request: Request) -> Result<Response<Body>, Refusal> {
    let (head, body) = request.into_parts();
    let who = shared.identify(&head, &Vec::new()).await?;
    if who.tenant().is_none() {
        let message = "no tenants are configured, so that nobody is asked for a token".to_owned();
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let asked = body::object(body, MAX_BODY).await?;
    let unix = unix_now();
    let (user, grant) = read(&asked, unix, shared.gate.longest_token_s())?;
    if grant.direct && !who.may(Scope::Secret) {
        let message = "`direct` needs a key with scope `secret`".to_owned();
        return Err(Refusal { field: Some("direct"), ..Refusal::new(StatusCode::FORBIDDEN, "forbidden", message) });
    }
    if let Some(agent) = &grant.agent
        && (shared.agent(agent).is_none() || !who.may_call(agent))
    {
        let message = "`agent` must be the name of an agent that the tenant may call".to_owned();
        return Err(Refusal::invalid("agent", message));
    }
    let expires_at = grant.expires_at;
    let token = shared.gate.grant(&who, user, grant, unix)?;
    let body = json!({"token": token.expose(), "expires_at": expires_at}).to_string();
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, body).into_response())
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let (status, code) = match error {
            BodyError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "message_too_large"),
            BodyError::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "invalid_message"),
            BodyError::Broken | BodyError::Form(_) => (StatusCode::BAD_REQUEST, "invalid_message"),
        };
        Self::new(status, code, error.to_string())
    }
}

/// What is asked for: the end user, and what the token is to grant. Unknown fields are refused: a misspelt limit would be none.
fn read(asked: &Map<String, Value>, unix: u64, longest: u64) -> Result<(Option<String>, Grant), Refusal> {
    const FIELDS: [&str; 8] = ["agent", "user", "expires_in_s", "max_call_s", "uses", "origin", "formats", "direct"];
    if let Some(name) = asked.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let message = format!("unknown field `{}`; known: {}", shorten(name), FIELDS.join(", "));
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_message", message));
    }
    let text = |field: &'static str, most: usize| match asked.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if (1..=most).contains(&text.len()) => Ok(Some(text.clone())),
        Some(_) => Err(Refusal::invalid(field, format!("`{field}` must be a string of 1 to {most} bytes"))),
    };
    let number = |field: &'static str, least: u64, most: u64| match asked.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|n| (least..=most).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(Refusal::invalid(
                field,
                format!(
                    "`{field}` must be a whole number from {least} to {most}; found {}",
                    shorten(&value.to_string())
                ),
            )),
        },
    };
    let origin = text("origin", 256)?;
    if let Some(origin) = origin.as_ref().filter(|origin| !is_origin(origin)) {
        let message =
            format!("`origin` must be as browsers write it, such as https://app.example; found `{}`", shorten(origin));
        return Err(Refusal::invalid("origin", message));
    }
    let formats = match asked.get("formats") {
        None | Some(Value::Null) => Vec::new(),
        Some(formats) => serde_json::from_value::<Vec<Codec>>(formats.clone()).map_err(|_| {
            Refusal::invalid("formats", "`formats` must be a list of pcm16, mulaw, alaw, opus".to_owned())
        })?,
    };
    let direct = match asked.get("direct") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(direct)) => *direct,
        Some(_) => return Err(Refusal::invalid("direct", "`direct` must be true or false".to_owned())),
    };
    let life = number("expires_in_s", SHORTEST, longest)?.unwrap_or(LIFE.min(longest));
    let uses = number("uses", 1, 1_000_000)?.and_then(|uses| u32::try_from(uses).ok());
    let grant = Grant {
        jti: String::new(),
        kid: String::new(),
        made_at: unix,
        expires_at: unix + life,
        agent: text("agent", 64)?,
        origin,
        formats,
        max_call_s: number("max_call_s", 1, 604_800)?,
        uses,
        direct,
    };
    Ok((text("user", LONGEST_USER)?, grant))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: Value) -> Result<(Option<String>, Grant), Refusal> {
        read(body.as_object().unwrap(), 1_000, 86_400)
    }

    #[test]
    fn a_token_grants_what_was_asked_for() {
        let (user, grant) = asked(json!({})).unwrap();
        assert_eq!((user, grant.expires_at, grant.uses), (None, 1_000 + LIFE, None));
        let (user, grant) = asked(json!({"agent": "a", "user": "u", "expires_in_s": 60, "max_call_s": 5, "uses": 1,
            "origin": "https://app.example", "formats": ["opus"], "direct": true}))
        .unwrap();
        assert_eq!(user.as_deref(), Some("u"));
        let want = Grant {
            jti: String::new(),
            kid: String::new(),
            made_at: 1_000,
            expires_at: 1_060,
            agent: Some("a".into()),
            origin: Some("https://app.example".into()),
            formats: vec![Codec::Opus],
            max_call_s: Some(5),
            uses: Some(1),
            direct: true,
        };
        assert_eq!(grant, want);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (body, field, part) in [
            (json!({"expires_in_s": 4}), Some("expires_in_s"), "5 to 86400; found 4"),
            (json!({"expires_in_s": 86_401}), Some("expires_in_s"), "found 86401"),
            (json!({"expires_in_s": "60"}), Some("expires_in_s"), "found \"60\""),
            (json!({"expires_in_s": 60.5}), Some("expires_in_s"), "found 60.5"),
            (json!({"uses": 0}), Some("uses"), "found 0"),
            (json!({"uses": -1}), Some("uses"), "found -1"),
            (json!({"max_call_s": []}), Some("max_call_s"), "found []"),
            (json!({"direct": "yes"}), Some("direct"), "true or false"),
            (json!({"agent": 7}), Some("agent"), "a string"),
            (json!({"agent": ""}), Some("agent"), "1 to 64 bytes"),
            (json!({"user": "x".repeat(257)}), Some("user"), "1 to 256 bytes"),
            (json!({"origin": "app.example"}), Some("origin"), "found `app.example`"),
            (json!({"formats": ["mp3"]}), Some("formats"), "a list of pcm16"),
            (json!({"use": 1}), None, "unknown field `use`; known: agent, user"),
        ] {
            let refusal = asked(body.clone()).unwrap_err();
            assert_eq!((refusal.field, refusal.status.as_u16()), (field, 400), "{body}");
            assert!(refusal.message.contains(part), "{body}: {}", refusal.message);
        }
    }
}
