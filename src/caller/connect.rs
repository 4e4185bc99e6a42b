//! From an address to a call that is ready: TCP, TLS, upgrade, `ready`, each under a deadline.
use std::{future::Future, io, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

use super::{
    Options, UrlError,
    call::{Call, CallEnd},
    handshake::{Refusal, upgrade},
    options::Target,
    socket::Socket,
};

/// tungstenite's own read buffer is 128 KiB a socket; a frame of ours has a kilobyte.
const READ_BUFFER: usize = 8 * 1024;
/// Largest message that we take, bytes. The relay's audio messages are 20 ms, its texts a few kilobytes.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Most bytes that wait for a server that does not read.
const MAX_BACKLOG: usize = 4 * 1024 * 1024;

/// Why there is no call.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be called.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The token cannot stand in a header.
    #[error("the token is empty or holds characters that a header cannot carry")]
    Token,
    /// No TCP connection.
    #[error("cannot connect to {to}")]
    Tcp {
        /// Host and port.
        to: String,
        /// What the system said.
        source: io::Error,
    },
    /// TCP, but no TLS.
    #[error("no TLS with {to}")]
    Tls {
        /// Host and port.
        to: String,
        /// What the system or the TLS library said.
        source: io::Error,
    },
    /// The connection broke during the upgrade.
    #[error("the connection broke while the call was asked for")]
    Upgrade(#[source] io::Error),
    /// Something else answers at this address.
    #[error("this is not a voxrelay door: {0}")]
    NotWebSocket(&'static str),
    /// A plain no, before the upgrade.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// Upgraded, then ended before `ready`.
    #[error("the call ended before it was ready: {0}")]
    Ended(Box<CallEnd>),
    /// Upgraded, but the first message is not `ready`.
    #[error("the server's first message is not `ready` but {found}")]
    NotReady {
        /// The beginning of what came.
        found: String,
    },
    /// A deadline passed.
    #[error("{what} took longer than {} s", limit.as_secs_f32())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
}

/// Calls the relay at `url` (`ws://` or `wss://`; a missing path becomes `/v1/voice`) and waits until it is ready.
///
/// # Errors
/// Every way in which no call comes about, in words for people; nothing is retried.
pub async fn connect(url: &str, options: &Options) -> Result<Call, ConnectError> {
    let target = Target::new(url, options)?;
    let deadline = Instant::now() + options.connect_timeout;
    let limit = options.connect_timeout;
    let mut socket = within(deadline, limit, "connecting", open(&target, options)).await?;
    let asking = upgrade(&mut socket, &target, options.token.as_ref());
    let first_bytes = within(deadline, limit, "the upgrade to a WebSocket", asking).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_BACKLOG)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let ws = WebSocketStream::from_partially_read(socket, first_bytes, Role::Client, Some(config)).await;
    let limit = options.ready_timeout;
    within(Instant::now() + limit, limit, "waiting for `ready`", Call::ready_on(ws)).await
}

/// Whether [`connect`] could try `url` at all.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(url: &str) -> Result<(), UrlError> {
    Target::new(url, &Options::default()).map(drop)
}

async fn within<T>(
    deadline: Instant,
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout_at(deadline, work).await.unwrap_or(Err(ConnectError::Timeout { what, limit }))
}

async fn open(target: &Target, options: &Options) -> Result<Socket, ConnectError> {
    let to = || format!("{}:{}", target.host, target.port);
    let tcp = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|source| ConnectError::Tcp { to: to(), source })?;
    tcp.set_nodelay(true).map_err(|source| ConnectError::Tcp { to: to(), source })?;
    if !target.tls {
        return Ok(Socket::Plain(tcp));
    }
    Socket::tls(tcp, &target.host, &options.roots).await.map_err(|source| ConnectError::Tls { to: to(), source })
}
