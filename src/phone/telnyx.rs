//! Telnyx: TeXML, or Call Control, whichever the number's application is; Ed25519 over time and body.
//!
//! Five steps to a working number: an account with `public_key` (portal: Keys & Credentials) and `api_key`; `public_url`; a TeXML
//! application whose voice URL is `PUBLIC_URL/phone/telnyx/voice`, POST, or a Call Control application with that as its webhook URL;
//! the number assigned to it and a `[[phone.numbers]]` entry; call it.
//!
//! `rtp` must be asked for: otherwise audio back is taken for MP3 files. What comes in has the leg's codec, not the one asked for. The
//! signature does not cover the URL, so that a GET proves nothing and is refused.
//!
//! Unverified: names and words of Call Control's events, `custom_parameters` of a command, `reject`, `transfer`, `send_dtmf` and what
//! they take, and that TeXML's requests are signed as the others are.
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use axum::http::Method;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    account::{Account, Connect, Page, Refusal},
    event::{Direction, Ending, Incoming, Machine, Progress, Said, Status, bounded, collect},
    markup::Xml,
    proof::{Forged, Verified, in_window},
    rest::{Act, Ask, Dial, Rest, Target, Unable, add, base, bearer, need},
    twilio,
    webhook::{Asked, BodyKind, Unclear, is_call_id, text},
};
use crate::config::PhoneCodec;

/// Header in which a stream's request shows its token.
pub(super) const STREAM_TOKEN: &str = "x-telnyx-streaming-auth-token";

pub(super) fn verify(account: &Account, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
    let key = account.ed25519().ok_or(Forged::new("the account has no public_key"))?;
    if asked.method != Method::POST {
        return Err(Forged::new("it is no POST: the signature covers no URL"));
    }
    let signature = asked.header("telnyx-signature-ed25519").and_then(|text| STANDARD.decode(text).ok());
    let signature = signature.ok_or(Forged::new("it has no telnyx-signature-ed25519 in base64"))?;
    let time = asked.header("telnyx-timestamp").ok_or(Forged::new("it has no telnyx-timestamp"))?;
    let at: u64 = time.parse().map_err(|_| Forged::new("its telnyx-timestamp is no number"))?;
    let text = [time.as_bytes(), b"|", asked.body].concat();
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&text, &signature)
        .map_err(|_| Forged::new("its signature is wrong"))?;
    in_window(at, now)?;
    Ok(Verified::of("telnyx", &[&text], Some(at), now))
}

/// TeXML's forms look as Twilio's; Call Control's events are JSON, and all of them come to the same page.
pub(super) fn incoming(asked: &Asked<'_>) -> Result<Said, Unclear> {
    if asked.body_kind() != BodyKind::Json {
        return twilio::incoming(asked);
    }
    let event = asked.json()?;
    let payload = event.pointer("/data/payload").unwrap_or(&Value::Null);
    let field = |name: &str| payload.get(name).and_then(text).map(|text| bounded(&text, 256));
    let inbound = field("direction").is_none_or(|word| word == "incoming");
    if event.pointer("/data/event_type").and_then(Value::as_str) != Some("call.initiated") || !inbound {
        return happened(&event).map(Said::Status);
    }
    let headers = payload.get("custom_headers").and_then(Value::as_array).into_iter().flatten();
    let pair = |header: &Value| Some((text(header.get("name")?)?, text(header.get("value")?)?));
    Ok(Said::Call(Incoming {
        call: control_id(payload)?,
        from: field("from"),
        to: field("to"),
        direction: Direction::Inbound,
        name: field("caller_id_name"),
        custom: collect(headers.filter_map(pair)),
        machine: None,
        dial: None,
        by_command: true,
    }))
}

pub(super) fn status(asked: &Asked<'_>) -> Result<Status, Unclear> {
    if asked.body_kind() == BodyKind::Json { happened(&asked.json()?) } else { twilio::status(asked) }
}

fn control_id(payload: &Value) -> Result<String, Unclear> {
    let id = payload.get("call_control_id").and_then(text);
    id.filter(|id| is_call_id(id)).ok_or_else(|| Unclear::lacks("data.payload.call_control_id"))
}

fn happened(event: &Value) -> Result<Status, Unclear> {
    let payload = event.pointer("/data/payload").unwrap_or(&Value::Null);
    let word = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or_default();
    let name = event.pointer("/data/event_type").and_then(Value::as_str).unwrap_or_default();
    let progress = match name {
        "call.initiated" => Progress::Queued,
        "call.ringing" => Progress::Ringing,
        "call.answered" => Progress::Answered,
        "streaming.started" => Progress::StreamStarted,
        "streaming.stopped" => Progress::StreamEnded(None),
        "streaming.failed" => Progress::StreamEnded(Some(bounded(word("failure_reason"), 200))),
        "call.machine.greeting.ended" | "call.machine.premium.greeting.ended" => Progress::Machine(Machine::Beep),
        "call.machine.detection.ended" | "call.machine.premium.detection.ended" => {
            Progress::Machine(match word("result") {
                "human" | "human_residence" | "human_business" => Machine::Human,
                "machine" => Machine::Machine,
                "fax" | "fax_detected" => Machine::Fax,
                _ => Machine::Unknown,
            })
        }
        "call.hangup" => Progress::Ended(match word("hangup_cause") {
            "normal_clearing" | "time_limit" => Ending::Completed,
            "user_busy" => Ending::Busy,
            "timeout" | "no_answer" => Ending::NoAnswer,
            "originator_cancel" => Ending::Canceled,
            "call_rejected" => Ending::Rejected,
            _ => Ending::Failed,
        }),
        name => Progress::other(name),
    };
    Ok(Status::of(control_id(payload)?, progress))
}

/// Telnyx' names of a codec and its rate.
fn codec(account: &Account) -> (&'static str, u32) {
    match account.audio() {
        (PhoneCodec::Pcmu, rate) => ("PCMU", rate),
        (PhoneCodec::Pcma, rate) => ("PCMA", rate),
        (PhoneCodec::L16, rate) => ("L16", rate),
    }
}

/// TeXML. The attribute for the rate is unverified, and only written where it is not 8 kHz.
pub(super) fn connect(account: &Account, with: &Connect<'_>) -> String {
    let (codec, rate) = codec(account);
    let rate = if rate == 8_000 { String::new() } else { rate.to_string() };
    let mut xml = Xml::response();
    xml.open("Connect", &[]);
    xml.open(
        "Stream",
        &[
            ("statusCallback", with.status),
            ("url", with.stream),
            ("bidirectionalMode", "rtp"),
            ("bidirectionalCodec", codec),
            ("bidirectionalSamplingRate", &rate),
        ],
    );
    xml.empty("Parameter", &[("name", "token"), ("value", with.token)]);
    xml.finish()
}

/// The stream of a call that is answered or begun over REST; the token goes into the request's header and into `start`.
fn stream(account: &Account, with: &Connect<'_>) -> Value {
    let (codec, rate) = codec(account);
    json!({
        "stream_url": with.stream,
        "stream_track": "inbound_track",
        "stream_bidirectional_mode": "rtp",
        "stream_bidirectional_codec": codec,
        "stream_bidirectional_sampling_rate": rate,
        "stream_auth_token": with.token,
        "custom_parameters": [{"name": "token", "value": with.token}],
        "webhook_url": with.status,
        "webhook_url_method": "POST",
    })
}

pub(super) fn answer(account: &Account, call: &str, with: &Connect<'_>) -> Result<Ask, Unable> {
    command(account, Act::Answer, call, "answer", &stream(account, with))
}

pub(super) fn reject(account: &Account, call: &str, why: Refusal) -> Result<Ask, Unable> {
    let cause = if why == Refusal::Busy { "USER_BUSY" } else { "CALL_REJECTED" };
    command(account, Act::Reject, call, "reject", &json!({"cause": cause}))
}

pub(super) fn command(account: &Account, act: Act, call: &str, name: &str, body: &Value) -> Result<Ask, Unable> {
    let key = need(account, act, "api_key", account.config().api_key.as_ref())?;
    let url = format!("{}/v2/calls/{call}/actions/{name}", base(account, act)?);
    Ok(Ask::json(act, Method::POST, url, bearer(key.expose()), body))
}

pub(super) fn transfer_call(account: &Account, call: &str, to: &Target) -> Result<Ask, Unable> {
    let mut body = json!({"to": to.as_str()});
    if let Some(caller) = &account.config().caller {
        add(&mut body, "from", json!(caller));
    }
    command(account, Act::Transfer, call, "transfer", &body)
}

/// The stream opens when the call is answered; a repetition with the same `key` begins no second call.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let (account, act) = (rest.account, Act::Dial);
    let key = rest.need(act, "api_key", account.config().api_key.as_ref())?;
    let connection = rest.need(act, "connection_id", account.config().connection_id.as_deref())?;
    let (place, status) = (account.url(Page::Stream), rest.back(Page::Status, dial));
    let mut body = stream(account, &Connect { stream: &place, status: &status, token: dial.token });
    add(&mut body, "connection_id", json!(connection));
    add(&mut body, "to", json!(dial.number));
    add(&mut body, "from", json!(rest.shown(dial)?));
    add(&mut body, "timeout_secs", json!(dial.ring_s));
    if dial.detect_machine {
        add(&mut body, "answering_machine_detection", json!("greeting_end"));
    }
    if let Some(key) = dial.key {
        add(&mut body, "command_id", json!(key));
    }
    Ok(Ask::json(act, Method::POST, format!("{}/v2/calls", rest.base(act)?), bearer(key.expose()), &body))
}
