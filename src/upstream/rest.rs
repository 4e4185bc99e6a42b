//! The service's REST side, as far as it opens calls: client secrets, SDP, and what is done to a call.
//!
//! Never follows a redirect (the key stays where it was sent to), forwards no cookie, and quotes nothing of what the service
//! says but plain codes and field names: its texts may show keys.
use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::{Body, RequestBuilder, Response, multipart};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{
    UpstreamError, azure,
    error::{plain_code, plain_field},
    limits::{Board, Source},
};
use crate::{
    admit::Principal,
    config::{Dialect, Endpoint, Secret, UpstreamConfig},
};

/// Answers are not longer, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// An SDP answer is not longer, bytes.
const LONGEST_SDP: usize = 64 << 10;
/// A secret's life is taken to end so much before the service says, seconds, and a twentieth of it.
const MARGIN: Duration = Duration::from_secs(3);
/// No secret lives longer (the service grants 7,200 s): what says so is wrong about the time.
const LONGEST_LIFE: u64 = 7_500;

/// One account's REST side.
#[derive(Debug, Clone)]
pub struct Rest {
    http: reqwest::Client,
    /// The base that all paths stand under.
    root: String,
    config: Arc<UpstreamConfig>,
    pub(super) board: Arc<Board>,
}

/// A client secret, fresh from the service.
#[derive(Debug, Clone)]
pub struct Minted {
    /// The secret.
    pub value: Secret,
    /// Good for so long from the moment of the request, by the service's own clock and less a margin.
    pub life: Duration,
    /// The service's answer; it holds the secret.
    pub answer: Answer,
}

/// A JSON answer that holds a secret: shown to nobody but the one it is for.
#[derive(Clone)]
pub struct Answer(pub Value);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer(..)")
    }
}

/// A call that the service has taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The service's id of it (`rtc_...`).
    pub call: String,
    /// Its SDP answer. Where that did not come, the call is there all the same: it must be hung up.
    pub sdp: Result<Bytes, Arc<UpstreamError>>,
}

/// What can be done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// End it.
    HangUp,
    /// Send it elsewhere.
    Refer,
    /// Take a call from the telephone network.
    Accept,
    /// Turn one away.
    Reject,
}

impl Act {
    /// Its name in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::HangUp => "hangup",
            Self::Refer => "refer",
            Self::Accept => "accept",
            Self::Reject => "reject",
        }
    }
}

impl std::str::FromStr for Act {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::HangUp, Self::Refer, Self::Accept, Self::Reject].into_iter().find(|act| act.name() == name).ok_or(())
    }
}

impl Rest {
    /// For one account, with the TLS that its sockets use.
    ///
    /// # Errors
    /// When the library cannot be set up.
    pub fn new(
        config: Arc<UpstreamConfig>,
        endpoint: &Endpoint,
        tls: ClientConfig,
        board: Arc<Board>,
    ) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .timeout(Duration::from_millis(config.session_timeout_ms))
            .user_agent(concat!("voxrelay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| e.to_string())?;
        let path = match config.dialect {
            Dialect::Azure => azure::rest_path(&endpoint.path),
            Dialect::Ga | Dialect::Beta => endpoint.path.clone(),
        };
        let scheme = if endpoint.tls { "https" } else { "http" };
        let host = if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let root = format!("{scheme}://{host}:{}{path}", endpoint.port);
        Ok(Self { http, root, config, board })
    }

    /// A request in the account's name, or with a credential of its own.
    pub(super) fn request(&self, path: &str, who: &Principal, credential: Option<&Secret>) -> RequestBuilder {
        self.request_by(Method::POST, path, who, credential)
    }

    /// The same by another method.
    pub(super) fn request_by(
        &self,
        method: Method,
        path: &str,
        who: &Principal,
        credential: Option<&Secret>,
    ) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.root));
        if let Some(credential) = credential.or(self.config.api_key.as_ref()) {
            let (name, value) = credential_header(self.config.dialect, credential.expose());
            if let Ok(mut value) = HeaderValue::try_from(value) {
                value.set_sensitive(true);
                request = request.header(name, value);
            }
        }
        let named = [
            ("openai-organization", self.config.organization.as_deref()),
            ("openai-project", self.config.project.as_deref()),
            ("openai-safety-identifier", who.safety_id()),
        ];
        named.into_iter().fold(request, |request, (name, value)| match value {
            Some(value) => request.header(name, value),
            None => request,
        })
    }

    /// Makes a client secret. `body` is the request's, as the service wants it.
    ///
    /// # Errors
    /// Why there is none, or none that could be used.
    pub async fn mint(&self, body: &Value, who: &Principal) -> Result<Minted, UpstreamError> {
        let asked = Instant::now();
        let response =
            self.send(self.request("/realtime/client_secrets", who, None).json(body), Source::Mint, who).await?;
        let server_now = date(response.headers()).unwrap_or_else(crate::wall::unix_now);
        let answer: Value = serde_json::from_slice(&read(response).await?).map_err(|_| strange("is not JSON"))?;
        let value = answer.get("value").and_then(Value::as_str).filter(|value| is_header(value));
        let expires_at = answer.get("expires_at").and_then(Value::as_u64);
        let (value, expires_at) = value.zip(expires_at).ok_or_else(|| strange("has no `value` or no `expires_at`"))?;
        let life = expires_at.saturating_sub(server_now);
        if life > LONGEST_LIFE {
            return Err(strange("ends later than any that the service makes"));
        }
        let life = Duration::from_secs(life);
        let left = life.checked_sub(MARGIN + life / 20 + asked.elapsed()).filter(|left| !left.is_zero());
        let life = left.ok_or_else(|| strange("has expired already"))?;
        Ok(Minted { value: Secret::new(value), life, answer: Answer(answer) })
    }

    /// Exchanges SDP, and so begins a call: in the account's name with a `session`, or with a client secret that has one.
    ///
    /// # Errors
    /// Why there is no call.
    pub async fn exchange(
        &self,
        offer: Bytes,
        session: Option<&Value>,
        secret: Option<&Secret>,
        who: &Principal,
    ) -> Result<Taken, UpstreamError> {
        let request = self.request("/realtime/calls", who, secret);
        let request = match session {
            None => request.header(header::CONTENT_TYPE, "application/sdp").body(offer),
            Some(session) => {
                let part = |body: Body, kind| multipart::Part::stream(body).mime_str(kind);
                let sdp = part(offer.into(), "application/sdp").map_err(|e| UpstreamError::Broken(e.to_string()))?;
                let session = part(session.to_string().into(), "application/json");
                let session = session.map_err(|e| UpstreamError::Broken(e.to_string()))?;
                request.multipart(multipart::Form::new().part("sdp", sdp).part("session", session))
            }
        };
        let response = self.send(request, Source::Call, who).await?;
        let place = response.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        let call = place.and_then(|place| place.rsplit('/').next()).filter(|id| is_call(id)).map(str::to_owned);
        let call = call.ok_or_else(|| strange("names no call in `Location`"))?;
        let sdp = match read(response).await {
            Ok(sdp) if sdp.len() <= LONGEST_SDP => Ok(sdp),
            Ok(_) => Err(Arc::new(strange("is too long"))),
            Err(error) => Err(Arc::new(error)),
        };
        Ok(Taken { call, sdp })
    }

    /// Does something to a call.
    ///
    /// # Errors
    /// Why it was not done.
    pub async fn act(&self, call: &str, act: Act, body: Option<Bytes>, who: &Principal) -> Result<(), UpstreamError> {
        let request = self.request(&format!("/realtime/calls/{call}/{}", act.name()), who, None);
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(body),
            None => request.header(header::CONTENT_LENGTH, "0"),
        };
        self.send(request, Source::Call, who).await.map(drop)
    }

    /// Sends a request; what the answer says of limits is noted.
    async fn send(&self, request: RequestBuilder, source: Source, who: &Principal) -> Result<Response, UpstreamError> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(self.unsent(&error)),
        };
        self.board.headers(response.headers());
        if response.status().is_success() {
            return Ok(response);
        }
        let error = refusal(response).await;
        self.board.refused(source, who.tenant_id(), &error);
        Err(error)
    }

    pub(super) fn unsent(&self, error: &reqwest::Error) -> UpstreamError {
        if error.is_timeout() {
            let after = Duration::from_millis(self.config.session_timeout_ms);
            return UpstreamError::Timeout { stage: "answer a request", after };
        }
        // The library's text has the URL in it, and its causes say more.
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        UpstreamError::Broken(cause.to_string())
    }
}

/// The header that carries a credential.
pub(super) fn credential_header(dialect: Dialect, credential: &str) -> (&'static str, String) {
    match dialect {
        Dialect::Azure if !credential.starts_with("ek_") => azure::credential(credential),
        _ => ("authorization", format!("Bearer {credential}")),
    }
}

fn strange(what: &str) -> UpstreamError {
    UpstreamError::Broken(format!("the service's answer {what}"))
}

fn is_header(value: &str) -> bool {
    !value.is_empty() && value.len() <= 4_096 && value.bytes().all(|b| b.is_ascii_graphic())
}

/// Whether this could be the service's id of a call; it becomes part of URLs.
pub fn is_call(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// The service's clock, Unix seconds.
fn date(headers: &HeaderMap) -> Option<u64> {
    let date = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    date.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// All of an answer, up to a bound.
pub(super) async fn read(response: Response) -> Result<Bytes, UpstreamError> {
    read_up_to(response, MAX_ANSWER).await
}

/// The same with a bound of its own, bytes.
pub(super) async fn read_up_to(response: Response, most: usize) -> Result<Bytes, UpstreamError> {
    let mut stream = response.bytes_stream();
    let mut body = Vec::new();
    while let Some(piece) = stream.next().await {
        body.extend_from_slice(&piece.map_err(|_| strange("breaks off"))?);
        if body.len() > most {
            return Err(strange("is too long"));
        }
    }
    Ok(body.into())
}

/// A refusal, with the code of its body and the wait that it names.
pub(super) async fn refusal(response: Response) -> UpstreamError {
    let status = StatusCode::from_u16(response.status().as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    let retry_after = retry_after(response.headers());
    let body = time::timeout(Duration::from_secs(2), read(response)).await;
    let body = body.ok().and_then(Result::ok).and_then(|body| serde_json::from_slice::<Value>(&body).ok());
    let text = |field: &str| body.as_ref()?.pointer(field)?.as_str().filter(|text| !text.is_empty());
    let code = text("/error/code").or_else(|| text("/error/type")).map(plain_code);
    UpstreamError::Http { status, code, retry_after, param: text("/error/param").and_then(plain_field) }
}

/// The wait that an answer asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| (0.0..1e9).contains(n));
    if let Some(ms) = text("retry-after-ms").and_then(number) {
        return Some(Duration::from_secs_f64(ms / 1_000.0));
    }
    let after = text("retry-after")?;
    if let Some(seconds) = number(after) {
        return Some(Duration::from_secs_f64(seconds));
    }
    let at = httpdate::parse_http_date(after).ok()?;
    let now =
        date(headers).map_or_else(std::time::SystemTime::now, |unix| std::time::UNIX_EPOCH + Duration::from_secs(unix));
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_however_they_are_written() {
        let of = |pairs: &[(&'static str, &str)]| {
            retry_after(
                &pairs
                    .iter()
                    .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
                    .collect(),
            )
        };
        for (headers, want) in [
            (&[("retry-after", "2")][..], Some(2_000)),
            (&[("retry-after", "0.5")], Some(500)),
            (&[("retry-after-ms", "166"), ("retry-after", "2")], Some(166)),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), ("date", "Sun, 06 Nov 1994 08:49:30 GMT")],
                Some(7_000),
            ),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), ("date", "Sun, 06 Nov 1994 08:50:00 GMT")], Some(0)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "1e300")], None),
            (&[], None),
        ] {
            assert_eq!(of(headers).map(|wait| wait.as_millis()), want, "{headers:?}");
        }
    }

    #[test]
    fn a_call_is_named_by_what_can_stand_in_a_url() {
        for (id, good) in
            [("rtc_abc-9", true), ("", false), ("../x", false), ("a?b", false), ("ä", false), (&"x".repeat(129), false)]
        {
            assert_eq!(is_call(id), good, "{id}");
        }
    }
}
