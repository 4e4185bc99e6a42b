//! The upgrade request, its answer, and what a refusal said.
//!
//! Written by hand for two reasons: tungstenite's own client drops a refusal's body where it arrives in a second piece,
//! and it logs the whole request, `Authorization` included, at trace level. Works on any byte stream; sets no deadline.
use std::{io, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{ConnectError, options::Target};
use crate::client::wire::ErrorBody;

/// The subprotocol that we offer and insist on.
const SUBPROTOCOL: &str = "voxrelay.v1";
/// Longest head of an answer, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Longest body of a refusal that is read, bytes.
const MAX_BODY: usize = 64 * 1024;

/// The server said no before the upgrade.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What it said, where it spoke our language.
    pub error: Option<ErrorBody>,
    /// The body's beginning where it did not.
    pub body: String,
    /// The `Retry-After` header, seconds.
    pub retry_after_s: Option<u64>,
}

impl Refusal {
    /// How long the server asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let told = self.error.as_ref().and_then(|error| error.retry_after_ms).map(Duration::from_millis);
        told.or(self.retry_after_s.map(Duration::from_secs))
    }

    fn text(&self) -> String {
        let mut text = format!("the server refused the call: HTTP {}", self.status);
        match &self.error {
            Some(error) => {
                text.push_str(&format!(" {}: {}", error.code, error.message));
                if let Some(field) = &error.field {
                    text.push_str(&format!(" (field `{field}`)"));
                }
            }
            None if self.body.is_empty() => {}
            None if self.status == 404 && self.body.starts_with('<') => {
                text.push_str(" and a web page: is this a relay's address?")
            }
            None => text.push_str(&format!(": {}", self.body)),
        }
        if let Some(seconds) = self.retry_after_s {
            text.push_str(&format!("; try again in {seconds} s"));
        }
        text
    }
}

/// What is asked for: a path at a host, a subprotocol, and headers beside the usual ones.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    /// Where.
    pub(crate) target: &'a Target,
    /// The one subprotocol that is offered, and insisted on.
    pub(crate) subprotocol: Option<&'a str>,
    /// Further headers; printable ASCII, or the upgrade is not asked for.
    pub(crate) headers: &'a [(String, SecretString)],
}

/// Asks the relay for a call. Returns the bytes that came right behind the answer: the first messages.
pub(super) async fn upgrade<S>(
    stream: &mut S,
    target: &Target,
    token: Option<&SecretString>,
) -> Result<Vec<u8>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut headers = Vec::new();
    if let Some(token) = token {
        let token = token.expose_secret();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ConnectError::Token);
        }
        headers.push(("Authorization".to_owned(), format!("Bearer {token}").into()));
    }
    ask(stream, &Ask { target, subprotocol: Some(SUBPROTOCOL), headers: &headers }).await
}

/// Asks for a WebSocket. Returns the bytes that came right behind the answer.
pub(crate) async fn ask<S>(stream: &mut S, ask: &Ask<'_>) -> Result<Vec<u8>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = generate_key();
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n",
        ask.target.path_and_query, ask.target.authority,
    );
    if let Some(subprotocol) = ask.subprotocol {
        request.push_str(&format!("Sec-WebSocket-Protocol: {subprotocol}\r\n"));
    }
    request.push_str(&format!("User-Agent: voxrelay/{}\r\n", env!("CARGO_PKG_VERSION")));
    for (name, value) in ask.headers {
        let value = value.expose_secret();
        if !name.bytes().chain(value.bytes()).all(|b| (b' '..=b'~').contains(&b)) {
            return Err(ConnectError::Token);
        }
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(ConnectError::Upgrade)?;
    stream.flush().await.map_err(ConnectError::Upgrade)?;

    let (head, rest) = read_head(stream).await?;
    if head.status != 101 {
        return Err(ConnectError::Refused(Box::new(read_refusal(stream, &head, rest).await)));
    }
    head.check(&key, ask.subprotocol)?;
    Ok(rest)
}

/// Status and headers; names in lower case.
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let mut status_line = lines.next()?.split(' ');
        let version = status_line.next()?;
        let status = status_line.next()?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        version.starts_with("HTTP/1.").then_some(Self { status, headers })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// RFC 6455 section 4.1, and the subprotocol.
    fn check(&self, key: &str, subprotocol: Option<&str>) -> Result<(), ConnectError> {
        let is = |name, want: &str| {
            self.get(name).is_some_and(|v| v.split(',').any(|word| word.trim().eq_ignore_ascii_case(want)))
        };
        if !is("upgrade", "websocket") || !is("connection", "upgrade") {
            return Err(ConnectError::NotWebSocket("its 101 does not say `Upgrade: websocket`"));
        }
        if self.get("sec-websocket-accept") != Some(&derive_accept_key(key.as_bytes())) {
            return Err(ConnectError::NotWebSocket("its Sec-WebSocket-Accept does not fit our key"));
        }
        if self.get("sec-websocket-extensions").is_some() {
            return Err(ConnectError::NotWebSocket("it chose an extension that was not offered"));
        }
        match (self.get("sec-websocket-protocol"), subprotocol) {
            (chosen, offered) if chosen == offered => Ok(()),
            (_, Some(SUBPROTOCOL)) => Err(ConnectError::NotWebSocket("it did not choose the subprotocol voxrelay.v1")),
            (_, Some(_)) => Err(ConnectError::NotWebSocket("it did not choose the subprotocol that was offered")),
            (_, None) => Err(ConnectError::NotWebSocket("it chose a subprotocol, and none was offered")),
        }
    }
}

/// Reads up to the empty line; what came behind it is returned too.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Head, Vec<u8>), ConnectError> {
    let mut bytes = Vec::with_capacity(1024);
    let end = loop {
        if let Some(at) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > MAX_HEAD {
            return Err(ConnectError::NotWebSocket("its answer has no end within 16 KiB"));
        }
        if stream.read_buf(&mut bytes).await.map_err(ConnectError::Upgrade)? == 0 {
            return Err(ConnectError::Upgrade(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let rest = bytes.split_off(end + 4);
    let head = std::str::from_utf8(&bytes).ok().and_then(Head::parse);
    Ok((head.ok_or(ConnectError::NotWebSocket("its answer is not HTTP/1.1"))?, rest))
}

/// Reads the body as far as it comes. A connection that fails meanwhile costs the rest of the text, not the status.
async fn read_refusal<S: AsyncRead + Unpin>(stream: &mut S, head: &Head, mut body: Vec<u8>) -> Refusal {
    let length = head.get("content-length").and_then(|v| v.parse::<usize>().ok()).unwrap_or(MAX_BODY).min(MAX_BODY);
    while body.len() < length {
        match stream.read_buf(&mut body).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&body);
    // From the first brace to the last: a proxy may have wrapped the body in chunk lengths.
    let json = text.find('{').zip(text.rfind('}')).and_then(|(from, to)| text.get(from..=to));
    let error = json.and_then(|json| serde_json::from_str::<RefusalBody>(json).ok()).map(|body| body.error.into());
    let shown = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    let body = if error.is_some() { String::new() } else { shown };
    let retry_after_s = head.get("retry-after").and_then(|v| v.parse().ok());
    Refusal { status: head.status, error, body, retry_after_s }
}

#[derive(serde::Deserialize)]
struct RefusalBody {
    error: RefusalError,
}

/// An error as we write it, or as OpenAI does.
#[derive(serde::Deserialize)]
struct RefusalError {
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    message: String,
    #[serde(default)]
    retryable: bool,
    retry_after_ms: Option<u64>,
    #[serde(alias = "param")]
    field: Option<String>,
    #[serde(default)]
    request_id: String,
}

impl From<RefusalError> for ErrorBody {
    fn from(error: RefusalError) -> Self {
        let RefusalError { code, kind, message, retryable, retry_after_ms, field, request_id } = error;
        let code = code.or(kind).unwrap_or_else(|| "refused".to_owned());
        Self { code, message, retryable, retry_after_ms, field, request_id }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::caller::Options;

    /// Plays a server that answers `answer`, three bytes at a time, and hangs up; `{accept}` becomes the right value.
    async fn ask(answer: &str, token: Option<&str>) -> (Result<Vec<u8>, ConnectError>, String) {
        let (mut ours, theirs) = duplex(3);
        let target = Target::new("ws://relay.example:81/v1/voice", &Options::default()).unwrap();
        let token = token.map(SecretString::from);
        tokio::join!(
            async {
                let got = upgrade(&mut ours, &target, token.as_ref()).await;
                drop(ours);
                got
            },
            serve(theirs, answer),
        )
    }

    async fn serve(mut stream: DuplexStream, answer: &str) -> String {
        let mut request = Vec::new();
        while memchr::memmem::find(&request, b"\r\n\r\n").is_none() {
            if stream.read_buf(&mut request).await.unwrap() == 0 {
                return String::new();
            }
        }
        let request = String::from_utf8(request).unwrap();
        let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
        let _gone = stream.write_all(answer.replace("{accept}", &derive_accept_key(key.as_bytes())).as_bytes()).await;
        request
    }

    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
        sec-websocket-accept: {accept}\r\nsec-websocket-protocol: voxrelay.v1\r\n\r\nfirst bytes";

    #[tokio::test]
    async fn an_upgrade_keeps_the_bytes_behind_it() {
        let (got, request) = ask(GOOD, Some("sesame")).await;
        // The duplex pipe hands over three bytes at a time: one or two are behind the empty line.
        assert!(b"first bytes".starts_with(&got.unwrap()));
        for want in [
            "GET /v1/voice HTTP/1.1\r\n",
            "Host: relay.example:81\r\n",
            "Sec-WebSocket-Protocol: voxrelay.v1\r\n",
            "Authorization: Bearer sesame\r\n",
        ] {
            assert!(request.contains(want), "{want} in {request}");
        }
        assert!(!ask(GOOD, None).await.1.contains("Authorization"));
    }

    #[tokio::test]
    async fn a_refusal_in_pieces_is_read_whole() {
        let body = r#"{"error":{"code":"unknown_agent","message":"agent `x` is not known; known: default","retryable":false,"field":"agent","request_id":"r1"}}"#;
        let length = body.len();
        let answer = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {length}\r\n\r\n{body}more");
        let (Err(ConnectError::Refused(refusal)), _) = ask(&answer, None).await else { panic!("not refused") };
        assert_eq!(refusal.status, 404);
        assert_eq!(refusal.error.as_ref().unwrap().code, "unknown_agent");
        assert_eq!(
            refusal.to_string(),
            "the server refused the call: HTTP 404 unknown_agent: agent `x` is not known; known: default (field `agent`)"
        );
    }

    #[tokio::test]
    async fn other_servers_refusals_are_told_too() {
        let page = "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n<h1>\n  come   later\n</h1>";
        let chunked = "HTTP/1.1 429 No\r\ntransfer-encoding: chunked\r\n\r\n5a\r\n{\"error\":{\"code\":\"rate_limited\",\
            \"message\":\"too many\",\"retryable\":true,\"request_id\":\"r\"}}\r\n0\r\n\r\n";
        for (answer, want) in [
            (page, "the server refused the call: HTTP 503: <h1> come later </h1>; try again in 7 s"),
            (
                "HTTP/1.1 404 No\r\n\r\n<!DOCTYPE HTML><html>",
                "the server refused the call: HTTP 404 and a web page: is this a relay's address?",
            ),
            (chunked, "the server refused the call: HTTP 429 rate_limited: too many"),
            (
                "HTTP/1.1 401 No\r\n\r\n{\"error\":{\"message\":\"No key.\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}",
                "the server refused the call: HTTP 401 invalid_request_error: No key.",
            ),
            ("HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", "the server refused the call: HTTP 401"),
        ] {
            assert_eq!(ask(answer, None).await.0.unwrap_err().to_string(), want);
        }
    }

    #[tokio::test]
    async fn what_is_not_our_door_is_named() {
        let without = |part: &str| GOOD.replace(part, "");
        for (answer, want) in [
            (without("sec-websocket-protocol: voxrelay.v1\r\n"), "did not choose the subprotocol"),
            (GOOD.replace("voxrelay.v1", "realtime"), "did not choose the subprotocol"),
            (GOOD.replace("{accept}", "abc"), "does not fit our key"),
            (without("upgrade: WebSocket\r\n"), "does not say `Upgrade"),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), "not HTTP/1.1"),
            ("HTTP/1.1 101 half a he".to_owned(), "end of file"),
            ("x".repeat(20_000), "no end within 16 KiB"),
        ] {
            let error = ask(&answer, None).await.0.unwrap_err();
            let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            assert!(text.contains(want), "{want}: {text}");
        }
    }

    #[tokio::test]
    async fn a_token_that_would_break_the_header_is_never_sent() {
        for token in ["", "a b", "a\r\nX: y", "\u{e9}"] {
            let error = ask(GOOD, Some(token)).await.0.unwrap_err();
            assert!(matches!(error, ConnectError::Token), "{token:?}: {error}");
        }
    }
}
