//! Twilio Programmable Voice: TwiML, `X-Twilio-Signature`, REST 2010-04-01. SignalWire and Telnyx speak much of it, too.
//!
//! Five steps to a working number: an account with `account` and `auth_token`; `public_url` on port 443 with a certificate that
//! everybody trusts; the number's voice webhook at `PUBLIC_URL/phone/twilio/voice`, POST; a `[[phone.numbers]]` entry; call it. The
//! stream's URL has no query, for Twilio strips it: the token travels as `<Parameter>`.
//!
//! A signature has no time in it: [`super::Replays`] remembers those that were shown. It joins names and values without a mark
//! between them, so that who has seen one request could move the boundary; that needs the request, which only TLS's ends see.
//!
//! Unverified: `<Reject>`, `<Dial>`, the words of `AnsweredBy` and of stream callbacks, the fields of dialling (`Twiml`, `AsyncAmd`,
//! `MachineDetection`), and that code 21220 says of a call that it is over.
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    account::{Account, Connect, Page, Refusal},
    event::{Direction, Incoming, Machine, Progress, Said, Status, bounded, custom},
    markup::Xml,
    proof::{Forged, StreamProof, Verified, from_hex, hmac_is, same, sha256},
    rest::{Act, Ask, Dial, Rest, Target, Unable, basic},
    webhook::{Asked, BodyKind, Fields, Unclear, call_id},
};
use crate::config::Secret;

/// Root of the REST API.
pub(super) const ROOT: &str = "/2010-04-01";

const SIGNATURE: &str = "x-twilio-signature";
const SETTINGS: &str = "x-twilio-webhooks-signature-settings";

pub(super) fn verify(account: &Account, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
    let signature = asked.header(SIGNATURE).ok_or(Forged::new("it has no X-Twilio-Signature, or several"))?;
    let (algorithm, secret) = chosen(account, asked)?;
    signed(account, asked, signature, algorithm, secret)?;
    Ok(Verified::of("twilio", &[signature.as_bytes()], None, now))
}

pub(super) fn verify_stream(account: &Account, asked: &Asked<'_>) -> Result<StreamProof, Forged> {
    let signature = asked.header(SIGNATURE).ok_or(Forged::new("it has no X-Twilio-Signature, or several"))?;
    let (algorithm, secret) = chosen(account, asked)?;
    signed_stream(account, asked, signature, algorithm, secret)?;
    Ok(StreamProof::Proven)
}

/// The algorithm that the request's settings name (`key=...,algorithm=HMAC_SHA256`), with the secret that belongs to it.
fn chosen<'a>(account: &'a Account, asked: &Asked<'_>) -> Result<(hmac::Algorithm, &'a Secret), Forged> {
    let config = account.config();
    if !asked.headers.contains_key(SETTINGS) {
        let secret = config.auth_token.as_ref().ok_or(Forged::new("the account has no auth_token"))?;
        return Ok((hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret));
    }
    let settings = asked.header(SETTINGS).ok_or(Forged::new("it has several signature settings"))?;
    let setting = |wanted: &str| {
        let pairs = settings.split(',').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim()).next()
    };
    if setting("algorithm") != Some("HMAC_SHA256") {
        return Err(Forged::new("its signature settings name no known algorithm"));
    }
    let secret = config.signing_key.as_ref().ok_or(Forged::new("the account has no signing_key for SHA-256"))?;
    match &config.signing_key_name {
        Some(name) if setting("key") != Some(name) => Err(Forged::new("its signature settings name another key")),
        _ => Ok((hmac::HMAC_SHA256, secret)),
    }
}

/// Whether this signature is good for a webhook: the URL, then each parameter's name and value, sorted, without repetitions. What
/// is no form is covered by its digest in the URL, `bodySHA256`.
pub(super) fn signed(
    account: &Account,
    asked: &Asked<'_>,
    signature: &str,
    algorithm: hmac::Algorithm,
    secret: &Secret,
) -> Result<(), Forged> {
    let mut fields = match asked.body_kind() {
        BodyKind::Nothing => Fields::default(),
        BodyKind::Form => asked.form(),
        BodyKind::Json => {
            let digest = asked.query().get("bodySHA256").and_then(from_hex);
            let digest = digest.ok_or(Forged::new("its body is no form, and its URL has no bodySHA256"))?;
            if !same(&digest, &sha256(asked.body)) {
                return Err(Forged::new("its body has another digest than its URL says"));
            }
            Fields::default()
        }
    };
    fields.0.sort();
    fields.0.dedup();
    let text: String = fields.0.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]).collect();
    any_signs(&account.public().web(asked.target), &text, signature, algorithm, secret)
}

/// Whether it is good for a stream: the exact URL, which has no parameters.
pub(super) fn signed_stream(
    account: &Account,
    asked: &Asked<'_>,
    signature: &str,
    algorithm: hmac::Algorithm,
    secret: &Secret,
) -> Result<(), Forged> {
    any_signs(&account.public().socket(asked.target), "", signature, algorithm, secret)
}

fn any_signs(
    url: &str,
    text: &str,
    signature: &str,
    algorithm: hmac::Algorithm,
    secret: &Secret,
) -> Result<(), Forged> {
    let tag = STANDARD.decode(signature).map_err(|_| Forged::new("its signature is not base64"))?;
    let good = variants(url)
        .iter()
        .fold(false, |good, url| good | hmac_is(algorithm, secret, format!("{url}{text}").as_bytes(), &tag));
    if good { Ok(()) } else { Err(Forged::new("its signature is wrong")) }
}

/// A URL as it may have been signed: as it is, with and without its port, with and without a slash at the path's end. Twilio's own
/// library adds `:80` to `wss` URLs.
pub(super) fn variants(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(at);
    let usual: &[&str] = match scheme {
        "https" => &["443"],
        "wss" => &["443", "80"],
        _ => &["80"],
    };
    let bare = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let mut hosts = vec![authority.to_owned()];
    match bare {
        Some((host, _)) => hosts.push(host.to_owned()),
        None => hosts.extend(usual.iter().map(|port| format!("{authority}:{port}"))),
    }
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
    let targets = [target.to_owned(), format!("{other}{query}")];
    hosts.iter().flat_map(|host| targets.iter().map(move |target| format!("{scheme}://{host}{target}"))).collect()
}

/// What tells that a call is over comes here, too, where the provider knows no other page.
pub(super) fn incoming(asked: &Asked<'_>) -> Result<Said, Unclear> {
    let said = asked.said()?;
    if said.get("CallStatus").is_some_and(|word| matches!(Progress::named(word), Progress::Ended(_))) {
        return status(asked).map(Said::Status);
    }
    let field = |name: &str| said.get(name).map(|text| bounded(text, 256));
    Ok(Said::Call(Incoming {
        call: call_id(&said, "CallSid")?,
        from: field("From"),
        to: field("To"),
        direction: direction(said.get("Direction")),
        name: field("CallerName"),
        custom: custom(&said, "SipHeader_"),
        machine: said.get("AnsweredBy").map(machine),
        dial: None,
        by_command: false,
    }))
}

pub(super) fn direction(word: Option<&str>) -> Direction {
    match word {
        Some(word) if word.starts_with("outbound") || word.starts_with("outgoing") => Direction::Outbound,
        _ => Direction::Inbound,
    }
}

/// `AnsweredBy`
pub(super) fn machine(word: &str) -> Machine {
    match word {
        "human" => Machine::Human,
        "fax" => Machine::Fax,
        "machine_end_beep" | "machine_end_silence" | "machine_end_other" => Machine::Beep,
        word if word.starts_with("machine") => Machine::Machine,
        _ => Machine::Unknown,
    }
}

pub(super) fn status(asked: &Asked<'_>) -> Result<Status, Unclear> {
    let said = asked.said()?;
    let progress = match (said.get("StreamEvent"), said.get("CallStatus"), said.get("AnsweredBy")) {
        (Some("stream-started"), ..) => Progress::StreamStarted,
        (Some("stream-stopped"), ..) => Progress::StreamEnded(None),
        (Some("stream-error"), ..) => {
            Progress::StreamEnded(Some(bounded(said.get("StreamError").unwrap_or("unknown"), 200)))
        }
        // An asynchronous machine detection repeats the call's status.
        (None, Some("in-progress") | None, Some(who)) => Progress::Machine(machine(who)),
        (None, Some(word), _) => Progress::named(word),
        (Some(word), ..) => Progress::other(word),
        (None, None, None) => Progress::other("nothing"),
    };
    let seconds = said.get("CallDuration").or(said.get("Duration")).and_then(|text| text.parse().ok());
    let duration_s = seconds.filter(|_| matches!(progress, Progress::Ended(_)));
    Ok(Status { duration_s, ..Status::of(call_id(&said, "CallSid")?, progress) })
}

pub(super) fn connect(with: &Connect<'_>) -> String {
    let mut xml = Xml::response();
    xml.open("Connect", &[]);
    xml.open("Stream", &[("statusCallback", with.status), ("url", with.stream)]);
    xml.empty("Parameter", &[("name", "token"), ("value", with.token)]);
    xml.finish()
}

/// Nothing is billed for a call that is turned away so.
pub(super) fn refuse(why: Refusal) -> String {
    let reason = if why == Refusal::Busy { "busy" } else { "rejected" };
    Xml::response().empty("Reject", &[("reason", reason)]).finish()
}

pub(super) fn transfer(to: &Target, caller: &str) -> String {
    let mut xml = Xml::response();
    xml.open("Dial", &[("callerId", caller)]);
    match to {
        Target::Phone(number) => xml.text("Number", &[], number),
        Target::Sip(address) => xml.text("Sip", &[], address),
    };
    xml.finish()
}

/// Where calls are, and the credential for it.
pub(super) fn place(rest: &Rest<'_>, act: Act, root: &str) -> Result<(String, Secret), Unable> {
    let config = rest.account.config();
    let account = rest.need(act, "account", config.account.as_deref())?;
    let token = rest.need(act, "auth_token", config.auth_token.as_ref())?;
    Ok((format!("{}{root}/Accounts/{account}/Calls", rest.base(act)?), basic(account, token)))
}

pub(super) fn hang_up(rest: &Rest<'_>, root: &str, call: &str) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::HangUp, root)?;
    Ok(Ask::form(Act::HangUp, format!("{calls}/{call}.json"), credential, &[("Status", "completed")]))
}

pub(super) fn transfer_call(rest: &Rest<'_>, root: &str, call: &str, to: &Target) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::Transfer, root)?;
    let markup = transfer(to, rest.account.config().caller.as_deref().unwrap_or_default());
    Ok(Ask::form(Act::Transfer, format!("{calls}/{call}.json"), credential, &[("Twiml", &markup)]))
}

/// The call's markup goes along with the request, so that no webhook is asked when it is answered.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let (calls, credential) = place(rest, Act::Dial, ROOT)?;
    let (stream, status) = (rest.account.url(Page::Stream), rest.back(Page::Status, dial));
    let markup = connect(&Connect { stream: &stream, status: &status, token: dial.token });
    let mut fields = wanted(dial, rest.shown(dial)?, &status);
    let ring = dial.ring_s.to_string();
    fields.extend([("Twiml", markup.as_str()), ("Timeout", ring.as_str())]);
    if dial.detect_machine {
        fields.extend([("MachineDetection", "DetectMessageEnd"), ("AsyncAmd", "true")]);
        fields.extend([("AsyncAmdStatusCallback", status.as_str())]);
    }
    Ok(Ask::form(Act::Dial, format!("{calls}.json"), credential, &fields))
}

/// Who calls whom, and where each step is told.
pub(super) fn wanted<'a>(dial: &Dial<'a>, from: &'a str, status: &'a str) -> Vec<(&'static str, &'a str)> {
    let steps = ["initiated", "ringing", "answered", "completed"];
    let mut fields = vec![("To", dial.number), ("From", from), ("StatusCallback", status)];
    fields.push(("StatusCallbackMethod", "POST"));
    fields.extend(steps.map(|step| ("StatusCallbackEvent", step)));
    fields
}
