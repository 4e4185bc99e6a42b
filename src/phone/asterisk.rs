//! Asterisk: a dialplan that asks us with `CURL()`, and ARI for what is done to calls.
//!
//! Asterisk signs nothing: its requests show `stream_password`, as Basic or Bearer, and come by TLS or a private network. The answer
//! to the voice page is one line, the call's token in the form of a UUID, or nothing: no agent has this number, hang up.
//!
//! ```text
//! ; extensions.conf; [voxrelay] is also what `context` names: answered calls of ours go to `voxrelay`, transfers to their number.
//! [from-trunk]
//! exten => _X.,1,Set(CURLOPT(userpwd)=relay:STREAM_PASSWORD)
//!  same => n,Set(TOKEN=${CURL(https://relay.example.com/phone/asterisk/voice,call=${URIENCODE(${CHANNEL(uniqueid)})}&from=${URIENCODE(${CALLERID(num)})}&name=${URIENCODE(${CALLERID(name)})}&to=${URIENCODE(${EXTEN})})})
//!  same => n,GotoIf($[${LEN(${TOKEN})} = 36]?talk)
//!  same => n,Hangup(1)
//!  same => n(talk),Answer()
//! ; by WebSocket (20.16, 21.11, 22.6 and later), 24 kHz, the client of websocket_client.conf:
//!  same => n,Dial(WebSocket/voxrelay/c(slin24)f(json)nv(token=${TOKEN}))
//! ; or by AudioSocket, 8 kHz, the address of phone.audiosocket:
//! ;same => n,AudioSocket(${TOKEN},127.0.0.1:9092)
//!  same => n,Hangup()
//!
//! [voxrelay]
//! exten => voxrelay,1,Dial(WebSocket/voxrelay/c(slin24)f(json)nv(token=${VOXRELAY_TOKEN}))
//! exten => _+X.,1,Dial(PJSIP/${EXTEN}@trunk)
//!
//! ; websocket_client.conf
//! [voxrelay]
//! type = websocket_client
//! connection_type = per_call_config
//! uri = wss://relay.example.com/phone/asterisk/stream
//! protocols = media
//! username = relay
//! password = STREAM_PASSWORD
//! tls_enabled = yes
//! ```
//! The second argument of `CURL()` makes it a POST of a form; a refusal's text is not 36 characters long. `v(...)` adds to the URI's
//! query; that, and the names in `websocket_client.conf`, are Asterisk's own sample's and documentation's (read 2026-11). ARI's paths are
//! unverified.
//!
//! Over REST: `hang_up` and `dial` work for every channel. `transfer` (`continue`) and `send_dtmf` need a channel that a Stasis
//! application holds; for others ARI says 409. Where the channel is a WebSocket's, its own commands hang up as well.
use axum::http::Method;
use serde_json::json;

use super::{
    account::Account,
    event::{Direction, Incoming, Progress, Said, Status, bounded, custom},
    proof::{Forged, Verified, password},
    rest::{Act, Ask, Dial, Rest, Target, Unable, basic, query},
    webhook::{Asked, Unclear, call_id},
};
use crate::config::{PhoneKind, Secret};

/// Extension that answered calls of ours go to.
pub(super) const EXTENSION: &str = "voxrelay";

pub(super) fn verify(account: &Account, asked: &Asked<'_>) -> Result<Verified, Forged> {
    password(asked, None, account.config().stream_password.as_ref())?;
    Ok(Verified::by_password())
}

/// The dialplan's form: `call`, `from`, `to`, `name`, `direction`, and parameters that begin with `x-`.
pub(super) fn incoming(asked: &Asked<'_>) -> Result<Said, Unclear> {
    let said = asked.said()?;
    let field = |name: &str| said.get(name).map(|text| bounded(text, 256));
    let outbound = said.get("direction").is_some_and(|word| word.starts_with("out"));
    Ok(Said::Call(Incoming {
        call: call_id(&said, "call")?,
        from: field("from"),
        to: field("to"),
        direction: if outbound { Direction::Outbound } else { Direction::Inbound },
        name: field("name"),
        custom: custom(&said, "x-"),
        machine: None,
        dial: None,
        by_command: false,
    }))
}

/// `call`, `status` in the words of `DIALSTATUS` or of this table's relatives, and `duration`.
pub(super) fn status(asked: &Asked<'_>) -> Result<Status, Unclear> {
    let said = asked.said()?;
    let progress = match said.get("status").unwrap_or("nothing").to_ascii_uppercase().as_str() {
        "ANSWER" => Progress::named("answered"),
        "NOANSWER" => Progress::named("no-answer"),
        "CANCEL" => Progress::named("canceled"),
        "CHANUNAVAIL" | "CONGESTION" => Progress::named("failed"),
        "HANGUP" => Progress::named("completed"),
        word => Progress::named(word),
    };
    let duration_s = said.get("duration").and_then(|text| text.parse().ok());
    let duration_s = duration_s.filter(|_| matches!(progress, Progress::Ended(_)));
    Ok(Status { duration_s, ..Status::of(call_id(&said, "call")?, progress) })
}

fn place(rest: &Rest<'_>, act: Act) -> Result<(String, Secret), Unable> {
    let config = rest.account.config();
    let user = rest.need(act, "account", config.account.as_deref())?;
    let password = rest.need(act, "api_key", config.api_key.as_ref())?;
    Ok((format!("{}/channels", rest.base(act)?), basic(user, password)))
}

pub(super) fn hang_up(rest: &Rest<'_>, call: &str) -> Result<Ask, Unable> {
    let (channels, credential) = place(rest, Act::HangUp)?;
    Ok(Ask::bare(Act::HangUp, Method::DELETE, format!("{channels}/{call}"), credential))
}

/// The number that a dialplan's context is given; it has no addresses.
pub(super) fn number(kind: PhoneKind, to: &Target) -> Result<&str, Unable> {
    match to {
        Target::Phone(number) => Ok(number),
        Target::Sip(_) => {
            let instead = "the dialplan's context takes numbers only";
            Err(Unable::Unsupported { kind, act: Act::Transfer, instead })
        }
    }
}

pub(super) fn transfer_call(rest: &Rest<'_>, call: &str, to: &Target) -> Result<Ask, Unable> {
    let (channels, credential) = place(rest, Act::Transfer)?;
    let context = rest.need(Act::Transfer, "context", rest.account.config().context.as_deref())?;
    let number = number(PhoneKind::Asterisk, to)?;
    let fields = query(&[("context", context), ("extension", number), ("priority", "1")]);
    Ok(Ask::bare(Act::Transfer, Method::POST, format!("{channels}/{call}/continue?{fields}"), credential))
}

pub(super) fn send_dtmf(rest: &Rest<'_>, call: &str, keys: &str) -> Result<Ask, Unable> {
    let (channels, credential) = place(rest, Act::SendDtmf)?;
    let fields = query(&[("dtmf", keys)]);
    Ok(Ask::bare(Act::SendDtmf, Method::POST, format!("{channels}/{call}/dtmf?{fields}"), credential))
}

/// An answered call goes to the context, which has the token in a variable. There are no status callbacks: the stream and the
/// dialplan's own requests tell. Machines are not detected.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let (channels, credential) = place(rest, Act::Dial)?;
    let config = rest.account.config();
    let endpoint = rest.need(Act::Dial, "endpoint", config.endpoint.as_deref())?.replace("{number}", dial.number);
    let context = rest.need(Act::Dial, "context", config.context.as_deref())?;
    let fields = query(&[
        ("endpoint", &endpoint),
        ("context", context),
        ("extension", EXTENSION),
        ("priority", "1"),
        ("callerId", rest.shown(dial)?),
        ("timeout", &dial.ring_s.to_string()),
    ]);
    let body = json!({"variables": {"VOXRELAY_TOKEN": dial.token, "VOXRELAY_REFERENCE": dial.reference}});
    Ok(Ask::json(Act::Dial, Method::POST, format!("{channels}?{fields}"), credential, &body))
}
