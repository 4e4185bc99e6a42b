//! What a caller asks for, and the address that it makes of that.
//!
//! Pure. The credential travels in a header and never becomes a part of the address.
use std::time::Duration;

use secrecy::SecretString;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::audio::Codec;

/// Who finds the end of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turns {
    /// The service listens for silence.
    Auto,
    /// The client says `commit`.
    Manual,
}

impl Turns {
    /// The value on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
        }
    }
}

/// How fast reply audio is sent to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At playing speed, a little ahead.
    Realtime,
    /// As it comes.
    Fast,
}

impl Pace {
    /// The value on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Fast => "fast",
        }
    }
}

/// What to ask the server for. `None`: its default.
#[derive(Debug, Clone)]
pub struct Options {
    /// Codec of the audio that we send.
    pub format: Option<Codec>,
    /// Its rate, Hz.
    pub rate: Option<u32>,
    /// Codec of the audio that we want.
    pub out_format: Option<Codec>,
    /// Its rate, Hz.
    pub out_rate: Option<u32>,
    /// Who ends a turn.
    pub turns: Option<Turns>,
    /// How fast replies come.
    pub pace: Option<Pace>,
    /// The configured agent to talk to.
    pub agent: Option<String>,
    /// Tenant key or call token; sent as `Authorization: Bearer`.
    pub token: Option<SecretString>,
    /// Certificates of authorities to trust besides the public ones, for `wss://` to a private server.
    pub roots: Vec<CertificateDer<'static>>,
    /// Longest time for TCP, TLS and the upgrade together.
    pub connect_timeout: Duration,
    /// Longest wait for `ready` after the upgrade.
    pub ready_timeout: Duration,
    /// Come back by yourself when the connection drops, where the server keeps the call for that.
    pub resume: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: None,
            rate: None,
            out_format: None,
            out_rate: None,
            turns: None,
            pace: None,
            agent: None,
            token: None,
            roots: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(10),
            resume: true,
        }
    }
}

impl Options {
    /// The query fields that are asked for, in the order of the protocol page.
    fn query(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("agent", self.agent.clone()),
            ("format", self.format.map(|c| c.name().to_owned())),
            ("rate", self.rate.map(|r| r.to_string())),
            ("out_format", self.out_format.map(|c| c.name().to_owned())),
            ("out_rate", self.out_rate.map(|r| r.to_string())),
            ("turns", self.turns.map(|t| t.name().to_owned())),
            ("pace", self.pace.map(|p| p.name().to_owned())),
        ];
        pairs.into_iter().filter_map(|(name, value)| value.map(|v| (name, v))).collect()
    }
}

/// Why an address cannot be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` is not a relay's address: {why}; a good one looks like ws://127.0.0.1:8080/v1/voice")]
pub struct UrlError {
    /// What was given, without its query (it may hold a token).
    pub url: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The path of an address that has none.
const DOOR: &str = "/v1/voice";

/// Where to connect and what to ask for there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(super) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// The `Host` header: as it stands in the address.
    pub(super) authority: String,
    pub(super) path_and_query: String,
}

impl Target {
    /// `url` is `ws://` or `wss://`; a missing path becomes `/v1/voice`. Fields of `options` replace those of the same
    /// name in the address; others in the address stay.
    pub(super) fn new(url: &str, options: &Options) -> Result<Self, UrlError> {
        Self::asking(url, DOOR, &options.query())
    }

    /// Another door than the thin one: the address as it stands.
    pub(crate) fn elsewhere(url: &str) -> Result<Self, UrlError> {
        Self::asking(url, "/", &[])
    }

    /// The same address to come back to, with `got` messages received. What was agreed belongs to the call and is not asked
    /// for again.
    pub(super) fn resuming(url: &str, token: &str, got: u64) -> Result<Self, UrlError> {
        Self::asking(url, DOOR, &[("resume", token.to_owned()), ("got", got.to_string())])
    }

    /// `door` is the path where the address has none.
    fn asking(url: &str, door: &str, asked: &[(&'static str, String)]) -> Result<Self, UrlError> {
        let wrong = |why| UrlError { url: url.split('?').next().unwrap_or_default().to_owned(), why };
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            Some(_) => return Err(wrong("its scheme is neither ws nor wss")),
            None => return Err(wrong("it does not begin with ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it holds a user name; credentials go into the token"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        // The library calls a port that is no number no port at all.
        let port = match authority.as_str().strip_prefix(authority.host()).unwrap_or_default() {
            "" if tls => 443,
            "" => 80,
            port => port.trim_start_matches(':').parse().map_err(|_| wrong("its port is not a number up to 65535"))?,
        };
        let path = if uri.path() == "/" { door } else { uri.path() };
        let kept = uri.query().unwrap_or_default().split('&').filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            !pair.is_empty() && !asked.iter().any(|(ours, _)| *ours == name)
        });
        let query: Vec<String> = kept
            .map(str::to_owned)
            .chain(asked.iter().map(|(name, value)| format!("{name}={}", percent_encode(value))))
            .collect();
        let path_and_query = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        Ok(Self { tls, host, port, authority: authority.as_str().to_owned(), path_and_query })
    }
}

/// Everything but RFC 3986's unreserved characters becomes `%XX`.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_completed() {
        let all = Options {
            format: Some(Codec::Mulaw),
            rate: Some(8_000),
            out_format: Some(Codec::Pcm16),
            out_rate: Some(16_000),
            turns: Some(Turns::Manual),
            pace: Some(Pace::Fast),
            agent: Some("caf\u{e9} 1&2".into()),
            ..Options::default()
        };
        let none = Options::default();
        for (url, options, tls, host, port, path) in [
            ("ws://127.0.0.1:8080/v1/voice", &none, false, "127.0.0.1", 8080, "/v1/voice"),
            ("ws://127.0.0.1:8080", &none, false, "127.0.0.1", 8080, "/v1/voice"),
            ("wss://relay.example/", &none, true, "relay.example", 443, "/v1/voice"),
            ("ws://[::1]/door", &none, false, "::1", 80, "/door"),
            ("ws://h?rate=1&x=y&rate=2", &none, false, "h", 80, "/v1/voice?rate=1&x=y&rate=2"),
            (
                "ws://h/v1/voice?rate=1&x=y",
                &all,
                false,
                "h",
                80,
                "/v1/voice?x=y&agent=caf%C3%A9%201%262&format=mulaw&rate=8000&out_format=pcm16&out_rate=16000&turns=manual&pace=fast",
            ),
        ] {
            let got = Target::new(url, options).unwrap();
            assert_eq!(
                (got.tls, got.host.as_str(), got.port, got.path_and_query.as_str()),
                (tls, host, port, path),
                "{url}"
            );
        }
    }

    #[test]
    fn a_resume_asks_for_nothing_else() {
        for (url, path) in [
            ("ws://h", "/v1/voice?resume=a%2Fb&got=7"),
            ("ws://h/v1/voice?x=y&resume=old&got=1", "/v1/voice?x=y&resume=a%2Fb&got=7"),
        ] {
            assert_eq!(Target::resuming(url, "a/b", 7).unwrap().path_and_query, path);
        }
    }

    #[test]
    fn bad_addresses_say_what_is_wrong() {
        for (url, why) in [
            ("http://h/v1/voice", "scheme is neither"),
            ("127.0.0.1:8080", "not begin with ws://"),
            ("h", "not begin with ws://"),
            ("ws://", "not a URL"),
            ("ws://h:99999/", "port is not a number"),
            ("ws://user:secret@h/", "user name"),
            ("", "not a URL"),
        ] {
            let error = Target::new(url, &Options::default()).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn a_token_in_a_bad_address_is_not_repeated() {
        let error = Target::new("http://h/v1/voice?token=sesame", &Options::default()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sesame"));
    }
}
