//! From an address to a call that is ready: TCP, TLS, upgrade, `ready`, each under a deadline.
use std::{future::Future, io, time::Duration};

use rustls::pki_types::CertificateDer;
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
    call::{Call, CallEnd, Ready},
    frames::{Received, Ws, poll_ws},
    handshake::{Refusal, upgrade},
    options::Target,
    socket::Socket,
};
use crate::client::wire::ServerMsg;

/// tungstenite's own read buffer is 128 KiB a socket; a frame of ours has a kilobyte.
const READ_BUFFER: usize = 8 * 1024;
/// Largest message that we take, bytes. The relay's audio messages are 20 ms, its texts a few kilobytes.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Most bytes that wait for a server that does not read, in the socket's own buffer; the call keeps more.
pub(super) const MAX_BACKLOG: usize = 4 * 1024 * 1024;

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
    /// Upgraded, but the first message is another one.
    #[error("the server's first message is not `{wanted}` but {found}")]
    NotReady {
        /// `ready`, or `resumed` after a drop.
        wanted: &'static str,
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
    let (ws, first) = dial(Target::new(url, options)?, options.clone(), "ready").await?;
    match first {
        ServerMsg::Ready { call, resume, agent, audio, limits } => {
            let ready = Ready { call, resume, agent, audio, limits };
            Ok(Call::new(ws, ready, url.to_owned(), options.clone()))
        }
        _ => Err(ConnectError::NotReady { wanted: "ready", found: "`resumed`, which was not asked for".into() }),
    }
}

/// One connection, up to its first message: `ready` or `resumed`. `wanted` says in errors which.
pub(super) async fn dial(
    target: Target,
    options: Options,
    wanted: &'static str,
) -> Result<(Box<Ws>, ServerMsg), ConnectError> {
    let limit = options.connect_timeout;
    let deadline = Instant::now() + limit;
    let mut socket = within(deadline, limit, "connecting", open(&target, &options.roots)).await?;
    let asking = upgrade(&mut socket, &target, options.token.as_ref());
    let first_bytes = within(deadline, limit, "the upgrade to a WebSocket", asking).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_BACKLOG)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let ws = WebSocketStream::from_partially_read(socket, first_bytes, Role::Client, Some(config)).await;
    let mut ws = Box::new(ws);
    let limit = options.ready_timeout;
    let first = within(Instant::now() + limit, limit, "waiting for `ready`", first_message(&mut ws, wanted)).await?;
    Ok((ws, first))
}

/// Reads up to `ready` or `resumed`.
async fn first_message(ws: &mut Ws, wanted: &'static str) -> Result<ServerMsg, ConnectError> {
    let mut last_error = None;
    loop {
        let found = match std::future::poll_fn(|cx| poll_ws(ws, cx)).await {
            Received::Text(text) => match serde_json::from_str(&text) {
                Ok(first @ (ServerMsg::Ready { .. } | ServerMsg::Resumed { .. })) => return Ok(first),
                Ok(ServerMsg::Error { error }) => {
                    last_error = Some(error);
                    continue;
                }
                _ => text.chars().take(200).collect(),
            },
            Received::Binary(data) => format!("{} bytes of audio", data.len()),
            Received::Control => continue,
            Received::End(code, reason) => {
                return Err(ConnectError::Ended(Box::new(CallEnd::new(code, reason, last_error))));
            }
            Received::Unreadable(reason) => {
                return Err(ConnectError::Ended(Box::new(CallEnd::new(1006, reason, last_error))));
            }
        };
        return Err(ConnectError::NotReady { wanted, found });
    }
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

/// TCP, and TLS where the address asks for it; `roots` are trusted besides the public ones.
pub(crate) async fn open(target: &Target, roots: &[CertificateDer<'static>]) -> Result<Socket, ConnectError> {
    let to = || format!("{}:{}", target.host, target.port);
    let tcp = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|source| ConnectError::Tcp { to: to(), source })?;
    tcp.set_nodelay(true).map_err(|source| ConnectError::Tcp { to: to(), source })?;
    if !target.tls {
        return Ok(Socket::Plain(tcp));
    }
    Socket::tls(tcp, &target.host, roots).await.map_err(|source| ConnectError::Tls { to: to(), source })
}
