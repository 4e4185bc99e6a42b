//! An account with a provider, and what can be asked of it: one arm per kind, the work in the kind's own file.
use std::{collections::BTreeMap, fmt, fs};

use axum::http::Uri;
use jsonwebtoken::EncodingKey;

use super::{
    asterisk,
    event::{Incoming, Said, Status},
    jambonz, plivo,
    proof::{Forged, StreamProof, Verified},
    rest::{Ask, Target, Unable},
    signalwire, telnyx, twilio, vonage,
    webhook::{Asked, Unclear},
};
use crate::config::{PhoneAccountConfig, PhoneByteOrder, PhoneCodec, PhoneConfig, PhoneKind, phone::ed25519};

/// What providers reach us as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Of `phone.public_url`, which the configuration has checked.
    pub fn new(url: &str) -> Self {
        Self(url.trim().trim_end_matches('/').to_owned())
    }

    /// The URL of a path and query.
    pub fn web(&self, target: &str) -> String {
        format!("{}{target}", self.0)
    }

    /// The same for WebSockets: `wss`, or `ws` where the base is plain.
    pub fn socket(&self, target: &str) -> String {
        match self.0.split_once("://") {
            Some(("https", rest)) => format!("wss://{rest}{target}"),
            Some((_, rest)) => format!("ws://{rest}{target}"),
            None => self.web(target),
        }
    }
}

/// Our pages that an account's provider asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Somebody calls.
    Voice,
    /// What has become of a call.
    Status,
    /// Where streams come to, by WebSocket.
    Stream,
    /// Markup that takes a call elsewhere ([`Account::transfer_page`]).
    Transfer,
}

impl Page {
    /// Its last part.
    pub fn name(self) -> &'static str {
        match self {
            Self::Voice => "voice",
            Self::Status => "status",
            Self::Stream => "stream",
            Self::Transfer => "transfer",
        }
    }
}

/// What the one-time token of a call may look like, so that it passes through the provider unharmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenForm {
    /// 16 to 64 letters and digits: Plivo's `extraHeaders` take nothing else, and everybody takes this.
    Alphanumeric,
    /// A UUID in its usual form: Asterisk's `AudioSocket()` takes nothing else.
    Uuid,
}

impl TokenForm {
    /// Whether a token has this form.
    pub fn fits(self, token: &str) -> bool {
        match self {
            Self::Alphanumeric => (16..=64).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric()),
            Self::Uuid => {
                let dash = |at| matches!(at, 8 | 13 | 18 | 23);
                token.len() == 36
                    && token.bytes().enumerate().all(|(at, b)| if dash(at) { b == b'-' } else { b.is_ascii_hexdigit() })
            }
        }
    }
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No agent has this number.
    Nobody,
    /// There is no room.
    Busy,
}

/// The answer to a webhook, with status 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// `Content-Type`
    pub content_type: &'static str,
    /// The text.
    pub body: String,
    /// A request to be made besides, where the answer itself commands nothing.
    pub then: Option<Ask>,
}

impl Written {
    pub(super) fn xml(body: String) -> Self {
        Self { content_type: "text/xml", body, then: None }
    }

    pub(super) fn json(body: &serde_json::Value) -> Self {
        Self { content_type: "application/json", body: body.to_string(), then: None }
    }

    pub(super) fn plain(body: &str) -> Self {
        Self { content_type: "text/plain; charset=utf-8", body: body.to_owned(), then: None }
    }

    pub(super) fn command(ask: Ask) -> Self {
        Self { then: Some(ask), ..Self::plain("") }
    }
}

/// What a stream is opened with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect<'a> {
    /// Where to.
    pub(super) stream: &'a str,
    /// Where its fate is told; "": nowhere.
    pub(super) status: &'a str,
    /// What it shows there.
    pub(super) token: &'a str,
}

/// An account with a provider.
#[derive(Clone)]
pub struct Account {
    name: String,
    kind: PhoneKind,
    config: PhoneAccountConfig,
    public: PublicUrl,
    /// Telnyx' key.
    ed25519: Option<[u8; 32]>,
    /// Vonage's application.
    rsa: Option<EncodingKey>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Account {
    /// All accounts of a configuration, by name; none without `phone.public_url`.
    ///
    /// # Errors
    /// Which setting, what was found, what is allowed.
    pub fn open_all(config: &PhoneConfig) -> Result<BTreeMap<String, Self>, String> {
        let Some(public) = config.public_url.as_deref().map(PublicUrl::new) else { return Ok(BTreeMap::new()) };
        let open = |(name, own): (&String, &PhoneAccountConfig)| Ok((name.clone(), Self::open(name, own, &public)?));
        config.accounts.iter().map(open).collect()
    }

    /// Reads what the account needs from its files.
    ///
    /// # Errors
    /// Which setting, what was found, what is allowed.
    pub fn open(name: &str, config: &PhoneAccountConfig, public: &PublicUrl) -> Result<Self, String> {
        let pem = match &config.private_key {
            Some(file) => Some(fs::read(file).map_err(|error| {
                format!("phone.accounts.{name}.private_key: cannot read `{}`: {error}", file.display())
            })?),
            None => None,
        };
        Self::new(name, config, public, pem.as_deref())
    }

    /// `pem`: what stands in the file `private_key`.
    ///
    /// # Errors
    /// Which setting, what was found, what is allowed.
    pub fn new(
        name: &str,
        config: &PhoneAccountConfig,
        public: &PublicUrl,
        pem: Option<&[u8]>,
    ) -> Result<Self, String> {
        let kind = config.kind(name).ok_or_else(|| {
            let names = PhoneKind::ALL.map(PhoneKind::name).join(", ");
            format!("phone.accounts.{name}.kind: found nothing; allowed: {names}")
        })?;
        let rsa = pem.map(EncodingKey::from_rsa_pem).transpose().map_err(|_| {
            format!(
                "phone.accounts.{name}.private_key: found something else; allowed: an RSA key in PEM, not encrypted"
            )
        })?;
        let ed25519 = config.public_key.as_deref().and_then(ed25519);
        Ok(Self { name: name.to_owned(), kind, config: config.clone(), public: public.clone(), ed25519, rsa })
    }

    /// Its name in the configuration and in URLs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose network it is.
    pub fn kind(&self) -> PhoneKind {
        self.kind
    }

    /// What streams are asked to carry: codec, and rate in Hz. Some providers send another one all the same.
    pub fn audio(&self) -> (PhoneCodec, u32) {
        self.config.audio(self.kind)
    }

    /// The order of the bytes of linear audio.
    pub fn byte_order(&self) -> PhoneByteOrder {
        self.config.byte_order
    }

    /// The number that calls from here show, unless a call says another one.
    pub fn caller(&self) -> Option<&str> {
        self.config.caller.as_deref()
    }

    /// Whether a call that we begin comes back to [`Page::Voice`] once it is answered. Otherwise the request for it says already
    /// where its stream goes.
    pub fn asks_back(&self) -> bool {
        matches!(self.kind, PhoneKind::Signalwire | PhoneKind::Plivo | PhoneKind::Jambonz)
    }

    /// Whether the request that begins a call is answered only when somebody has answered the call, or nobody will.
    pub fn rings_first(&self) -> bool {
        self.kind == PhoneKind::Freeswitch
    }

    /// What its tokens must look like.
    pub fn token_form(&self) -> TokenForm {
        if self.kind == PhoneKind::Asterisk { TokenForm::Uuid } else { TokenForm::Alphanumeric }
    }

    /// Path of one of its pages, such as `/phone/twilio/voice`.
    pub fn path(&self, page: Page) -> String {
        format!("/phone/{}/{}", self.name, page.name())
    }

    /// URL of one of its pages, as the provider is told.
    pub fn url(&self, page: Page) -> String {
        let path = self.path(page);
        if page == Page::Stream { self.public.socket(&path) } else { self.public.web(&path) }
    }

    pub(super) fn config(&self) -> &PhoneAccountConfig {
        &self.config
    }

    pub(super) fn public(&self) -> &PublicUrl {
        &self.public
    }

    pub(super) fn ed25519(&self) -> Option<&[u8; 32]> {
        self.ed25519.as_ref()
    }

    pub(super) fn rsa(&self) -> Option<&EncodingKey> {
        self.rsa.as_ref()
    }

    /// Whether a webhook comes from this account's provider, Unix seconds `now`. Ask [`super::Replays`] next.
    ///
    /// # Errors
    /// One text for everything; the reason is for the log.
    pub fn verify(&self, asked: &Asked<'_>, now: u64) -> Result<Verified, Forged> {
        if asked.target.parse::<Uri>().is_err() || !asked.target.starts_with('/') {
            return Err(Forged::new("its target is no path"));
        }
        match self.kind {
            PhoneKind::Twilio => twilio::verify(self, asked, now),
            PhoneKind::Signalwire => signalwire::verify(self, asked, now),
            PhoneKind::Telnyx => telnyx::verify(self, asked, now),
            PhoneKind::Plivo => plivo::verify(self, asked, now),
            PhoneKind::Vonage => vonage::verify(self, asked, now),
            PhoneKind::Jambonz => jambonz::verify(self, asked, now),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => asterisk::verify(self, asked),
        }
    }

    /// Whether the GET that asks for a stream comes from this account's provider.
    ///
    /// # Errors
    /// One text for everything; the reason is for the log.
    pub fn verify_stream(&self, asked: &Asked<'_>) -> Result<StreamProof, Forged> {
        match self.kind {
            PhoneKind::Twilio => twilio::verify_stream(self, asked),
            PhoneKind::Signalwire => signalwire::verify_stream(self, asked),
            PhoneKind::Jambonz => jambonz::verify_stream(self, asked),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => asterisk::verify(self, asked).map(|_| StreamProof::Proven),
            PhoneKind::Telnyx | PhoneKind::Plivo | PhoneKind::Vonage => Ok(StreamProof::TokenOnly),
        }
    }

    /// The token that the GET for a stream already shows, where the provider sends it there: Telnyx in a header, Asterisk and
    /// FreeSWITCH in the query, as their dialplan says. Others show it in their first message.
    pub fn stream_token(&self, asked: &Asked<'_>) -> Option<String> {
        match self.kind {
            PhoneKind::Telnyx => asked.header(telnyx::STREAM_TOKEN).map(str::to_owned),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => asked.query().get("token").map(str::to_owned),
            _ => None,
        }
        .filter(|token| self.token_form().fits(token))
    }

    /// What a genuine request at [`Page::Voice`] says.
    ///
    /// # Errors
    /// Which field is missing or wrong.
    pub fn incoming(&self, asked: &Asked<'_>) -> Result<Said, Unclear> {
        let mut said = match self.kind {
            PhoneKind::Twilio | PhoneKind::Signalwire => twilio::incoming(asked),
            PhoneKind::Telnyx => telnyx::incoming(asked),
            PhoneKind::Plivo => plivo::incoming(asked),
            PhoneKind::Vonage => vonage::incoming(asked),
            PhoneKind::Jambonz => jambonz::incoming(asked),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => asterisk::incoming(asked),
        }?;
        match &mut said {
            Said::Call(call) => call.dial = asked.dial(),
            Said::Status(status) => status.dial = asked.dial(),
        }
        Ok(said)
    }

    /// What a genuine request at [`Page::Status`] says.
    ///
    /// # Errors
    /// Which field is missing or wrong.
    pub fn status(&self, asked: &Asked<'_>) -> Result<Status, Unclear> {
        let status = match self.kind {
            PhoneKind::Twilio | PhoneKind::Signalwire => twilio::status(asked),
            PhoneKind::Telnyx => telnyx::status(asked),
            PhoneKind::Plivo => plivo::status(asked),
            PhoneKind::Vonage => vonage::status(asked),
            PhoneKind::Jambonz => jambonz::status(asked),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => asterisk::status(asked),
        }?;
        Ok(Status { dial: asked.dial(), ..status })
    }

    /// The answer that opens a stream with this token.
    ///
    /// # Errors
    /// When the token has not the form that [`Self::token_form`] says, or the account lacks what a command needs.
    pub fn connect(&self, call: &Incoming, token: &str) -> Result<Written, Unable> {
        if !self.token_form().fits(token) {
            return Err(Unable::Value { field: "token", allowed: "a token of the account's form" });
        }
        let (stream, status) = (self.url(Page::Stream), self.url(Page::Status));
        let with = Connect { stream: &stream, status: &status, token };
        Ok(match self.kind {
            PhoneKind::Twilio => Written::xml(twilio::connect(&with)),
            PhoneKind::Signalwire => Written::xml(signalwire::connect(self, &with)),
            PhoneKind::Telnyx if call.by_command => Written::command(telnyx::answer(self, &call.call, &with)?),
            PhoneKind::Telnyx => Written::xml(telnyx::connect(self, &with)),
            PhoneKind::Plivo => Written::xml(plivo::connect(self, &with)),
            PhoneKind::Vonage => Written::json(&vonage::connect(self, &with)),
            PhoneKind::Jambonz => Written::json(&jambonz::connect(self, &with)),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => Written::plain(token),
        })
    }

    /// The answer that turns a call away.
    ///
    /// # Errors
    /// When the account lacks what a command needs.
    pub fn refuse(&self, call: &Incoming, why: Refusal) -> Result<Written, Unable> {
        Ok(match self.kind {
            PhoneKind::Twilio | PhoneKind::Signalwire => Written::xml(twilio::refuse(why)),
            PhoneKind::Telnyx if call.by_command => Written::command(telnyx::reject(self, &call.call, why)?),
            PhoneKind::Telnyx => Written::xml(twilio::refuse(why)),
            PhoneKind::Plivo => Written::xml(plivo::refuse(why)),
            PhoneKind::Vonage => Written::json(&vonage::refuse()),
            PhoneKind::Jambonz => Written::json(&jambonz::refuse(why)),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => Written::plain(""),
        })
    }

    /// Markup that takes a call elsewhere, and ends it after that; nothing where markup cannot do so.
    pub fn transfer(&self, to: &Target) -> Option<Written> {
        let caller = self.config.caller.as_deref().unwrap_or_default();
        Some(match self.kind {
            PhoneKind::Twilio | PhoneKind::Signalwire | PhoneKind::Telnyx => Written::xml(twilio::transfer(to, caller)),
            PhoneKind::Plivo => Written::xml(plivo::transfer(to, caller)),
            PhoneKind::Vonage => Written::json(&vonage::transfer(to, caller)),
            PhoneKind::Jambonz => Written::json(&jambonz::transfer(to, caller)),
            PhoneKind::Asterisk | PhoneKind::Freeswitch => return None,
        })
    }

    /// What a genuine request at [`Page::Transfer`] is answered with: some providers do not take a transfer's markup with the
    /// request for it, but fetch it from there (`?to=...`, see [`super::rest::Rest::transfer`]).
    ///
    /// # Errors
    /// When no number stands there.
    pub fn transfer_page(&self, asked: &Asked<'_>) -> Result<Written, Unclear> {
        let query = asked.query();
        let to = Target::parse(query.get("to").unwrap_or_default()).map_err(|wrong| Unclear(wrong.to_string()))?;
        self.transfer(&to).ok_or_else(|| Unclear(format!("{} has no markup for transfers", self.kind.name())))
    }
}
