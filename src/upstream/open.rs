//! Opens one session: TCP, TLS, the upgrade, and the wait for `session.created`.
//!
//! The service answers 101 to everybody; bad keys, unknown models and empty accounts come after it as an `error` event and
//! a close. So a session counts as up at `session.created`, and everything before is one operation with one deadline.
use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use axum::http::{HeaderValue, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::{
    handshake::{client::generate_key, derive_accept_key},
    protocol::Role,
};

use super::{Event, ServiceError, Shape, Wanted, azure, beta, ga};
use crate::{
    config::{Dialect, Endpoint, UpstreamConfig},
    net::{
        io::Io,
        ws::{Frame, Socket, SocketError, SocketLimits},
    },
};

/// Read buffer of an upstream socket, bytes; grows with the event that is read.
const READ_BUFFER: usize = 1 << 10;
/// How much of a refusal's body is read, bytes.
const MAX_REFUSAL: usize = 16 << 10;
/// First pause between tries; doubles, and half of it is chance.
const RETRY_PAUSE: Duration = Duration::from_millis(150);
/// No wait between tries is longer; a longer one that the service names is told to the caller instead.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(3);

/// An upstream that can be dialled: checked, with its credential.
#[derive(Clone)]
pub struct Upstream {
    config: Arc<UpstreamConfig>,
    endpoint: Endpoint,
    tls: TlsConnector,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A session that is up.
#[derive(Debug)]
pub struct Session {
    /// Its socket.
    pub socket: Socket,
    /// How its messages are written.
    pub shape: Shape,
    /// Its id at the service.
    pub id: String,
    /// When the service will end it, Unix seconds.
    pub expires_at: Option<u64>,
    /// Its first message, `session.created`, in the GA shape.
    pub created: Bytes,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("cannot reach the service at {host}:{port}: {source}")]
    Unreachable {
        /// Where.
        host: String,
        /// Where.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("the service did not {stage} within {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        stage: &'static str,
        /// How long.
        after: Duration,
    },
    /// The upgrade was refused with an HTTP status.
    #[error("the service refused the connection with HTTP {status}{}", code.as_deref().map(|c| format!(" ({c})")).unwrap_or_default())]
    Http {
        /// The status.
        status: StatusCode,
        /// The code in the body, if there is one.
        code: Option<String>,
        /// The wait that it asks for.
        retry_after: Option<Duration>,
    },
    /// The session was refused after the upgrade, or ended by the service.
    #[error("the service refused the session: {}", explain(code, *close))]
    Refused {
        /// The `error.code`, or its type.
        code: String,
        /// The close code that followed.
        close: Option<u16>,
    },
    /// The connection ended, or was no WebSocket.
    #[error("the connection to the service broke: {0}")]
    Broken(String),
}

/// A service's code in words.
fn explain(code: &str, close: Option<u16>) -> String {
    let words = match code {
        "invalid_api_key" => "it does not know the API key",
        "insufficient_quota" | "credit_balance_exhausted" | "billing_hard_limit_reached" => "the account has no credit",
        "model_not_found" | "invalid_model" | "missing_model" => "it does not know the model",
        "beta_api_shape_disabled" => "it no longer speaks the beta protocol",
        "session_expired" => "the session reached its longest time",
        "rate_limit_exceeded" => "the rate limit is reached",
        // What a missing key gets: an error without a code of its own.
        _ if close == Some(3000) => "it wants an API key, or another one",
        _ => "",
    };
    let close = close.map(|c| format!(", close code {c}")).unwrap_or_default();
    match (words, code) {
        ("", "") => format!("no reason given{close}"),
        ("", code) => format!("{code}{close}"),
        (words, code) => format!("{words} ({code}{close})"),
    }
}

/// What a failure means for the call, in the words of the client protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// `error.code`
    pub code: &'static str,
    /// Close code, if the call ends by it.
    pub close: u16,
    /// Another try may help: at once from here, later from the client.
    pub transient: bool,
    /// The wait that the service named.
    pub retry_after: Option<Duration>,
}

impl UpstreamError {
    /// By code *and* reason: 1013 alone may mean "restarting" or "no money" (realtime-protocol section 6).
    pub fn verdict(&self) -> Verdict {
        let of = |code, close, transient| Verdict { code, close, transient, retry_after: None };
        match self {
            Self::Unreachable { .. } => of("upstream_unavailable", 4503, true),
            Self::Timeout { .. } => of("upstream_timeout", 4504, true),
            Self::Broken(_) => of("upstream_unavailable", 4502, true),
            Self::Http { status, code, retry_after } => {
                let known = code.as_deref().and_then(by_code);
                let verdict = known.unwrap_or_else(|| match status.as_u16() {
                    401 | 403 => of("upstream_auth", 4502, false),
                    429 => of("rate_limited", 4429, true),
                    408 | 500..=599 => of("upstream_unavailable", 4503, true),
                    _ => of("upstream_refused", 4502, false),
                });
                Verdict { retry_after: *retry_after, ..verdict }
            }
            Self::Refused { code, close } => by_code(code).unwrap_or_else(|| match close {
                Some(3000) => of("upstream_auth", 4502, false),
                Some(1001 | 1011 | 1012 | 1013) => of("upstream_unavailable", 4502, true),
                _ => of("upstream_refused", 4502, false),
            }),
        }
    }

    /// From a close frame alone; its reason may be `type.code`, or words.
    pub fn closed(close: Option<u16>, reason: &str) -> Self {
        let code = reason.rsplit('.').next().unwrap_or_default();
        let words = code.is_empty() || code.contains(' ');
        let code = match close {
            Some(1001) if reason.contains("maximum duration") => "session_expired",
            _ if words => "",
            _ => code,
        };
        Self::Refused { code: plain_code(code), close }
    }

    /// From an `error` event, and the close code behind it.
    pub fn refused(error: &ServiceError, close: Option<u16>) -> Self {
        let code = [&error.code, &error.kind].into_iter().find(|c| !c.is_empty()).cloned().unwrap_or_default();
        Self::Refused { code: plain_code(&code), close }
    }
}

fn by_code(code: &str) -> Option<Verdict> {
    let (code, close, transient) = match code {
        "invalid_api_key" | "invalid_authentication" | "insufficient_permissions" => ("upstream_auth", 4502, false),
        "insufficient_quota"
        | "credit_balance_exhausted"
        | "billing_hard_limit_reached"
        | "account_deactivated"
        | "model_not_found"
        | "invalid_model"
        | "missing_model"
        | "beta_api_shape_disabled" => ("upstream_refused", 4502, false),
        "rate_limit_exceeded" => ("rate_limited", 4429, true),
        "session_expired" | "server_error" => ("upstream_unavailable", 4502, true),
        _ => return None,
    };
    Some(Verdict { code, close, transient, retry_after: None })
}

/// Codes are short words; anything else may hold what must not be shown.
pub fn plain_code(code: &str) -> String {
    let plain =
        code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b));
    if plain { code.to_owned() } else { "unknown".to_owned() }
}

impl Upstream {
    /// Checks the address and prepares TLS.
    ///
    /// # Errors
    /// What is allowed instead of the configured URL.
    pub fn new(config: Arc<UpstreamConfig>) -> Result<Self, String> {
        let url = config.url.as_deref().unwrap_or("https://api.openai.com/v1");
        let endpoint = Endpoint::parse(url, config.plaintext)?;
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config, endpoint, tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// The section that this was made from.
    pub fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// Opens a session, trying again where that may help.
    ///
    /// # Errors
    /// The last try's.
    pub async fn open(&self, wanted: &Wanted) -> Result<Session, UpstreamError> {
        let mut tried = 0;
        loop {
            let error = match self.open_once(wanted).await {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            tried += 1;
            let verdict = error.verdict();
            let own = RETRY_PAUSE * 2u32.pow(tried.min(8) - 1);
            let pause = own.mul_f64(rand::rng().random_range(0.5..1.0)).max(verdict.retry_after.unwrap_or_default());
            // A caller has waited long enough when the time for a session is over (fault matrix U7).
            let hung = matches!(error, UpstreamError::Timeout { .. });
            if hung || !verdict.transient || tried >= self.config.attempts || pause > RETRY_WAIT_MAX {
                return Err(error);
            }
            tracing::info!(%error, tried, "upstream session failed, trying again");
            time::sleep(pause).await;
        }
    }

    async fn open_once(&self, wanted: &Wanted) -> Result<Session, UpstreamError> {
        let connect = Duration::from_millis(self.config.connect_timeout_ms);
        let whole = Duration::from_millis(self.config.session_timeout_ms);
        let end = Instant::now() + whole;
        let stream = within(Instant::now() + connect, connect, "accept a connection", self.connect()).await?;
        let socket = within(end, whole, "answer the handshake", self.upgrade(stream, wanted)).await?;
        within(end, whole, "say session.created", self.created(socket)).await
    }

    async fn connect(&self) -> Result<MaybeTls, UpstreamError> {
        let Endpoint { tls, host, port, .. } = &self.endpoint;
        let unreachable = |source| UpstreamError::Unreachable { host: host.clone(), port: *port, source };
        let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        if !tls {
            return Ok(MaybeTls::Plain(tcp));
        }
        let name = ServerName::try_from(host.clone()).map_err(|e| unreachable(io::Error::other(e)))?;
        self.tls.connect(name, tcp).await.map(|tls| MaybeTls::Tls(Box::new(tls))).map_err(unreachable)
    }

    async fn upgrade(&self, stream: MaybeTls, wanted: &Wanted) -> Result<Socket, UpstreamError> {
        let key = generate_key();
        let request = self.request(&key, wanted).map_err(|e| UpstreamError::Broken(e.to_string()))?;
        let limits = SocketLimits { max_message: self.config.max_message_bytes, read_buffer: READ_BUFFER };
        let (io, read_already) = match stream {
            MaybeTls::Plain(tcp) => {
                let (tcp, read): (TcpStream, _) = exchange(tcp, request, &key).await?;
                (Io::plain(tcp), read)
            }
            MaybeTls::Tls(tls) => {
                let (tls, read): (TlsStream<TcpStream>, _) = exchange(*tls, request, &key).await?;
                let (tcp, session) = tls.into_inner();
                (Io::tls(tcp, session), read)
            }
        };
        Ok(Socket::new(io, Role::Client, limits, read_already.to_vec()))
    }

    fn request(&self, key: &str, wanted: &Wanted) -> Result<Request<Empty<Bytes>>, axum::http::Error> {
        let Endpoint { tls, host, port, .. } = &self.endpoint;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let host = if *port == if *tls { 443 } else { 80 } { host } else { format!("{host}:{port}") };
        let mut request = Request::get(self.session_path(wanted))
            .header(header::HOST, host)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .header(header::USER_AGENT, concat!("voxrelay/", env!("CARGO_PKG_VERSION")));
        if let Some(credential) = &self.config.api_key {
            let (name, value) = match self.config.dialect {
                Dialect::Azure => azure::credential(credential.expose()),
                Dialect::Ga | Dialect::Beta => ("authorization", format!("Bearer {}", credential.expose())),
            };
            let mut value = HeaderValue::try_from(value)?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        if self.config.dialect == Dialect::Beta {
            let (name, value) = beta::HEADER;
            request = request.header(name, value);
        }
        for (name, value) in
            [("openai-organization", &self.config.organization), ("openai-project", &self.config.project)]
        {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.body(Empty::new())
    }

    fn session_path(&self, wanted: &Wanted) -> String {
        let base = &self.endpoint.path;
        match self.config.dialect {
            // A client secret already names the model, and some servers refuse to hear it twice.
            Dialect::Ga => {
                let bound = self.config.api_key.as_ref().is_some_and(|key| key.expose().starts_with("ek_"));
                ga::session_path(base, wanted, bound)
            }
            Dialect::Beta => beta::session_path(base, wanted),
            Dialect::Azure => azure::session_path(base, self.config.api_version.as_deref(), wanted),
        }
    }

    /// The first event that is no error makes the session; an error is followed by a close with its code.
    async fn created(&self, mut socket: Socket) -> Result<Session, UpstreamError> {
        let mut refusal: Option<ServiceError> = None;
        let mut shape = Shape::of(&self.config);
        loop {
            let frame = match next(&mut socket).await {
                Ok(frame) => frame,
                Err(error) => {
                    return Err(match refusal {
                        Some(refusal) => UpstreamError::refused(&refusal, None),
                        None => UpstreamError::Broken(error.to_string()),
                    });
                }
            };
            match frame {
                Frame::Text(text) => {
                    let mut up = None;
                    shape.incoming(text, |text| match ga::decode(&text) {
                        Event::SessionCreated { id, expires_at, .. } => up = Some((id, expires_at, text)),
                        Event::Error(error) => refusal = Some(error),
                        _ => {}
                    });
                    if let Some((id, expires_at, created)) = up {
                        return Ok(Session { socket, shape, id, expires_at, created });
                    }
                }
                Frame::Closed { code, reason } => {
                    return Err(match refusal {
                        Some(refusal) => UpstreamError::refused(&refusal, code),
                        None => UpstreamError::closed(code, &reason),
                    });
                }
                Frame::Binary(_) | Frame::Pong => {}
            }
        }
    }
}

enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

async fn within<T>(
    end: Instant,
    after: Duration,
    stage: &'static str,
    work: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    time::timeout_at(end, work).await.unwrap_or(Err(UpstreamError::Timeout { stage, after }))
}

/// The next frame of a socket that nobody else uses yet.
async fn next(socket: &mut Socket) -> Result<Frame, SocketError> {
    loop {
        if let Some(frame) = socket.read()? {
            return Ok(frame);
        }
        socket.flush()?; // pongs
        std::future::poll_fn(|cx| socket.poll_readable(cx)).await.map_err(SocketError::Lost)?;
    }
}

/// Sends the handshake and takes the stream back; a refusal's body is read for its code.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>, key: &str) -> Result<(S, Bytes), UpstreamError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e: hyper::Error| UpstreamError::Broken(e.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection = pin!(connection.with_upgrades());
    let mut talk = pin!(async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|a| a.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(UpstreamError::Broken("its handshake answer is not the one for our key".to_owned()));
        }
        hyper::upgrade::on(response).await.map_err(broken)
    });
    let mut running = true;
    let upgraded = loop {
        tokio::select! {
            done = talk.as_mut() => break done?,
            _ = connection.as_mut(), if running => running = false,
        }
    };
    let parts =
        upgraded.downcast::<TokioIo<S>>().map_err(|_| UpstreamError::Broken("not our own stream".to_owned()))?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

async fn refusal(response: axum::http::Response<hyper::body::Incoming>) -> UpstreamError {
    let (head, body) = response.into_parts();
    let retry_after = head
        .headers
        .get(header::RETRY_AFTER)
        .and_then(|v| v.to_str().ok()?.trim().parse::<f64>().ok())
        .filter(|s| (0.0..1e9).contains(s))
        .map(Duration::from_secs_f64);
    let body =
        Limited::new(body, MAX_REFUSAL).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let code = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|v| v.pointer("/error/code")?.as_str().map(plain_code));
    UpstreamError::Http { status: head.status, code, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_code_and_reason() {
        let event = |code: &str, kind: &str, close| {
            let error = ServiceError { code: code.into(), kind: kind.into(), ..ServiceError::default() };
            UpstreamError::refused(&error, close)
        };
        for (error, code, close, transient) in [
            (event("invalid_api_key", "invalid_request_error", Some(3000)), "upstream_auth", 4502, false),
            (event("", "invalid_request_error", Some(3000)), "upstream_auth", 4502, false),
            (event("model_not_found", "invalid_request_error", Some(4004)), "upstream_refused", 4502, false),
            (event("insufficient_quota", "insufficient_quota", Some(1013)), "upstream_refused", 4502, false),
            (
                UpstreamError::closed(Some(1013), "insufficient_quota.insufficient_quota"),
                "upstream_refused",
                4502,
                false,
            ),
            (UpstreamError::closed(Some(1013), ""), "upstream_unavailable", 4502, true),
            (UpstreamError::closed(Some(3000), "invalid_request_error.invalid_api_key"), "upstream_auth", 4502, false),
            (
                UpstreamError::closed(Some(1001), "Your session hit the maximum duration of 60 minutes."),
                "upstream_unavailable",
                4502,
                true,
            ),
            (event("rate_limit_exceeded", "", Some(1013)), "rate_limited", 4429, true),
            (
                UpstreamError::Http { status: StatusCode::UNAUTHORIZED, code: None, retry_after: None },
                "upstream_auth",
                4502,
                false,
            ),
            (
                UpstreamError::Http {
                    status: StatusCode::TOO_MANY_REQUESTS,
                    code: Some("insufficient_quota".into()),
                    retry_after: None,
                },
                "upstream_refused",
                4502,
                false,
            ),
            (
                UpstreamError::Http { status: StatusCode::BAD_GATEWAY, code: None, retry_after: None },
                "upstream_unavailable",
                4503,
                true,
            ),
            (
                UpstreamError::Http { status: StatusCode::NOT_FOUND, code: None, retry_after: None },
                "upstream_refused",
                4502,
                false,
            ),
            (UpstreamError::Broken("x".into()), "upstream_unavailable", 4502, true),
        ] {
            let verdict = error.verdict();
            assert_eq!((verdict.code, verdict.close, verdict.transient), (code, close, transient), "{error}");
        }
    }

    #[test]
    fn foreign_text_never_gets_into_an_error() {
        let error = ServiceError { code: "Incorrect API key provided: sk-abc***xyz".into(), ..ServiceError::default() };
        assert!(!UpstreamError::refused(&error, None).to_string().contains("sk-abc"));
        assert!(!UpstreamError::closed(Some(4000), "key sk-abc is bad").to_string().contains("sk-abc"));
    }
}
