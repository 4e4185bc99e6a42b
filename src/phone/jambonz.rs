//! jambonz, hosted or one's own: verbs as JSON, webhooks signed over time and body.
//!
//! Five steps to a working number: an account with `signing_key` (the webhook secret); `public_url`; an application whose calling
//! webhook is `PUBLIC_URL/phone/jambonz/voice` and whose call status webhook is `PUBLIC_URL/phone/jambonz/status`, both POST; the
//! number assigned to it and a `[[phone.numbers]]` entry; call it.
//!
//! `streaming` must be asked for: otherwise binary audio back is ignored. The shapes of the signature, of the webhooks and of the REST
//! API are unverified.
use aws_lc_rs::hmac;
use axum::http::Method;
use serde_json::{Value, json};

use super::{
    account::{Account, Connect, Page, Refusal},
    event::{Incoming, Machine, Progress, Said, Status, bounded, collect},
    proof::{Forged, StreamProof, Verified, from_hex, hmac_is, in_window, password},
    rest::{Act, Ask, Dial, Rest, Target, Unable, add, bearer},
    signalwire::transfer_url,
    twilio,
    webhook::{Asked, BodyKind, Fields, Unclear, call_id, text},
};
use crate::config::Secret;

/// User of the streams' Basic credentials.
const STREAM_USER: &str = "voxrelay";

/// `Jambonz-Signature: t=UNIX,v1=HEX[,v1=HEX]`, HMAC-SHA256 over `t.body`.
pub(super) fn verify(account: &Account, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
    let secret = account.config().signing_key.as_ref().ok_or(Forged::new("the account has no signing_key"))?;
    if asked.method != Method::POST {
        return Err(Forged::new("it is no POST: the signature covers no URL"));
    }
    let shown = asked.header("jambonz-signature").ok_or(Forged::new("it has no Jambonz-Signature"))?;
    let parts = || shown.split(',').filter_map(|part| part.trim().split_once('='));
    let mut times = parts().filter(|(name, _)| *name == "t").map(|(_, value)| value);
    let (time, more) = (times.next(), times.next());
    let time = time.filter(|_| more.is_none()).ok_or(Forged::new("its signature has no time, or several"))?;
    let at: u64 = time.parse().map_err(|_| Forged::new("its signature's time is no number"))?;
    let text = [time.as_bytes(), b".", asked.body].concat();
    let tags = parts().filter(|(name, _)| *name == "v1").take(8).filter_map(|(_, value)| from_hex(value));
    if !tags.fold(false, |good, tag| good | hmac_is(hmac::HMAC_SHA256, secret, &text, &tag)) {
        return Err(Forged::new("its signature is wrong"));
    }
    in_window(at, now)?;
    Ok(Verified::of("jambonz", &[&text], Some(at), now))
}

pub(super) fn verify_stream(account: &Account, asked: &Asked<'_>) -> Result<StreamProof, Forged> {
    match account.config().stream_password.as_ref() {
        None => Ok(StreamProof::TokenOnly),
        wanted => password(asked, Some(STREAM_USER), wanted).map(|()| StreamProof::Proven),
    }
}

/// A form from an older server says the same.
pub(super) fn incoming(asked: &Asked<'_>) -> Result<Said, Unclear> {
    let said = asked.said()?;
    let over = said.get("call_status").is_some_and(|word| matches!(Progress::named(word), Progress::Ended(_)));
    if over || said.get("type").is_some_and(|word| word.starts_with("amd")) {
        return happened(&said).map(Said::Status);
    }
    let field = |name: &str| said.get(name).map(|text| bounded(text, 256));
    let whole = if asked.body_kind() == BodyKind::Json { asked.json()? } else { Value::Null };
    let headers = whole.pointer("/sip/headers").and_then(Value::as_object).into_iter().flatten();
    let own = headers.filter(|(name, _)| name.to_ascii_lowercase().starts_with("x-"));
    Ok(Said::Call(Incoming {
        call: call_id(&said, "call_sid")?,
        from: field("from"),
        to: field("to"),
        direction: twilio::direction(said.get("direction")),
        name: field("caller_name"),
        custom: collect(own.filter_map(|(name, value)| Some((name.clone(), text(value)?)))),
        machine: None,
        dial: None,
        by_command: false,
    }))
}

pub(super) fn status(asked: &Asked<'_>) -> Result<Status, Unclear> {
    happened(&asked.said()?)
}

fn happened(said: &Fields) -> Result<Status, Unclear> {
    let progress = match (said.get("type"), said.get("call_status")) {
        (Some("amd_human_detected"), _) => Progress::Machine(Machine::Human),
        (Some("amd_machine_detected"), _) => Progress::Machine(Machine::Machine),
        (Some("amd_tone_detected" | "amd_machine_stopped_speaking"), _) => Progress::Machine(Machine::Beep),
        (Some(word), _) if word.starts_with("amd") => Progress::Machine(Machine::Unknown),
        (_, Some(word)) => Progress::named(word),
        (word, None) => Progress::other(word.unwrap_or("nothing")),
    };
    let duration_s = said.get("duration").and_then(|text| text.parse().ok());
    let duration_s = duration_s.filter(|_| matches!(progress, Progress::Ended(_)));
    Ok(Status { duration_s, ..Status::of(call_id(said, "call_sid")?, progress) })
}

/// The metadata stands in the stream's first message. When we close the stream, the next verb ends the call.
pub(super) fn connect(account: &Account, with: &Connect<'_>) -> Value {
    let (_, rate) = account.audio();
    let mut listen = json!({
        "verb": "listen",
        "url": with.stream,
        "sampleRate": rate,
        "mixType": "mono",
        "passDtmf": true,
        "bidirectionalAudio": {"enabled": true, "streaming": true, "sampleRate": rate},
        "metadata": {"token": with.token},
    });
    if let Some(word) = account.config().stream_password.as_ref().map(Secret::expose) {
        add(&mut listen, "wsAuth", json!({"username": STREAM_USER, "password": word}));
    }
    json!([{"verb": "answer"}, listen, {"verb": "hangup"}])
}

pub(super) fn refuse(why: Refusal) -> Value {
    let (status, reason) = if why == Refusal::Busy { (486, "Busy Here") } else { (404, "Not Found") };
    json!([{"verb": "sip:decline", "status": status, "reason": reason}])
}

pub(super) fn transfer(to: &Target, caller: &str) -> Value {
    let target = match to {
        Target::Phone(number) => json!({"type": "phone", "number": number}),
        Target::Sip(address) => json!({"type": "sip", "sipUri": address}),
    };
    let mut dial = json!({"verb": "dial", "target": [target]});
    if !caller.is_empty() {
        add(&mut dial, "callerId", json!(caller));
    }
    json!([dial, {"verb": "hangup"}])
}

fn place(rest: &Rest<'_>, act: Act) -> Result<(String, Secret), Unable> {
    let config = rest.account.config();
    let account = rest.need(act, "account", config.account.as_deref())?;
    let key = rest.need(act, "api_key", config.api_key.as_ref())?;
    Ok((format!("{}/v1/Accounts/{account}/Calls", rest.base(act)?), bearer(key.expose())))
}

pub(super) fn hang_up(rest: &Rest<'_>, call: &str) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::HangUp)?;
    let body = json!({"call_status": "completed"});
    Ok(Ask::json(Act::HangUp, Method::PUT, format!("{calls}/{call}"), credential, &body))
}

/// The verbs are fetched from [`Page::Transfer`].
pub(super) fn transfer_call(rest: &Rest<'_>, call: &str, to: &Target) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::Transfer)?;
    let body = json!({"call_hook": {"url": transfer_url(rest, to), "method": "POST"}});
    Ok(Ask::json(Act::Transfer, Method::PUT, format!("{calls}/{call}"), credential, &body))
}

/// The voice webhook is asked when the call is answered, with the call's reference.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::Dial)?;
    let status = rest.back(Page::Status, dial);
    let mut body = json!({
        "from": rest.shown(dial)?,
        "to": {"type": "phone", "number": dial.number},
        "call_hook": {"url": rest.back(Page::Voice, dial), "method": "POST"},
        "call_status_hook": {"url": status, "method": "POST"},
        "timeout": dial.ring_s,
    });
    if dial.detect_machine {
        add(&mut body, "amd", json!({"actionHook": status}));
    }
    Ok(Ask::json(Act::Dial, Method::POST, calls, credential, &body))
}
