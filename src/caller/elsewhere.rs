//! A WebSocket at another door than the thin one, for those who speak another protocol: telephone providers, recordings.
use rustls::pki_types::CertificateDer;
use secrecy::SecretString;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{
    ConnectError,
    connect::open,
    handshake::{Ask, ask},
    options::Target,
    socket::Socket as Stream,
};
use crate::net::{
    io::Io,
    ws::{Socket, SocketLimits},
};

/// Where, and with what.
#[derive(Debug)]
pub(crate) struct Knock<'a> {
    /// `ws://` or `wss://`.
    pub(crate) url: &'a str,
    /// Offered, and insisted on.
    pub(crate) subprotocol: Option<&'a str>,
    /// Further headers; printable ASCII, or nothing is asked for.
    pub(crate) headers: &'a [(String, SecretString)],
    /// Authorities that are trusted besides the public ones.
    pub(crate) roots: &'a [CertificateDer<'static>],
}

/// Opens it. Sets no deadline.
///
/// # Errors
/// Every way in which there is none.
pub(crate) async fn websocket(knock: &Knock<'_>, limits: SocketLimits) -> Result<Socket, ConnectError> {
    let target = Target::elsewhere(knock.url)?;
    let mut stream = open(&target, knock.roots).await?;
    let asked = Ask { target: &target, subprotocol: knock.subprotocol, headers: knock.headers };
    let first = ask(&mut stream, &asked).await?;
    let io = match stream {
        Stream::Plain(tcp) => Io::plain(tcp),
        Stream::Tls(tls) => {
            let (tcp, session) = tls.into_inner();
            Io::tls(tcp, session)
        }
    };
    Ok(Socket::new(io, Role::Client, limits, first))
}
