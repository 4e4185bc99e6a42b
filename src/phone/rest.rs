//! Requests to providers' REST APIs, and what their answers mean. Sends nothing itself.
use std::fmt;

use axum::http::Method;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    account::Account,
    asterisk,
    event::bounded,
    freeswitch, jambonz, plivo, signalwire, telnyx, twilio, vonage,
    webhook::{is_call_id, text},
};
use crate::config::{E164, PhoneKind, Secret, is_e164};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// End a call.
    HangUp,
    /// Take it elsewhere.
    Transfer,
    /// Press keys on it.
    SendDtmf,
    /// Begin one.
    Dial,
    /// Take one that came in.
    Answer,
    /// Turn one away that came in.
    Reject,
}

impl Act {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HangUp => "hang_up",
            Self::Transfer => "transfer",
            Self::SendDtmf => "send_dtmf",
            Self::Dial => "dial",
            Self::Answer => "answer",
            Self::Reject => "reject",
        }
    }
}

/// One request to a provider. Never follow a redirect with it: it carries a credential.
#[derive(Clone)]
pub struct Ask {
    /// What it is for; [`Account::done`] wants to know.
    pub act: Act,
    /// How.
    pub method: Method,
    /// Where.
    pub url: String,
    /// `Authorization`
    pub authorization: Secret,
    /// `Content-Type`, if there is a body.
    pub content_type: Option<&'static str>,
    /// May hold a call's token.
    pub body: String,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.url.split('?').next().unwrap_or_default();
        write!(f, "Ask({} {} {path})", self.act.name(), self.method)
    }
}

impl PartialEq for Ask {
    fn eq(&self, other: &Self) -> bool {
        (self.act, &self.method, &self.url, &self.body) == (other.act, &other.method, &other.url, &other.body)
    }
}

impl Eq for Ask {}

/// A request that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// The provider has no such request.
    #[error("{} has no {} over REST: {instead}", kind.name(), act.name())]
    Unsupported {
        /// Whose.
        kind: PhoneKind,
        /// What.
        act: Act,
        /// What there is.
        instead: &'static str,
    },
    /// The configuration says too little.
    #[error("phone.accounts.{account}.{field}: found nothing; allowed: a value, for {}", act.name())]
    Lacks {
        /// Which account.
        account: String,
        /// Which field.
        field: &'static str,
        /// For what.
        act: Act,
    },
    /// A value that cannot be. It may come from a model: it is not repeated.
    #[error("{field}: found something else; allowed: {allowed}")]
    Value {
        /// Which.
        field: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A key does not sign.
    #[error("the account's private key does not sign")]
    Key,
}

/// What a provider has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Its id of the call that was begun; for Plivo the one that [`super::Status::asked_as`] repeats.
    pub call: Option<String>,
    /// There was no such call any more.
    pub gone: bool,
}

/// A provider's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} refused to {}: status {status}{}{message}", kind.name(), act.name(), code.as_ref().map(|c| format!(", code {c}")).unwrap_or_default())]
pub struct Failure {
    /// Whose.
    pub kind: PhoneKind,
    /// What was asked for.
    pub act: Act,
    /// HTTP status.
    pub status: u16,
    /// The provider's code.
    pub code: Option<String>,
    /// `: ` and the provider's words, without secrets and not too long; or nothing.
    pub message: String,
}

impl Failure {
    /// Whether the same request may do better later.
    pub fn is_passing(&self) -> bool {
        self.status == 429 || self.status >= 500
    }
}

/// Where a call is taken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A telephone number, with its `+`.
    Phone(String),
    /// `sip:user@host`
    Sip(String),
}

impl Target {
    /// As a tool or an operator writes it; spaces, dashes and brackets in numbers are forgiven.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, Unable> {
        let number: String = text.chars().filter(|c| !" -().".contains(*c)).collect();
        if is_e164(&number) {
            return Ok(Self::Phone(number));
        }
        let sip = |rest: &str| {
            let part = |b: u8| b.is_ascii_alphanumeric() || b"-_.+@:".contains(&b);
            (3..=200).contains(&rest.len()) && rest.matches('@').count() == 1 && rest.bytes().all(part)
        };
        if text.strip_prefix("sip:").is_some_and(sip) {
            return Ok(Self::Sip(text.to_owned()));
        }
        Err(Unable::Value { field: "to", allowed: "`+` and 7 to 15 digits, or sip:user@host" })
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Phone(text) | Self::Sip(text) => text,
        }
    }
}

/// A call to begin.
#[derive(Debug, Clone, Copy)]
pub struct Dial<'a> {
    /// Who is called, with `+`. Whether that is allowed was asked before ([`super::numbers::Dials`]).
    pub number: &'a str,
    /// The number that is shown; none: the account's `caller`.
    pub from: Option<&'a str>,
    /// What the stream shows.
    pub token: &'a str,
    /// Comes back as [`super::DIAL_QUERY`] of every webhook of this call; unguessable, letters and digits.
    pub reference: &'a str,
    /// How long it may ring, seconds.
    pub ring_s: u32,
    /// Ask the provider who or what answers, where it can.
    pub detect_machine: bool,
    /// The same for repetitions of one request, where the provider looks at it (Telnyx); the wish is its maker's.
    pub key: Option<&'a str>,
}

/// What the requests of a moment need from outside.
#[derive(Debug, Clone, Copy)]
pub struct Stamp<'a> {
    /// Unix seconds.
    pub now: u64,
    /// Letters and digits that were never used before; in Vonage's tokens.
    pub nonce: &'a str,
}

/// An account's requests.
#[derive(Debug, Clone, Copy)]
pub struct Rest<'a> {
    pub(super) account: &'a Account,
    pub(super) stamp: Stamp<'a>,
}

impl Account {
    /// Its requests, at this moment.
    pub fn rest<'a>(&'a self, stamp: Stamp<'a>) -> Rest<'a> {
        Rest { account: self, stamp }
    }
}

impl Rest<'_> {
    /// Ends a call.
    ///
    /// # Errors
    /// Why that cannot be asked for.
    pub fn hang_up(&self, call: &str) -> Result<Ask, Unable> {
        let (act, call) = (Act::HangUp, checked(call)?);
        match self.account.kind() {
            PhoneKind::Twilio => twilio::hang_up(self, twilio::ROOT, call),
            PhoneKind::Signalwire => twilio::hang_up(self, signalwire::ROOT, call),
            PhoneKind::Telnyx => telnyx::command(self.account, act, call, "hangup", &serde_json::json!({})),
            PhoneKind::Plivo => plivo::hang_up(self, call),
            PhoneKind::Vonage => vonage::hang_up(self, call),
            PhoneKind::Jambonz => jambonz::hang_up(self, call),
            PhoneKind::Asterisk => asterisk::hang_up(self, call),
            PhoneKind::Freeswitch => freeswitch::hang_up(self, call),
        }
    }

    /// Takes a call elsewhere. Its stream to us ends with that.
    ///
    /// # Errors
    /// Why that cannot be asked for.
    pub fn transfer(&self, call: &str, to: &Target) -> Result<Ask, Unable> {
        let call = checked(call)?;
        match self.account.kind() {
            PhoneKind::Twilio => twilio::transfer_call(self, twilio::ROOT, call, to),
            PhoneKind::Signalwire => signalwire::transfer_call(self, call, to),
            PhoneKind::Telnyx => telnyx::transfer_call(self.account, call, to),
            PhoneKind::Plivo => plivo::transfer_call(self, call, to),
            PhoneKind::Vonage => vonage::transfer_call(self, call, to),
            PhoneKind::Jambonz => jambonz::transfer_call(self, call, to),
            PhoneKind::Asterisk => asterisk::transfer_call(self, call, to),
            PhoneKind::Freeswitch => freeswitch::transfer_call(self, call, to),
        }
    }

    /// Presses keys on a call.
    ///
    /// # Errors
    /// Why that cannot be asked for.
    pub fn send_dtmf(&self, call: &str, digits: &str) -> Result<Ask, Unable> {
        let (act, call) = (Act::SendDtmf, checked(call)?);
        if !(1..=32).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit() || b"*#ABCD".contains(&b)) {
            return Err(Unable::Value { field: "digits", allowed: "1 to 32 of 0-9, *, #, A-D" });
        }
        let unsupported = |kind, instead| Err(Unable::Unsupported { kind, act, instead });
        match self.account.kind() {
            kind @ PhoneKind::Twilio => unsupported(kind, "keys can only be played as sounds, in the stream's audio"),
            kind @ PhoneKind::Signalwire => unsupported(kind, "the stream's own dtmf message does it"),
            kind @ PhoneKind::Jambonz => unsupported(kind, "the sounds of keys can be sent in the stream's audio"),
            PhoneKind::Telnyx => {
                let body = serde_json::json!({"digits": digits});
                telnyx::command(self.account, act, call, "send_dtmf", &body)
            }
            PhoneKind::Plivo => plivo::send_dtmf(self, call, digits),
            PhoneKind::Vonage => vonage::send_dtmf(self, call, digits),
            PhoneKind::Asterisk => asterisk::send_dtmf(self, call, digits),
            PhoneKind::Freeswitch => freeswitch::send_dtmf(self, call, digits),
        }
    }

    /// Begins a call whose stream comes to us.
    ///
    /// # Errors
    /// Why that cannot be asked for.
    pub fn dial(&self, dial: &Dial<'_>) -> Result<Ask, Unable> {
        if !is_e164(dial.number) {
            return Err(Unable::Value { field: "number", allowed: E164 });
        }
        if dial.from.is_some_and(|from| !is_e164(from)) {
            return Err(Unable::Value { field: "from", allowed: E164 });
        }
        if !self.account.token_form().fits(dial.token) {
            return Err(Unable::Value { field: "token", allowed: "a token of the account's form" });
        }
        if !(16..=64).contains(&dial.reference.len()) || !dial.reference.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Unable::Value { field: "reference", allowed: "16 to 64 letters and digits" });
        }
        if !(5..=600).contains(&dial.ring_s) {
            return Err(Unable::Value { field: "ring_s", allowed: "5 to 600 seconds" });
        }
        match self.account.kind() {
            PhoneKind::Twilio => twilio::dial(self, dial),
            PhoneKind::Signalwire => signalwire::dial(self, dial),
            PhoneKind::Telnyx => telnyx::dial(self, dial),
            PhoneKind::Plivo => plivo::dial(self, dial),
            PhoneKind::Vonage => vonage::dial(self, dial),
            PhoneKind::Jambonz => jambonz::dial(self, dial),
            PhoneKind::Asterisk => asterisk::dial(self, dial),
            PhoneKind::Freeswitch => freeswitch::dial(self, dial),
        }
    }

    /// Base URL of the API, without a slash at its end.
    pub(super) fn base(&self, act: Act) -> Result<&str, Unable> {
        base(self.account, act)
    }

    /// A value of the account's that a request needs.
    pub(super) fn need<'v, T: ?Sized>(
        &self,
        act: Act,
        field: &'static str,
        value: Option<&'v T>,
    ) -> Result<&'v T, Unable> {
        need(self.account, act, field, value)
    }

    /// The number that a call shows.
    pub(super) fn shown<'v>(&'v self, dial: &Dial<'v>) -> Result<&'v str, Unable> {
        let caller = self.account.config().caller.as_deref();
        self.need(Act::Dial, "caller", dial.from.or(caller))
    }

    /// One of our pages for webhooks of a call that we began.
    pub(super) fn back(&self, page: super::Page, dial: &Dial<'_>) -> String {
        format!("{}?{}={}", self.account.url(page), super::DIAL_QUERY, dial.reference)
    }
}

pub(super) fn base(account: &Account, act: Act) -> Result<&str, Unable> {
    let url = account.config().api_url.as_deref().or(account.kind().usual_api());
    need(account, act, "api_url", url).map(|url| url.trim_end_matches('/'))
}

pub(super) fn need<'v, T: ?Sized>(
    account: &Account,
    act: Act,
    field: &'static str,
    value: Option<&'v T>,
) -> Result<&'v T, Unable> {
    value.ok_or_else(|| Unable::Lacks { account: account.name().to_owned(), field, act })
}

fn checked(call: &str) -> Result<&str, Unable> {
    if is_call_id(call) {
        Ok(call)
    } else {
        Err(Unable::Value { field: "call", allowed: "the provider's id of a call" })
    }
}

pub(super) fn basic(user: &str, password: &Secret) -> Secret {
    Secret::new(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose()))))
}

pub(super) fn bearer(token: &str) -> Secret {
    Secret::new(format!("Bearer {token}"))
}

impl Ask {
    pub(super) fn bare(act: Act, method: Method, url: String, authorization: Secret) -> Self {
        Self { act, method, url, authorization, content_type: None, body: String::new() }
    }

    pub(super) fn json(act: Act, method: Method, url: String, authorization: Secret, body: &Value) -> Self {
        let content_type = Some("application/json");
        Self { act, method, url, authorization, content_type, body: body.to_string() }
    }

    pub(super) fn form(act: Act, url: String, authorization: Secret, fields: &[(&str, &str)]) -> Self {
        let content_type = Some("application/x-www-form-urlencoded");
        Self { act, method: Method::POST, url, authorization, content_type, body: query(fields) }
    }
}

/// One more field of an object.
pub(super) fn add(object: &mut Value, name: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
}

/// Fields as a query or a form; those without a value are left out.
pub(super) fn query(fields: &[(&str, &str)]) -> String {
    let mut text = form_urlencoded::Serializer::new(String::new());
    text.extend_pairs(fields.iter().filter(|(_, value)| !value.is_empty()));
    text.finish()
}

impl Account {
    /// What an answer to one of this account's requests means. A call that is gone already is hung up well.
    ///
    /// # Errors
    /// The provider's refusal.
    pub fn done(&self, act: Act, status: u16, body: &[u8]) -> Result<Done, Failure> {
        let kind = self.kind();
        if kind == PhoneKind::Freeswitch {
            return freeswitch::done(self, act, status, body);
        }
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let at = |paths: &[&str]| paths.iter().find_map(|path| json.pointer(path).and_then(text));
        let code = at(&["/errors/0/code", "/code", "/error_code"]).map(|code| bounded(&code, 40));
        if (200..300).contains(&status) {
            if act != Act::Dial {
                return Ok(Done { call: None, gone: false });
            }
            let id = at(&["/data/call_control_id", "/sid", "/request_uuid", "/uuid", "/id"]);
            return match id.filter(|id| is_call_id(id)) {
                Some(id) => Ok(Done { call: Some(id), gone: false }),
                None => Err(self.failure(act, status, code, "its answer names no call")),
            };
        }
        let gone = match kind {
            PhoneKind::Twilio | PhoneKind::Signalwire => status == 404 || code.as_deref() == Some("21220"),
            PhoneKind::Telnyx => status == 404 || status == 422 && code.as_deref() == Some("90018"),
            _ => status == 404,
        };
        if gone && act == Act::HangUp {
            return Ok(Done { call: None, gone });
        }
        let words =
            ["/errors/0/detail", "/errors/0/title", "/message", "/detail", "/error", "/error_title", "/title", "/msg"];
        Err(self.failure(act, status, code, &at(&words).unwrap_or_default()))
    }

    pub(super) fn failure(&self, act: Act, status: u16, code: Option<String>, words: &str) -> Failure {
        let config = self.config();
        let secrets = [&config.auth_token, &config.signing_key, &config.api_key, &config.stream_password];
        let hide = |text: String| {
            secrets
                .iter()
                .filter_map(|secret| secret.as_ref())
                .fold(text, |text, secret| text.replace(secret.expose(), "(redacted)"))
        };
        let message = bounded(&hide(words.to_owned()), 200);
        let message = if message.is_empty() { message } else { format!(": {message}") };
        Failure { kind: self.kind(), act, status, code: code.map(hide), message }
    }
}
