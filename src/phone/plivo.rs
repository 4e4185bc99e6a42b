//! Plivo Voice: its own XML and verbs, signature V3.
//!
//! Five steps to a working number: an account with `account` (Auth ID) and `auth_token`; `public_url`; an application whose answer
//! URL is `PUBLIC_URL/phone/plivo/voice` and whose hangup URL is `PUBLIC_URL/phone/plivo/status`, POST; the number assigned to it and
//! a `[[phone.numbers]]` entry; call it.
//!
//! `extraHeaders` carry letters and digits only, 512 bytes at most: so does the token. L16 would be the default, so that the content
//! type is always written. There is no `stop`: the stream's socket closes.
//!
//! Unverified: fields and words of webhooks, `<Hangup>`, `<Dial>`, and the REST requests but for hanging up.
use aws_lc_rs::hmac;
use axum::http::Method;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    account::{Account, Connect, Page, Refusal},
    event::{Incoming, Machine, Progress, Said, Status, bounded, custom},
    markup::Xml,
    proof::{Forged, Verified, hmac_is},
    rest::{Act, Ask, Dial, Rest, Target, Unable, add, basic},
    signalwire::transfer_url,
    twilio,
    webhook::{Asked, BodyKind, Fields, Unclear, call_id},
};
use crate::config::{PhoneCodec, Secret};

/// Signatures that one header may hold.
const MAX_SIGNATURES: usize = 8;

pub(super) fn verify(account: &Account, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
    let secret = account.config().auth_token.as_ref().ok_or(Forged::new("the account has no auth_token"))?;
    let shown = asked.header("x-plivo-signature-v3").ok_or(Forged::new("it has no X-Plivo-Signature-V3"))?;
    let nonce = asked.header("x-plivo-signature-v3-nonce").filter(|nonce| !nonce.is_empty());
    let nonce = nonce.ok_or(Forged::new("it has no X-Plivo-Signature-V3-Nonce"))?;
    let tags: Vec<Vec<u8>> =
        shown.split(',').take(MAX_SIGNATURES).filter_map(|tag| STANDARD.decode(tag.trim()).ok()).collect();
    let texts = bases(account, asked)?;
    let good =
        texts.iter().flat_map(|base| tags.iter().map(move |tag| (base, tag))).fold(false, |good, (base, tag)| {
            good | hmac_is(hmac::HMAC_SHA256, secret, format!("{base}.{nonce}").as_bytes(), tag)
        });
    if !good {
        return Err(Forged::new("its signature is wrong"));
    }
    // The nonce, and not the header, which may be written in several ways.
    let base = texts.first().map(String::as_bytes).unwrap_or_default();
    Ok(Verified::of("plivo", &[base, nonce.as_bytes()], None, now))
}

/// What may have been signed. Whether the query's values are signed decoded or as they are written is unverified: either will do.
fn bases(account: &Account, asked: &Asked<'_>) -> Result<Vec<String>, Forged> {
    let raw = asked.query_text().split('&').filter(|pair| !pair.is_empty());
    let raw = Fields(raw.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(owned).collect());
    let post = match (asked.method, asked.body_kind()) {
        (&Method::GET, BodyKind::Nothing) => None,
        (&Method::POST, BodyKind::Nothing) => Some(Fields::default()),
        (&Method::POST, BodyKind::Form) => Some(asked.form()),
        _ => return Err(Forged::new("it is neither a GET nor a POST of a form: its body is not signed")),
    };
    let url = account.public().web(asked.path());
    Ok([asked.query(), raw].into_iter().map(|query| base(&url, query, post.clone())).collect())
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The URL, its query sorted, a dot, the form's names and values sorted.
fn base(url: &str, mut query: Fields, post: Option<Fields>) -> String {
    query.0.sort();
    let mut post = post.unwrap_or_default();
    post.0.sort();
    let sorted: Vec<String> = query.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut text = url.to_owned();
    if !sorted.is_empty() || !post.0.is_empty() {
        text.push('?');
        text.push_str(&sorted.join("&"));
    }
    if !sorted.is_empty() && !post.0.is_empty() {
        text.push('.');
    }
    text.extend(post.0.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]));
    text
}

fn machine(said: &Fields) -> Option<Machine> {
    match said.get("Machine") {
        Some(flag) if flag.eq_ignore_ascii_case("true") => Some(Machine::Machine),
        Some(flag) if flag.eq_ignore_ascii_case("false") => Some(Machine::Human),
        _ => None,
    }
}

/// Without a hangup URL, Plivo tells that a call is over at the answer URL.
pub(super) fn incoming(asked: &Asked<'_>) -> Result<Said, Unclear> {
    let said = asked.said()?;
    let over = said.get("CallStatus").is_some_and(|word| matches!(Progress::named(word), Progress::Ended(_)));
    if over || said.get("Event") == Some("Hangup") {
        return status(asked).map(Said::Status);
    }
    let field = |name: &str| said.get(name).map(|text| bounded(text, 256));
    Ok(Said::Call(Incoming {
        call: call_id(&said, "CallUUID")?,
        from: field("From"),
        to: field("To"),
        direction: twilio::direction(said.get("Direction")),
        name: field("CallerName"),
        custom: custom(&said, "X-PH-"),
        machine: machine(&said),
        dial: None,
        by_command: false,
    }))
}

/// Words of the stream's own callbacks are unverified.
pub(super) fn status(asked: &Asked<'_>) -> Result<Status, Unclear> {
    let said = asked.said()?;
    let progress = match (said.get("Event"), said.get("CallStatus")) {
        (Some("StartStream"), _) => Progress::StreamStarted,
        (Some("StopStream"), _) => Progress::StreamEnded(None),
        (Some("DroppedStream" | "DegradedStream" | "FailedStream"), _) => {
            Progress::StreamEnded(said.get("Error").or(said.get("Event")).map(|text| bounded(text, 200)))
        }
        (Some("MachineDetection"), _) => Progress::Machine(machine(&said).unwrap_or(Machine::Machine)),
        (_, Some(word)) => Progress::named(word),
        (Some(word), None) => Progress::other(word),
        (None, None) => Progress::other("nothing"),
    };
    let duration_s = said.get("Duration").and_then(|text| text.parse().ok());
    let duration_s = duration_s.filter(|_| matches!(progress, Progress::Ended(_)));
    let asked_as = said.get("RequestUUID").map(|text| bounded(text, 64));
    Ok(Status { duration_s, asked_as, ..Status::of(call_id(&said, "CallUUID")?, progress) })
}

pub(super) fn connect(account: &Account, with: &Connect<'_>) -> String {
    let kind = match account.audio() {
        (PhoneCodec::L16, rate) => format!("audio/x-l16;rate={rate}"),
        _ => "audio/x-mulaw;rate=8000".to_owned(),
    };
    let header = format!("token={}", with.token);
    let attributes = [
        ("bidirectional", "true"),
        ("keepCallAlive", "true"),
        ("contentType", &kind),
        ("audioTrack", "inbound"),
        ("statusCallbackUrl", with.status),
        ("extraHeaders", &header),
    ];
    Xml::response().text("Stream", &attributes, with.stream).finish()
}

pub(super) fn refuse(why: Refusal) -> String {
    let reason = if why == Refusal::Busy { "busy" } else { "rejected" };
    Xml::response().empty("Hangup", &[("reason", reason)]).finish()
}

pub(super) fn transfer(to: &Target, caller: &str) -> String {
    let mut xml = Xml::response();
    xml.open("Dial", &[("callerId", digits(caller))]);
    match to {
        Target::Phone(number) => xml.text("Number", &[], digits(number)),
        Target::Sip(address) => xml.text("User", &[], address),
    };
    xml.finish()
}

/// Plivo and Vonage write numbers without `+`.
pub(super) fn digits(number: &str) -> &str {
    number.strip_prefix('+').unwrap_or(number)
}

fn place(rest: &Rest<'_>, act: Act) -> Result<(String, Secret), Unable> {
    let config = rest.account.config();
    let account = rest.need(act, "account", config.account.as_deref())?;
    let token = rest.need(act, "auth_token", config.auth_token.as_ref())?;
    Ok((format!("{}/v1/Account/{account}/Call/", rest.base(act)?), basic(account, token)))
}

pub(super) fn hang_up(rest: &Rest<'_>, call: &str) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::HangUp)?;
    Ok(Ask::bare(Act::HangUp, Method::DELETE, format!("{calls}{call}/"), credential))
}

pub(super) fn transfer_call(rest: &Rest<'_>, call: &str, to: &Target) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::Transfer)?;
    let body = json!({"legs": "aleg", "aleg_url": transfer_url(rest, to), "aleg_method": "POST"});
    Ok(Ask::json(Act::Transfer, Method::POST, format!("{calls}{call}/"), credential, &body))
}

pub(super) fn send_dtmf(rest: &Rest<'_>, call: &str, keys: &str) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::SendDtmf)?;
    let body = json!({"digits": keys, "leg": "aleg"});
    Ok(Ask::json(Act::SendDtmf, Method::POST, format!("{calls}{call}/DTMF/"), credential, &body))
}

/// The voice webhook is asked when the call is answered, with the call's reference.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::Dial)?;
    let status = rest.back(Page::Status, dial);
    let mut body = json!({
        "from": digits(rest.shown(dial)?),
        "to": digits(dial.number),
        "answer_url": rest.back(Page::Voice, dial),
        "answer_method": "POST",
        "ring_url": status,
        "ring_method": "POST",
        "hangup_url": status,
        "hangup_method": "POST",
        "ring_timeout": dial.ring_s,
    });
    if dial.detect_machine {
        add(&mut body, "machine_detection", json!("true"));
        add(&mut body, "machine_detection_url", json!(status));
        add(&mut body, "machine_detection_method", json!("POST"));
    }
    Ok(Ask::json(Act::Dial, Method::POST, calls, credential, &body))
}
