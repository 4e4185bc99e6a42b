//! Vonage Voice: NCCO, signed webhooks (JWT, HS256), REST with a token that the application's key signs (RS256).
//!
//! Five steps to a working number: an application with Voice, its id as `account`, its key's file as `private_key`, and the account's
//! signature secret as `signing_key`; `public_url`; answer URL `PUBLIC_URL/phone/vonage/voice` and event URL
//! `PUBLIC_URL/phone/vonage/status`, both POST; the number linked to it and a `[[phone.numbers]]` entry; call it.
//!
//! POST is recommended: a JWT covers the time and the body's digest, but no query, so that a GET proves only who asks.
//!
//! Unverified: the token's claims, fields and words of webhooks, and the REST requests but for hanging up.
use axum::http::Method;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    account::{Account, Connect, Page},
    event::{Direction, Incoming, Machine, Progress, Said, Status, bounded, custom},
    plivo::digits,
    proof::{Forged, Verified, from_hex, in_window, same, sha256},
    rest::{Act, Ask, Dial, Rest, Target, Unable, add, bearer},
    webhook::{Asked, Fields, Unclear, call_id},
};
use crate::config::Secret;

/// Life of a token for the REST API, seconds.
const TOKEN_S: u64 = 300;

/// What a webhook's token says.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    iat: u64,
    jti: String,
    #[serde(default)]
    exp: Option<u64>,
    #[serde(default)]
    payload_hash: Option<String>,
    #[serde(default)]
    application_id: Option<String>,
}

pub(super) fn verify(account: &Account, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
    let secret = account.config().signing_key.as_ref().ok_or(Forged::new("the account has no signing_key"))?;
    let shown = asked.header("authorization").and_then(|value| value.split_once(' '));
    let token = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let token = token.ok_or(Forged::new("it has no Authorization: Bearer"))?;
    let mut how = Validation::new(Algorithm::HS256);
    // Time is checked below, by the clock of our caller; nobody is named as audience.
    how.validate_exp = false;
    how.validate_aud = false;
    how.required_spec_claims.clear();
    let key = DecodingKey::from_secret(secret.expose().as_bytes());
    let found =
        decode::<Claims>(token, &key, &how).map_err(|_| Forged::new("its token is not signed, or says too little"))?;
    let claims = found.claims;
    if claims.iss != "Vonage" {
        return Err(Forged::new("its token was made by somebody else"));
    }
    in_window(claims.iat, now)?;
    if claims.exp.is_some_and(|end| end <= now) {
        return Err(Forged::new("its token has expired"));
    }
    if claims.application_id.is_some() && claims.application_id != account.config().account {
        return Err(Forged::new("its token is for another application"));
    }
    if !asked.body.is_empty() {
        let digest = claims.payload_hash.as_deref().and_then(from_hex);
        let digest = digest.ok_or(Forged::new("its token does not cover its body"))?;
        if !same(&digest, &sha256(asked.body)) {
            return Err(Forged::new("its body has another digest than its token says"));
        }
    }
    if claims.jti.is_empty() {
        return Err(Forged::new("its token has no id"));
    }
    Ok(Verified::of("vonage", &[claims.jti.as_bytes(), asked.body], Some(claims.iat), now))
}

/// Events come here, too, where an application has one URL for both.
pub(super) fn incoming(asked: &Asked<'_>) -> Result<Said, Unclear> {
    let said = asked.said()?;
    if said.get("status").is_some() {
        return happened(&said).map(Said::Status);
    }
    let field = |name: &str| said.get(name).map(|text| bounded(text, 256));
    Ok(Said::Call(Incoming {
        call: call_id(&said, "uuid")?,
        from: field("from"),
        to: field("to"),
        direction: Direction::Inbound,
        name: None,
        custom: custom(&said, "SipHeader_"),
        machine: None,
        dial: None,
        by_command: false,
    }))
}

pub(super) fn status(asked: &Asked<'_>) -> Result<Status, Unclear> {
    happened(&asked.said()?)
}

fn happened(said: &Fields) -> Result<Status, Unclear> {
    let word = said.get("status").unwrap_or("nothing");
    // The stream is a leg of its own, with an address for a number.
    let is_stream = said.get("to").is_some_and(|to| to.starts_with("ws:") || to.starts_with("wss:"));
    let progress = match word {
        "disconnected" => Progress::StreamEnded(said.get("reason").map(|text| bounded(text, 200))),
        "answered" if is_stream => Progress::StreamStarted,
        _ if is_stream => Progress::other(word),
        "machine" if said.get("sub_state") == Some("beep_start") => Progress::Machine(Machine::Beep),
        word => Progress::named(word),
    };
    let duration_s = said.get("duration").and_then(|text| text.parse().ok());
    let duration_s = duration_s.filter(|_| matches!(progress, Progress::Ended(_)));
    Ok(Status { duration_s, ..Status::of(call_id(said, "uuid")?, progress) })
}

/// The header becomes a field of the stream's first message.
pub(super) fn connect(account: &Account, with: &Connect<'_>) -> Value {
    let (_, rate) = account.audio();
    json!([{
        "action": "connect",
        "eventType": "synchronous",
        "eventUrl": [with.status],
        "endpoint": [{
            "type": "websocket",
            "uri": with.stream,
            "content-type": format!("audio/l16;rate={rate}"),
            "headers": {"token": with.token},
        }],
    }])
}

/// An NCCO without actions ends the call (unverified).
pub(super) fn refuse() -> Value {
    json!([])
}

pub(super) fn transfer(to: &Target, caller: &str) -> Value {
    let endpoint = match to {
        Target::Phone(number) => json!({"type": "phone", "number": digits(number)}),
        Target::Sip(address) => json!({"type": "sip", "uri": address}),
    };
    let mut action = json!({"action": "connect", "endpoint": [endpoint]});
    if !caller.is_empty() {
        add(&mut action, "from", json!(digits(caller)));
    }
    json!([action])
}

/// A token in the application's name.
fn credential(rest: &Rest<'_>, act: Act) -> Result<Secret, Unable> {
    let application = rest.need(act, "account", rest.account.config().account.as_deref())?;
    let key = rest.need(act, "private_key", rest.account.rsa())?;
    let (now, jti) = (rest.stamp.now, rest.stamp.nonce);
    let claims = json!({"application_id": application, "iat": now, "exp": now + TOKEN_S, "jti": jti});
    let token = encode(&Header::new(Algorithm::RS256), &claims, key).map_err(|_| Unable::Key)?;
    Ok(bearer(&token))
}

fn put(rest: &Rest<'_>, act: Act, place: &str, body: &Value) -> Result<Ask, Unable> {
    let url = format!("{}/v1/calls/{place}", rest.base(act)?);
    Ok(Ask::json(act, Method::PUT, url, credential(rest, act)?, body))
}

pub(super) fn hang_up(rest: &Rest<'_>, call: &str) -> Result<Ask, Unable> {
    put(rest, Act::HangUp, call, &json!({"action": "hangup"}))
}

pub(super) fn transfer_call(rest: &Rest<'_>, call: &str, to: &Target) -> Result<Ask, Unable> {
    let ncco = transfer(to, rest.account.config().caller.as_deref().unwrap_or_default());
    let body = json!({"action": "transfer", "destination": {"type": "ncco", "ncco": ncco}});
    put(rest, Act::Transfer, call, &body)
}

pub(super) fn send_dtmf(rest: &Rest<'_>, call: &str, keys: &str) -> Result<Ask, Unable> {
    put(rest, Act::SendDtmf, &format!("{call}/dtmf"), &json!({"digits": keys}))
}

/// The call's NCCO goes along with the request, so that no webhook is asked when it is answered.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let act = Act::Dial;
    let (stream, status) = (rest.account.url(Page::Stream), rest.back(Page::Status, dial));
    let mut body = json!({
        "to": [{"type": "phone", "number": digits(dial.number)}],
        "from": {"type": "phone", "number": digits(rest.shown(dial)?)},
        "ncco": connect(rest.account, &Connect { stream: &stream, status: &status, token: dial.token }),
        "event_url": [status],
        "event_method": "POST",
        "ringing_timer": dial.ring_s.min(120),
    });
    if dial.detect_machine {
        add(&mut body, "machine_detection", json!("continue"));
    }
    Ok(Ask::json(act, Method::POST, format!("{}/v1/calls", rest.base(act)?), credential(rest, act)?, &body))
}
