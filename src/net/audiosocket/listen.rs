//! Who connects as an AudioSocket: nobody is a call before the connection has said its UUID and its first audio.
//!
//! Asterisk says both at once. Whose the UUID is, and whether it is one, is for whoever is handed the socket.
use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};
use tokio_util::task::TaskTracker;

use super::{AUDIO, HEADER, ID, header};
use crate::net::{
    io::Io,
    listen::{Stops, accept},
    ws::{Socket, SocketLimits},
};

/// How long a connection may take to say its UUID, and its first audio after that.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a UUID.
const ID_LENGTH: usize = 16;
/// Most that is read of a connection before it is a call, bytes: its UUID and the longest frame.
const MOST: usize = 2 * HEADER + ID_LENGTH + u16::MAX as usize;
/// Bytes at first: UUID and 20 ms at 8 kHz.
const FIRST: usize = 512;

/// Why a connection becomes no call.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("it says no {0} within {PATIENCE:?}")]
    Silent(&'static str),
    #[error(
        "it begins with a frame of kind {kind:#04x} and {length} bytes; a UUID is of kind 0x01 and {ID_LENGTH} bytes"
    )]
    Stranger { kind: u8, length: usize },
    #[error("it says {0} bytes and no audio; allowed are {MOST}")]
    TooMuch(usize),
    #[error(transparent)]
    Lost(#[from] io::Error),
}

/// Accepts until it is to stop, each connection in a task of `tracker`, and gives those that have said their UUID and their first audio
/// to `handle`, which reads both from the socket as if nobody had. One that does not in time is closed. At most `max_waiting` are
/// listened to that have not yet; more wait in the backlog.
pub async fn serve<H, F>(
    listener: TcpListener,
    limits: SocketLimits,
    max_waiting: usize,
    tracker: &TaskTracker,
    stops: Stops,
    handle: H,
) where
    H: Fn(SocketAddr, Socket) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(max_waiting));
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, accept(&listener).await))
        };
        let Some(Some((permit, (mut tcp, peer)))) = stops.accepting.run_until_cancelled(next).await else { return };
        let (handle, stop) = (handle.clone(), stops.serving.clone());
        tracker.spawn(async move {
            let greeted = stop.run_until_cancelled(greet(&mut tcp)).await;
            drop(permit);
            match greeted {
                Some(Ok(read)) => handle(peer, Socket::audiosocket(Io::plain(tcp), limits, &read)).await,
                Some(Err(error)) => tracing::info!(%peer, %error, "no call of an AudioSocket"),
                None => {}
            }
        });
    }
}

/// Reads up to the end of the first audio; what was read.
async fn greet(tcp: &mut TcpStream) -> Result<BytesMut, Unheard> {
    let mut read = BytesMut::with_capacity(FIRST);
    let id = frame(tcp, &mut read, 0, |kind, length| kind == ID && length == ID_LENGTH);
    let (_, mut at) = time::timeout(PATIENCE, id).await.map_err(|_| Unheard::Silent("UUID"))??;
    let audio = async {
        loop {
            let (kind, end) = frame(tcp, &mut read, at, |_, _| true).await?;
            if AUDIO.contains(&kind) {
                return Ok::<_, Unheard>(());
            }
            at = end; // a key that is pressed already
        }
    };
    time::timeout(PATIENCE, audio).await.map_err(|_| Unheard::Silent("audio"))??;
    Ok(read)
}

/// Reads until the frame at `at` is whole. Its kind, and where it ends.
async fn frame(
    tcp: &mut TcpStream,
    read: &mut BytesMut,
    at: usize,
    good: impl Fn(u8, usize) -> bool,
) -> Result<(u8, usize), Unheard> {
    loop {
        if let Some((kind, length)) = header(read.get(at..).unwrap_or_default()) {
            if !good(kind, length) {
                return Err(Unheard::Stranger { kind, length });
            }
            let end = at + HEADER + length;
            if end <= read.len() {
                return Ok((kind, end));
            }
        }
        if read.len() > MOST {
            return Err(Unheard::TooMuch(read.len()));
        }
        if tcp.read_buf(read).await? == 0 {
            return Err(Unheard::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::{io::AsyncWriteExt as _, time::Instant};

    use super::*;
    use crate::net::ws::Frame;

    const LIMITS: SocketLimits = SocketLimits { max_message: 64 << 10, read_buffer: 512 };
    const HELLO: [u8; 19] = [ID, 0, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const SOUND: [u8; 7] = [0x12, 0, 4, 1, 2, 3, 4];

    struct Door {
        addr: SocketAddr,
        tracker: TaskTracker,
        stops: Stops,
    }

    /// Says back each audio that it hears.
    async fn echo(_: SocketAddr, mut socket: Socket) {
        while let Ok(Frame::Binary(message)) = socket.next().await {
            socket.send_binary(message);
            socket.flush().unwrap();
        }
        socket.close(1000, "", PATIENCE).await;
    }

    async fn door(max_waiting: usize) -> Door {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (addr, tracker, stops) = (listener.local_addr().unwrap(), TaskTracker::new(), Stops::default());
        let (calls, until) = (tracker.clone(), stops.clone());
        tracker.spawn(async move { serve(listener, LIMITS, max_waiting, &calls, until, echo).await });
        Door { addr, tracker, stops }
    }

    async fn say(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.write_all(bytes).await.unwrap();
        tcp
    }

    /// The other side has closed; what it had said.
    async fn end(tcp: &mut TcpStream) -> Vec<u8> {
        let mut got = Vec::new();
        let _ = tcp.read_to_end(&mut got).await; // a reset is an end, too
        got
    }

    #[tokio::test]
    async fn a_call_is_handed_over_with_all_that_it_has_said() {
        let door = door(1).await;
        for pause in [false, true] {
            let mut tcp = say(door.addr, if pause { &HELLO[..7] } else { &HELLO }).await;
            if pause {
                tokio::task::yield_now().await;
                tcp.write_all(&HELLO[7..]).await.unwrap();
            }
            // A key before any audio, and a frame behind it.
            tcp.write_all(&[&[3, 0, 1, b'5'][..], &SOUND, &SOUND[..5]].concat()).await.unwrap();
            tcp.write_all(&SOUND[5..]).await.unwrap();
            let mut got = [0; 14];
            tcp.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [SOUND, SOUND].concat()[..], "UUID and key are no audio: they are not said back");
            tcp.shutdown().await.unwrap();
            assert_eq!(end(&mut tcp).await, [0; 0]);
        }
    }

    #[tokio::test]
    async fn strangers_are_sent_away_at_once() {
        let door = door(1).await;
        let began = Instant::now();
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &SOUND, &[ID, 0, 15], &[ID, 1, 16], &[0x16, 3, 1, 2, 0]] {
            let mut tcp = say(door.addr, bytes).await;
            assert_eq!(end(&mut tcp).await, [0; 0], "{bytes:?}");
        }
        let mut flood = say(door.addr, &HELLO).await;
        let _ = flood.write_all(&[3, 0, 1, b'5'].repeat(40_000)).await;
        assert_eq!(end(&mut flood).await, [0; 0], "keys and no audio");
        assert!(began.elapsed() < PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_has_five_seconds_for_each() {
        let door = door(9).await;
        for (bytes, patience) in [
            (Bytes::new(), PATIENCE),
            (Bytes::from_static(&HELLO[..18]), PATIENCE),
            (Bytes::from_static(&HELLO), PATIENCE),
            ([&HELLO[..], &SOUND[..6]].concat().into(), PATIENCE),
        ] {
            let began = Instant::now();
            let mut tcp = say(door.addr, &bytes).await;
            assert_eq!(end(&mut tcp).await, [0; 0]);
            let took = began.elapsed();
            assert!(took >= patience && took <= 2 * patience, "{} bytes: {took:?}", bytes.len());
        }
    }

    #[tokio::test]
    async fn so_many_are_listened_to_at_once_and_calls_do_not_count() {
        let door = door(1).await;
        let mut call = say(door.addr, &[&HELLO[..], &SOUND].concat()).await;
        let mut got = [0; 7];
        call.read_exact(&mut got).await.unwrap();
        let silent = say(door.addr, &HELLO).await;
        let mut next = say(door.addr, &[&HELLO[..], &SOUND].concat()).await;
        let early = time::timeout(Duration::from_millis(100), next.read_exact(&mut got)).await;
        assert!(early.is_err(), "one is listened to");
        drop(silent);
        next.read_exact(&mut got).await.unwrap();
        call.write_all(&SOUND).await.unwrap();
        call.read_exact(&mut got).await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_ends_those_that_are_no_calls_yet() {
        let door = door(2).await;
        let mut call = say(door.addr, &[&HELLO[..], &SOUND].concat()).await;
        let mut got = [0; 7];
        call.read_exact(&mut got).await.unwrap();
        let mut silent = say(door.addr, &HELLO).await;
        door.stops.accepting.cancel();
        door.stops.serving.cancel();
        assert_eq!(end(&mut silent).await, [0; 0]);
        call.write_all(&SOUND).await.unwrap();
        call.read_exact(&mut got).await.unwrap();
        drop(call);
        door.tracker.close();
        time::timeout(PATIENCE, door.tracker.wait()).await.unwrap();
    }
}
