//! From the number that is called to the stream: the voice webhook is asked, its answer read, and the stream's address known.
//!
//! A provider knows the relay by its public address, and signs that; from here it may be reached elsewhere.
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    dial::Address,
    markup::{self, MarkupError},
    setup::{Provider, Setup, SetupError},
    webhook::{self, WebhookError},
};
use crate::caller::tls_config;

/// What is known of the relay, and of the account there.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The voice webhook; none: it is not asked.
    pub voice_url: Option<String>,
    /// The stream, where no webhook names it: `ws://` or `wss://`. Dialplans have it beside the webhook's.
    pub stream_url: Option<String>,
    /// The AudioSocket, `host:port`.
    pub tcp: Option<String>,
    /// How the world knows the relay.
    pub public_url: Option<String>,
    /// Signs the webhook and Twilio's stream ([`webhook::request`]).
    pub auth_token: Option<SecretString>,
    /// Shown at the webhook and the stream by Asterisk and FreeSWITCH; at the stream by SignalWire and jambonz, whose markup says it.
    pub stream_password: Option<SecretString>,
    /// Further headers of the upgrade.
    pub headers: Vec<(String, SecretString)>,
    /// Authorities that are trusted besides the public ones.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The webhook.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Its answer.
    #[error(transparent)]
    Markup(#[from] MarkupError),
    /// What the answer asks for.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The authorities.
    #[error(transparent)]
    Tls(#[from] std::io::Error),
    /// Nothing names one.
    #[error("nothing says where the stream of {} goes", .0.name())]
    Nowhere(Provider),
}

/// A stream that can be opened.
#[derive(Debug)]
pub struct Reached {
    /// Where it goes.
    pub address: Address,
    /// What the provider does otherwise than the markup's author may think.
    pub notes: Vec<String>,
}

impl Reach {
    /// Asks the webhook, if there is one, and tells `setup` what it said.
    ///
    /// # Errors
    /// When the webhook says no, or nothing that the provider could use.
    pub async fn reach(&self, setup: &mut Setup, unix_s: u64) -> Result<Reached, ReachError> {
        let Some(voice) = &self.voice_url else { return self.address(setup, None, Vec::new()) };
        let key = if shows_password(setup.provider) { &self.stream_password } else { &self.auth_token };
        let signed = known_as(voice, self.public_url.as_deref());
        let request = webhook::request(setup, &signed, key.as_ref(), unix_s)?;
        let answer = webhook::ask(voice, request, tls_config(&self.roots)?).await?;
        let stream = markup::read(setup.provider, &answer)?;
        if let Some(media) = stream.media {
            setup.reply = media;
            // Telnyx' markup tells what we shall send, not what the caller's leg has.
            if setup.provider != Provider::Telnyx {
                setup.media = media;
            }
            setup.check()?;
        }
        if setup.provider == Provider::AudioSocket {
            setup.ids.stream = stream.parameters.into_iter().map(|(_, token)| token).next().unwrap_or_default();
        } else {
            setup.parameters.splice(0..0, stream.parameters);
        }
        let named = Some(stream.url).filter(|url| !url.is_empty());
        let reached = self.address(setup, named, stream.headers)?;
        Ok(Reached { notes: stream.notes, ..reached })
    }

    /// How the webhook is asked: what shows it who asks.
    pub fn shows(&self, provider: Provider) -> &'static str {
        match (shows_password(provider), self.stream_password.is_some(), self.auth_token.is_some()) {
            (true, true, _) => "with its password",
            (true, false, _) => "without a password",
            (false, _, true) => "signed",
            (false, _, false) => "unsigned",
        }
    }

    /// Where the stream goes: as the webhook says, or the dialplan.
    fn address(
        &self,
        setup: &mut Setup,
        named: Option<String>,
        mut headers: Vec<(String, SecretString)>,
    ) -> Result<Reached, ReachError> {
        if setup.provider == Provider::AudioSocket {
            let to = self.tcp.clone().ok_or(ReachError::Nowhere(setup.provider))?;
            return Ok(Reached { address: Address::Tcp(to), notes: Vec::new() });
        }
        let mut url = named
            .or_else(|| self.stream_url.clone())
            .or_else(|| beside(self.voice_url.as_deref()?))
            .ok_or(ReachError::Nowhere(setup.provider))?;
        if shows_password(setup.provider) {
            // A dialplan adds the token to the query, and a module tells of it nowhere else.
            if let Some(at) = setup.parameters.iter().position(|(name, _)| name == "token") {
                let (_, token) = setup.parameters.remove(at);
                url = format!("{url}{}token={token}", if url.contains('?') { '&' } else { '?' });
            }
        }
        let has_authority = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        if let Some(password) = self.stream_password.as_ref().filter(|_| !has_authority) {
            let shown = match setup.provider {
                Provider::SignalWire => Some(format!("Bearer {}", password.expose_secret()).into()),
                Provider::Jambonz => Some(webhook::basic("voxrelay", password)),
                provider => shows_password(provider).then(|| webhook::basic("relay", password)),
            };
            headers.extend(shown.map(|shown| ("Authorization".to_owned(), shown)));
        }
        if let Some(key) = self.auth_token.as_ref().filter(|_| setup.provider == Provider::Twilio) {
            let known = if self.voice_url.is_none() { known_as(&url, self.public_url.as_deref()) } else { url.clone() };
            let signature = webhook::twilio_signature(key.expose_secret(), &known, &[]);
            headers.push(("X-Twilio-Signature".to_owned(), signature.into()));
        }
        headers.extend(self.headers.iter().cloned());
        let subprotocol = setup.provider.subprotocol().map(str::to_owned);
        let url = reached_at(&url, self.public_url.as_deref(), self.voice_url.as_deref());
        let address = Address::WebSocket { url, subprotocol, headers, roots: self.roots.clone() };
        Ok(Reached { address, notes: Vec::new() })
    }
}

/// Those that sign nothing, but show a password.
fn shows_password(provider: Provider) -> bool {
    matches!(provider, Provider::AudioFork | Provider::ChanWebSocket | Provider::AudioSocket)
}

/// The stream beside a voice webhook, `/phone/NAME/stream`: what a dialplan of ours says.
fn beside(voice: &str) -> Option<String> {
    let (scheme, host, path) = split(voice)?;
    let path = path.split('?').next()?.strip_suffix("/voice")?;
    Some(format!("{}://{host}{path}/stream", scheme_like("ws", scheme)))
}

/// Scheme, host and port, and the rest of an address.
pub fn split(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at_checked(at)?;
    (!host.is_empty()).then_some((scheme, host, path))
}

/// `https` becomes `wss`, and so on, where `like` is a socket's address.
fn scheme_like(like: &str, scheme: &str) -> &'static str {
    match (like.starts_with("ws"), scheme.ends_with('s')) {
        (true, true) => "wss",
        (true, false) => "ws",
        (false, true) => "https",
        (false, false) => "http",
    }
}

/// `url` as the world knows it.
fn known_as(url: &str, public: Option<&str>) -> String {
    match (split(url), public.and_then(split)) {
        (Some((like, _, path)), Some((scheme, host, _))) => format!("{}://{host}{path}", scheme_like(like, scheme)),
        _ => url.to_owned(),
    }
}

/// Where a stream is reached from here: what is said to be at the public address is where the webhook is.
fn reached_at(url: &str, public: Option<&str>, voice: Option<&str>) -> String {
    match (split(url), public.and_then(split), voice.and_then(split)) {
        (Some((like, named, path)), Some((_, host, _)), Some((scheme, here, _))) if named == host => {
            format!("{}://{here}{path}", scheme_like(like, scheme))
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_in_public_and_reached_here() {
        let (public, voice) = (Some("https://relay.example.com"), Some("http://127.0.0.1:8080/phone/main/voice"));
        assert_eq!(known_as(voice.unwrap(), public), "https://relay.example.com/phone/main/voice");
        assert_eq!(known_as("ws://127.0.0.1:8080/s", public), "wss://relay.example.com/s");
        assert_eq!(known_as(voice.unwrap(), None), voice.unwrap());
        let stream = "wss://relay.example.com/phone/main/stream";
        assert_eq!(reached_at(stream, public, voice), "ws://127.0.0.1:8080/phone/main/stream");
        assert_eq!(reached_at("wss://other.example/s", public, voice), "wss://other.example/s");
        assert_eq!(reached_at(stream, None, voice), stream);
        assert_eq!(beside(voice.unwrap()).as_deref(), Some("ws://127.0.0.1:8080/phone/main/stream"));
        assert_eq!(beside("https://h/elsewhere"), None);
    }

    #[test]
    fn a_webhook_is_asked_with_what_its_provider_has() {
        let reach = |auth_token: bool, stream_password: bool| Reach {
            auth_token: auth_token.then(|| "t".into()),
            stream_password: stream_password.then(|| "p".into()),
            ..Reach::default()
        };
        for (provider, token, password, want) in [
            (Provider::Twilio, true, false, "signed"),
            (Provider::Jambonz, false, true, "unsigned"),
            (Provider::SignalWire, true, true, "signed"),
            (Provider::ChanWebSocket, false, true, "with its password"),
            (Provider::AudioSocket, true, false, "without a password"),
            (Provider::AudioFork, true, true, "with its password"),
        ] {
            assert_eq!(reach(token, password).shows(provider), want, "{provider:?} {token} {password}");
        }
    }

    #[tokio::test]
    async fn each_shows_what_its_account_has() {
        let reach = Reach {
            stream_url: Some("ws://h/stream".to_owned()),
            stream_password: Some("pw".into()),
            auth_token: Some("12345".into()),
            public_url: Some("https://relay.example.com".to_owned()),
            ..Reach::default()
        };
        for (provider, url, header, value) in [
            (Provider::ChanWebSocket, "ws://h/stream?token=t1", "Authorization", "Basic cmVsYXk6cHc="),
            (Provider::AudioFork, "ws://h/stream?token=t1", "Authorization", "Basic cmVsYXk6cHc="),
            (Provider::Jambonz, "ws://h/stream", "Authorization", "Basic dm94cmVsYXk6cHc="),
            (Provider::SignalWire, "ws://h/stream", "Authorization", "Bearer pw"),
            (Provider::Twilio, "ws://h/stream", "X-Twilio-Signature", ""),
        ] {
            let mut setup = Setup::new(provider, 1);
            setup.parameters.push(("token".to_owned(), "t1".to_owned()));
            let Address::WebSocket { url: found, headers, .. } = reach.reach(&mut setup, 0).await.unwrap().address
            else {
                panic!("{provider:?}");
            };
            assert_eq!((found.as_str(), headers.len()), (url, 1), "{provider:?}");
            assert!(headers[0].0 == header && headers[0].1.expose_secret().contains(value), "{provider:?}");
        }
        let nowhere = reach.reach(&mut Setup::new(Provider::AudioSocket, 1), 0).await.unwrap_err();
        assert_eq!(nowhere.to_string(), "nothing says where the stream of audiosocket goes");
    }
}
