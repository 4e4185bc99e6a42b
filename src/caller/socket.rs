//! The byte stream under a call: plain TCP or TLS over it.
//!
//! One type, so that a [`super::Call`] is one type too. Knows nothing of WebSockets.
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName},
    },
};

/// Plain or wrapped.
#[derive(Debug)]
pub(crate) enum Socket {
    Plain(TcpStream),
    /// Boxed: the session's state is over a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Wraps `tcp`. Trusts Mozilla's roots (compiled in: no files are needed) and `roots`.
    pub(super) async fn tls(tcp: TcpStream, host: &str, roots: &[CertificateDer<'static>]) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let tls = TlsConnector::from(Arc::new(tls_config(roots)?)).connect(name, tcp).await?;
        Ok(Self::Tls(Box::new(tls)))
    }
}

/// What a client of a relay trusts: Mozilla's roots and `roots`.
pub(crate) fn tls_config(roots: &[CertificateDer<'static>]) -> io::Result<ClientConfig> {
    let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for root in roots {
        store.add(root.clone()).map_err(io::Error::other)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::{net::TcpListener, task::JoinSet};
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{ServerConfig, pki_types::PrivateKeyDer},
    };
    use tokio_tungstenite::{
        accept_hdr_async,
        tungstenite::{
            Message,
            handshake::server::{Request, Response},
            http::HeaderValue,
        },
    };

    use super::*;
    use crate::caller::{ConnectError, Event, Options, connect, testbed::READY};

    fn authority() -> CertificateDer<'static> {
        CertificateDer::from_slice(include_bytes!("testdata/authority.der"))
    }

    /// A TLS server for one caller; says whether it got as far as a call.
    async fn serve(listener: TcpListener) -> bool {
        let (tcp, _) = listener.accept().await.unwrap();
        let certificate = CertificateDer::from_slice(include_bytes!("testdata/server.der"));
        let key = PrivateKeyDer::try_from(include_bytes!("testdata/server.key.der").as_slice()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let Ok(tls) = TlsAcceptor::from(Arc::new(config)).accept(tcp).await else { return false };
        #[expect(clippy::result_large_err, reason = "the library's own type")]
        let ws = accept_hdr_async(tls, |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("voxrelay.v1"));
            Ok(response)
        });
        let mut ws = ws.await.unwrap();
        ws.send(Message::Text(READY.into())).await.unwrap();
        assert_eq!(ws.next().await.unwrap().unwrap(), Message::Text(r#"{"type":"close"}"#.into()));
        ws.close(None).await.unwrap();
        while let Some(Ok(_)) = ws.next().await {}
        true
    }

    #[tokio::test]
    async fn a_private_authority_is_trusted_when_named_and_only_then() {
        for (roots, trusted) in [(vec![authority()], true), (vec![], false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("wss://{}", listener.local_addr().unwrap());
            let mut server = JoinSet::new();
            server.spawn(serve(listener));
            match connect(&url, &Options { roots, ..Options::default() }).await {
                Ok(mut call) => {
                    call.close().unwrap();
                    assert!(matches!(call.next().await, Some(Event::Ended(end)) if end.code == 1005));
                }
                Err(ConnectError::Tls { source, .. }) => {
                    assert!(source.to_string().contains("UnknownIssuer"), "{source}")
                }
                Err(other) => panic!("{other}"),
            }
            assert_eq!(server.join_next().await.unwrap().unwrap(), trusted);
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_named_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("wss://{}", listener.local_addr().unwrap());
        let (error, ()) = tokio::join!(async { connect(&url, &Options::default()).await.unwrap_err() }, async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    }

    #[tokio::test]
    async fn nobody_there_is_named_with_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(&format!("ws://{address}"), &Options::default()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot connect to {address}"));
    }
}
