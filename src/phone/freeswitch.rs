//! FreeSWITCH: a dialplan that asks us with `mod_curl`, and `mod_xml_rpc`'s web API for what is done to calls.
//!
//! Webhooks are Asterisk's ([`super::asterisk`]): `call`, `from`, `to`, `name`, in a query or a form, shown `stream_password`, answered with the
//! token alone, or with nothing.
//!
//! ```text
//! <extension name="voxrelay"><condition field="destination_number" expression="^(\+?\d+)$">
//!   <action application="set" data="curl_timeout=3"/>
//!   <action application="curl" data="https://relay:STREAM_PASSWORD@relay.example.com/phone/freeswitch/voice?call=${uuid}&amp;from=${url_encode(${caller_id_number})}&amp;to=${url_encode($1)}"/>
//!   <action application="set" data="voxrelay_token=${curl_response_data}"/>
//!   <action application="answer"/>
//!   <action application="set" data="started=${uuid_audio_fork(${uuid} start wss://relay:STREAM_PASSWORD@relay.example.com/phone/freeswitch/stream?token=${voxrelay_token} mono 16k)}"/>
//!   <action application="park"/>
//! </condition></extension>
//! ```
//! Which of the open modules play audio back: of `mod_audio_fork` only forks, of `mod_audio_stream` only the closed edition. Prefer
//! jambonz or Asterisk. Everything here about `mod_curl` and the web API is unverified. `originate` answers only when somebody has
//! answered or nobody will: its request takes as long as the telephone rings.
use axum::http::Method;

use super::{
    account::Account,
    asterisk::{EXTENSION, number},
    event::bounded,
    rest::{Act, Ask, Dial, Done, Failure, Rest, Target, Unable, basic},
    webhook::is_call_id,
};
use crate::config::PhoneKind;

/// One command of the API; its words are separated by spaces.
fn command(rest: &Rest<'_>, act: Act, name: &str, words: &[&str]) -> Result<Ask, Unable> {
    let config = rest.account.config();
    let user = rest.need(act, "account", config.account.as_deref())?;
    let password = rest.need(act, "api_key", config.api_key.as_ref())?;
    let words: Vec<String> =
        words.iter().map(|word| form_urlencoded::byte_serialize(word.as_bytes()).collect()).collect();
    let url = format!("{}/txtapi/{name}?{}", rest.base(act)?, words.join("%20"));
    Ok(Ask::bare(act, Method::GET, url, basic(user, password)))
}

pub(super) fn hang_up(rest: &Rest<'_>, call: &str) -> Result<Ask, Unable> {
    command(rest, Act::HangUp, "uuid_kill", &[call])
}

pub(super) fn transfer_call(rest: &Rest<'_>, call: &str, to: &Target) -> Result<Ask, Unable> {
    let context = rest.need(Act::Transfer, "context", rest.account.config().context.as_deref())?;
    let number = number(PhoneKind::Freeswitch, to)?;
    command(rest, Act::Transfer, "uuid_transfer", &[call, number, "XML", context])
}

pub(super) fn send_dtmf(rest: &Rest<'_>, call: &str, keys: &str) -> Result<Ask, Unable> {
    command(rest, Act::SendDtmf, "uuid_send_dtmf", &[call, keys])
}

/// An answered call goes to the context, which has the token in a variable.
pub(super) fn dial(rest: &Rest<'_>, dial: &Dial<'_>) -> Result<Ask, Unable> {
    let config = rest.account.config();
    let endpoint = rest.need(Act::Dial, "endpoint", config.endpoint.as_deref())?.replace("{number}", dial.number);
    let context = rest.need(Act::Dial, "context", config.context.as_deref())?;
    let leg = format!(
        "{{ignore_early_media=true,originate_timeout={},origination_caller_id_number={},voxrelay_token={},\
         voxrelay_reference={}}}{endpoint}",
        dial.ring_s,
        rest.shown(dial)?,
        dial.token,
        dial.reference
    );
    command(rest, Act::Dial, "originate", &[&leg, EXTENSION, "XML", context])
}

/// `+OK ...` or `-ERR ...`, with status 200 either way.
pub(super) fn done(account: &Account, act: Act, status: u16, body: &[u8]) -> Result<Done, Failure> {
    let text = bounded(String::from_utf8_lossy(body).trim(), 300);
    let good = text.strip_prefix("+OK").map(str::trim).filter(|_| (200..300).contains(&status));
    let error = text.strip_prefix("-ERR").map(str::trim);
    match (good, error) {
        (Some(id), _) if act == Act::Dial && is_call_id(id) => Ok(Done { call: Some(id.to_owned()), gone: false }),
        (Some(_), _) if act == Act::Dial => Err(account.failure(act, status, None, "its answer names no call")),
        (Some(_), _) => Ok(Done { call: None, gone: false }),
        (None, Some(words)) if act == Act::HangUp && words.starts_with("No such channel") => {
            Ok(Done { call: None, gone: true })
        }
        (None, error) => Err(account.failure(act, status, None, error.unwrap_or_default())),
    }
}
