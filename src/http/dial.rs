//! `/v1/dial`: a backend has a telephone called, and asks what became of it. Not for web pages, and not for call tokens.
use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse as _,
    routing::{get, post},
};
use serde_json::{Map, Value, json};

use super::{body, calls::answer, idempotency, part::Part};
use crate::{
    admit::{Denied, Principal},
    config::Scope,
    serve::{
        Shared,
        phone::dial::{self, Wish},
        refusal::Refusal,
    },
};

/// Longest body, bytes.
const MAX_BODY: usize = 64 << 10;
/// How long it rings where nothing is said, seconds; and what may be said.
const RING_S: u64 = 45;
const RINGS: std::ops::RangeInclusive<u64> = 5..=600;
/// Parameters for the agent, and the longest of their values, bytes.
const MAX_PARAMS: usize = 50;
const LONGEST_PARAM: usize = 1_024;
/// Longest name of an end user, bytes.
const LONGEST_USER: usize = 256;

pub(crate) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/dial", post(begin)).route("/v1/dial/{id}", get(show).delete(end))
}

async fn who(shared: &Shared, head: &Parts) -> Result<Principal, Refusal> {
    let who = shared.identify(head, &Vec::new()).await?;
    if who.may(Scope::Dial) && who.secret().is_none() { Ok(who) } else { Err(Denied::Scope(Scope::Dial).into()) }
}

/// `POST /v1/dial`: a call begins.
async fn begin(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let begun = async {
        let (head, body) = request.into_parts();
        let who = who(&shared, &head).await?;
        let key = idempotency::key(&head.headers);
        let key = key.map_err(|wrong| Refusal::invalid("Idempotency-Key", wrong))?;
        let asked = body::object(body, MAX_BODY).await?;
        let wish = read(&asked)?;
        let mark = idempotency::mark([Value::Object(asked).to_string().as_bytes(), b""]);
        dial::begin(&shared, who, wish, key, mark).await
    };
    match begun.await {
        Ok(shown) => {
            let place = format!("/v1/dial/{}", shown.get("dial").and_then(Value::as_str).unwrap_or_default());
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            let mut response = (StatusCode::CREATED, headers, shown.to_string()).into_response();
            if let Ok(place) = HeaderValue::try_from(place) {
                response.headers_mut().insert(header::LOCATION, place);
            }
            response
        }
        Err(refusal) => refusal.into(),
    }
}

/// `GET /v1/dial/{id}`: what it does. Other tenants' calls are as unknown as those that never were.
async fn show(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    answer(who(&shared, &head).await.and_then(|who| dial::shown(&shared, who.tenant_id(), &id)))
}

/// `DELETE /v1/dial/{id}`: it ends, whether it rings or is spoken on.
async fn end(State(shared): State<Arc<Shared>>, Part(id): Part, request: Request) -> Response<Body> {
    let (head, _) = request.into_parts();
    let ended = who(&shared, &head).await.and_then(|who| dial::hang_up(&shared, who.tenant_id(), &id));
    answer(ended.map(|()| json!({"dial": id, "ended": true})))
}

/// What is asked for. Unknown fields are refused: a misspelt one would be none.
fn read(asked: &Map<String, Value>) -> Result<Wish, Refusal> {
    const FIELDS: [&str; 8] = ["to", "agent", "account", "from", "user", "params", "ring_s", "detect_machine"];
    if let Some(name) = asked.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let message = format!("unknown field `{}`; known: {}", shorten(name), FIELDS.join(", "));
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "invalid_message", message));
    }
    let there = |field: &str| asked.get(field).filter(|value| !value.is_null());
    let wrong = |field: &'static str, value: &Value, allowed: &str| {
        let message = format!("`{field}`: found {}; allowed: {allowed}", shorten(&value.to_string()));
        Refusal::invalid(field, message)
    };
    let text = |field: &'static str, most: usize| match there(field) {
        None => Ok(None),
        Some(Value::String(text)) if (1..=most).contains(&text.len()) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(field, other, &format!("a string of 1 to {most} bytes"))),
    };
    let ring_s = match there("ring_s") {
        None => RING_S,
        Some(value) => value.as_u64().filter(|ring| RINGS.contains(ring)).ok_or_else(|| {
            wrong("ring_s", value, &format!("a whole number of seconds from {} to {}", RINGS.start(), RINGS.end()))
        })?,
    };
    let detect_machine = match there("detect_machine") {
        None => false,
        Some(Value::Bool(detect)) => *detect,
        Some(other) => return Err(wrong("detect_machine", other, "true or false")),
    };
    let nothing = || wrong("to", &Value::Null, "a telephone number");
    Ok(Wish {
        to: text("to", 32)?.ok_or_else(nothing)?,
        agent: text("agent", 64)?,
        account: text("account", 64)?,
        from: text("from", 32)?,
        user: text("user", LONGEST_USER)?,
        params: there("params").map(params).transpose()?.unwrap_or_default(),
        ring_s: u32::try_from(ring_s).unwrap_or(u32::MAX),
        detect_machine,
    })
}

/// Parameters for the agent's words: `{{param.NAME}}`.
fn params(value: &Value) -> Result<BTreeMap<String, String>, Refusal> {
    let wrong = |found: String, allowed: &str| {
        Refusal::invalid("params", format!("`params`: found {found}; allowed: {allowed}"))
    };
    let object = value.as_object().ok_or_else(|| wrong(shorten(&value.to_string()), "an object of strings"))?;
    if object.len() > MAX_PARAMS {
        return Err(wrong(format!("{} of them", object.len()), &format!("at most {MAX_PARAMS}")));
    }
    let pair = |(name, value): (&String, &Value)| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) {
            let allowed = "names of 1 to 64 letters, digits, `-`, `_`, `.`";
            return Err(wrong(format!("a name `{}`", shorten(name)), allowed));
        }
        match value {
            Value::String(text) if text.len() <= LONGEST_PARAM => Ok((name.clone(), text.clone())),
            Value::Number(number) => Ok((name.clone(), number.to_string())),
            _ => {
                let allowed = format!("strings of at most {LONGEST_PARAM} bytes, and numbers");
                Err(wrong(format!("something else as `{name}`"), &allowed))
            }
        }
    };
    object.iter().map(pair).collect()
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_whole() {
        let body = json!({"to": "+15550100", "agent": "a", "account": "twilio", "from": "+15550199", "user": "u",
            "params": {"plan": "gold", "n": 3}, "ring_s": 20, "detect_machine": true});
        let wish = read(body.as_object().unwrap()).unwrap();
        assert_eq!((wish.to.as_str(), wish.ring_s, wish.detect_machine), ("+15550100", 20, true));
        assert_eq!((wish.params["plan"].as_str(), wish.params["n"].as_str()), ("gold", "3"));
        let least = json!({"to": "+15550100", "agent": null});
        let wish = read(least.as_object().unwrap()).unwrap();
        assert_eq!((wish.agent, wish.ring_s, wish.detect_machine), (None, 45, false));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (body, field, part) in [
            (json!({}), Some("to"), "found null; allowed: a telephone number"),
            (json!({"to": 15550100}), Some("to"), "found 15550100; allowed: a string"),
            (
                json!({"to": "+1", "ring_s": 4}),
                Some("ring_s"),
                "found 4; allowed: a whole number of seconds from 5 to 600",
            ),
            (json!({"to": "+1", "ring_s": "20"}), Some("ring_s"), "found \"20\""),
            (json!({"to": "+1", "detect_machine": 1}), Some("detect_machine"), "found 1; allowed: true or false"),
            (json!({"to": "+1", "params": []}), Some("params"), "found []; allowed: an object of strings"),
            (json!({"to": "+1", "params": {"a b": "c"}}), Some("params"), "found a name `a b`"),
            (json!({"to": "+1", "params": {"a": {}}}), Some("params"), "found something else as `a`"),
            (json!({"to": "+1", "user": ""}), Some("user"), "found \"\"; allowed: a string of 1 to 256 bytes"),
            (json!({"to": "+1", "greeting": "hi"}), None, "unknown field `greeting`; known: to, agent"),
        ] {
            let refusal = read(body.as_object().unwrap()).map(drop).unwrap_err();
            assert_eq!((refusal.field, refusal.status.as_u16()), (field, 400), "{body}");
            assert!(refusal.message.contains(part), "{body}: {}", refusal.message);
        }
    }
}
