//! The accept loop, and the upgrade from HTTP to a WebSocket.
//!
//! `axum::serve` keeps silent and half-header sockets open past 75 s (measured); this loop gives a peer ten seconds to
//! say what it wants. What is served stands in the [`Router`] that is handed in.
use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
};
use hyper::{server::conn::http1, upgrade::OnUpgrade};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::tungstenite::{handshake::derive_accept_key, protocol::Role};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    io::Io,
    ws::{Socket, SocketLimits},
};

/// How long a peer may take for its request head (fault matrix M1).
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: descriptors are used up, and spinning gives none back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the request of somebody who speaks no TLS is taken in.
const DRAIN: Duration = Duration::from_secs(1);
/// Memory of one connection while it speaks HTTP, bytes. hyper's least is 8 KiB.
const HTTP_BUFFER: usize = 16 << 10;

/// Where a request came from; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// When to stop.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// No more are accepted.
    pub accepting: CancellationToken,
    /// Those that speak HTTP end.
    pub serving: CancellationToken,
}

/// Accepts until it is to stop, each connection in a task of `tracker`. A connection that still speaks HTTP ends when it is told; an
/// upgraded one belongs to whoever upgraded it. At most `max_connections` speak HTTP at once, more wait in the backlog.
/// `tls`: they must speak TLS.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    max_connections: usize,
    tracker: &TaskTracker,
    stops: Stops,
) {
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(max_connections));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let Some((tcp, peer)) = stops.accepting.run_until_cancelled(accept(&listener)).await else { return };
        let (tls, router, stop) = (tls.clone(), router.clone(), stops.serving.clone());
        tracker.spawn(async move {
            match tls {
                None => serve_connection(tcp, peer, router, stop).await,
                Some(tls) => {
                    let secured = stop.run_until_cancelled(time::timeout(HEADER_TIMEOUT, secure(tcp, peer, tls))).await;
                    if let Some(Ok(Some(stream))) = secured {
                        serve_connection(stream, peer, router, stop).await;
                    }
                }
            }
            drop(permit);
        });
    }
}

/// The next connection.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                // Audio frames are small and late ones are worthless: never wait for more to send.
                let _ = tcp.set_nodelay(true);
                return (tcp, peer);
            }
            // A peer that left before we came is none of our trouble; everything else is worth a pause.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// TLS before everything else. Whoever speaks plain HTTP is told so; `None`: there is nothing to serve.
async fn secure(mut tcp: TcpStream, peer: SocketAddr, tls: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    const WORDS: &str = "this port speaks TLS: use https:// or wss://\n";
    let mut first = [0];
    tcp.peek(&mut first).await.ok()?;
    if first.iter().all(u8::is_ascii_alphabetic) {
        tracing::info!(%peer, "plain HTTP on a port that speaks TLS");
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{WORDS}",
            WORDS.len()
        );
        // It may have left already. Its request is read to its end, since unread bytes cause a reset that can destroy the answer.
        let _ = tcp.write_all(answer.as_bytes()).await;
        let _ = tcp.shutdown().await;
        let mut rest = [0; 1_024];
        let drained = async { while tcp.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
        let _ = time::timeout(DRAIN, drained).await;
        return None;
    }
    tls.accept(tcp).await.inspect_err(|error| tracing::debug!(%peer, %error, "no TLS with a client")).ok()
}

async fn serve_connection<S>(stream: S, peer: SocketAddr, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service =
        TowerToHyperService::new(router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            request.map(Body::new)
        }));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HTTP_BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}

/// Why a request is no WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// An ordinary request.
    #[error("this address speaks WebSocket: send `Connection: Upgrade` and `Upgrade: websocket`")]
    NotAsked,
    /// Another version than 13.
    #[error("Sec-WebSocket-Version must be 13")]
    Version,
    /// No usable key.
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
    /// HTTP that cannot be upgraded.
    #[error("this connection cannot be upgraded")]
    Impossible,
}

/// A handshake that was found good, and not yet answered.
#[derive(Debug)]
pub struct Upgrade {
    accept: String,
    on_upgrade: OnUpgrade,
    protocols: Vec<String>,
}

impl Upgrade {
    /// Looks at a request's head (RFC 6455 section 4.2.1).
    ///
    /// # Errors
    /// When it is no handshake; [`UpgradeError::NotAsked`] for an ordinary request.
    pub fn from_request(request: &mut Request) -> Result<Self, UpgradeError> {
        let headers = request.headers();
        if request.method() != Method::GET
            || !has_token(headers, &header::CONNECTION, "upgrade")
            || !has_token(headers, &header::UPGRADE, "websocket")
        {
            return Err(UpgradeError::NotAsked);
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
            return Err(UpgradeError::Version);
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or(UpgradeError::Key)?;
        if key.len() != 24 {
            return Err(UpgradeError::Key);
        }
        let accept = derive_accept_key(key.as_bytes());
        let protocols = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect();
        let on_upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or(UpgradeError::Impossible)?;
        Ok(Self { accept, on_upgrade, protocols })
    }

    /// The subprotocols that were offered, in their order.
    pub fn protocols(&self) -> &[String] {
        &self.protocols
    }

    /// The answer 101, choosing `protocol` if it was offered, and the socket to wait for once it is sent. A list must be answered
    /// from, and nothing else of it is ever echoed: it may hold a key.
    pub fn accept(self, protocol: &'static str) -> (Response<Body>, Pending) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if self.protocols.iter().any(|offered| offered == protocol) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        (response, Pending(self.on_upgrade))
    }
}

/// A socket whose 101 is on its way.
#[derive(Debug)]
pub struct Pending(OnUpgrade);

impl Pending {
    /// Waits for the upgrade.
    ///
    /// # Errors
    /// When the connection broke under it.
    pub async fn socket(self, limits: SocketLimits) -> io::Result<Socket> {
        let upgraded = self.0.await.map_err(io::Error::other)?;
        let (io, read_already) = match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => (Io::plain(parts.io.into_inner()), parts.read_buf),
            Err(upgraded) => {
                let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>().map_err(|_| foreign())?;
                let (tcp, session) = parts.io.into_inner().into_inner();
                (Io::accepted(tcp, session), parts.read_buf)
            }
        };
        Ok(Socket::new(io, Role::Server, limits, read_already.to_vec()))
    }

    /// Waits for the upgrade of a connection without TLS; the bare TCP stream and the bytes that came right behind the handshake.
    ///
    /// # Errors
    /// When the connection broke under it.
    pub async fn stream(self) -> io::Result<(TcpStream, Vec<u8>)> {
        let upgraded = self.0.await.map_err(io::Error::other)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| foreign())?;
        Ok((parts.io.into_inner(), parts.read_buf.to_vec()))
    }
}

fn foreign() -> io::Error {
    io::Error::other("upgraded something that is not our own stream")
}

fn tokens<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|t| !t.is_empty())
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|t| t.eq_ignore_ascii_case(wanted))
}
