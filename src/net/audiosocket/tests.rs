use std::{fs, path::Path, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    time::{self, Instant},
};

use super::*;
use crate::net::ws::Socket;

const LIMITS: SocketLimits = SocketLimits { max_message: 64 << 10, read_buffer: 512 };
const SECOND: Duration = Duration::from_secs(1);

/// Asterisk's end of a connection, and ours.
async fn pair() -> (TcpStream, Io) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (peer, ours) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let peer = peer.unwrap();
    peer.set_nodelay(true).unwrap();
    (peer, Io::plain(ours.unwrap().0))
}

async fn connected(limits: SocketLimits) -> (TcpStream, Socket) {
    let (peer, io) = pair().await;
    (peer, Socket::audiosocket(io, limits, &[]))
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/phone").join(name)).unwrap()
}

/// Messages as Asterisk writes them, read at one go.
fn cut(mut bytes: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (body, after) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        messages.push([&[*kind], body].concat().into());
        bytes = after;
    }
    assert!(bytes.is_empty());
    messages
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, high, low], body].concat()
}

/// What a wire gives when bytes come in these pieces, each of them read before the next is sent.
async fn in_pieces(pieces: impl Iterator<Item = &[u8]>) -> Vec<Bytes> {
    let (mut peer, io) = pair().await;
    let mut wire = AudioSocket::new(io, LIMITS, &[]);
    let (mut messages, mut sent, mut got) = (Vec::new(), 0, 0);
    for piece in pieces {
        peer.write_all(piece).await.unwrap();
        sent += piece.len();
        loop {
            while let Some(frame) = wire.read().unwrap() {
                let Frame::Binary(message) = frame else { panic!("{frame:?}") };
                got += message.len() + 2;
                messages.push(message);
            }
            if got + wire.incoming.len() == sent {
                break;
            }
            std::future::poll_fn(|cx| wire.io.poll_readable(cx)).await.unwrap();
        }
    }
    assert_eq!(wire.unfinished(), None);
    messages
}

#[tokio::test]
async fn any_cut_of_what_asterisk_says_gives_the_same_frames() {
    let bytes = golden("audiosocket_from_asterisk.bin");
    let want = cut(&bytes);
    assert_eq!((want.len(), want[0].len(), &want[11][..], &want[17][..]), (18, 17, &b"\x035"[..], &[0xFF, 2][..]));
    for size in (1..8).chain([322, 323, 324, bytes.len()]) {
        assert_eq!(in_pieces(bytes.chunks(size)).await, want, "in pieces of {size} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cut_of_any_frames_gives_the_same(
        frames in proptest::collection::vec((any::<u8>(), prop_oneof![0_usize..700, Just(0), 60_000_usize..65_535]), 1..8),
        cuts in proptest::collection::vec(1_usize..9_000, 1..20),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, length)| frame(*kind, &vec![*kind; *length])).collect();
        let (mut pieces, mut rest, mut cuts) = (Vec::new(), bytes.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            pieces.push(piece);
            rest = after;
        }
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        prop_assert_eq!(runtime.block_on(in_pieces(pieces.into_iter())), cut(&bytes));
    }
}

#[tokio::test]
async fn a_megabyte_at_once_is_taken_frame_by_frame_in_bounded_memory() {
    let (mut peer, io) = pair().await;
    let bytes: Vec<u8> = (0..3_250_u32).flat_map(|n| frame(0x10, &n.to_be_bytes().repeat(80))).collect();
    assert!(bytes.len() > 1 << 20);
    let want = cut(&bytes);
    let mut wire = AudioSocket::new(io, LIMITS, &[]);
    let say = async {
        peer.write_all(&bytes).await.unwrap();
        drop(peer);
    };
    let hear = async {
        let mut messages = Vec::new();
        loop {
            match wire.read().unwrap() {
                Some(Frame::Binary(message)) => messages.push(message.to_vec()),
                Some(over) => {
                    assert_eq!(over, Frame::Closed { code: None, reason: String::new() });
                    return messages;
                }
                None => std::future::poll_fn(|cx| wire.io.poll_readable(cx)).await.unwrap(),
            }
            assert!(wire.incoming.len() < 323 + 512 && wire.incoming.capacity() <= 4_096);
        }
    };
    let ((), messages) = tokio::join!(say, hear);
    assert!(messages == want);
}

#[tokio::test]
async fn a_large_frame_is_refused_by_its_header() {
    let (mut peer, mut socket) = connected(SocketLimits { max_message: 1_000, ..LIMITS }).await;
    peer.write_all(&frame(0x10, &[7; 999])).await.unwrap();
    assert!(matches!(socket.next().await, Ok(Frame::Binary(message)) if message.len() == 1_000));
    peer.write_all(&[0x10, 0x03, 0xE8]).await.unwrap();
    let error = socket.next().await.unwrap_err();
    assert!(matches!(error, SocketError::TooLarge { got: 1_001, limit: 1_000 }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_has_its_time_and_no_more() {
    let (mut peer, mut socket) = connected(LIMITS).await;
    let patience = 10 * SECOND;
    assert_eq!(socket.unfinished_until(patience), None);
    let began = Instant::now();
    peer.write_all(&[0x10]).await.unwrap();
    readable(&socket).await;
    assert_eq!(socket.read().unwrap(), None);
    assert_eq!(socket.unfinished_until(patience), Some(began + patience));
    // A byte now and then does not make it longer.
    for byte in [0x01, 0x40, 7, 7] {
        time::advance(2 * SECOND).await;
        peer.write_all(&[byte]).await.unwrap();
        readable(&socket).await;
        assert_eq!(socket.read().unwrap(), None);
        assert_eq!(socket.unfinished_until(patience), Some(began + patience));
    }
    // Its end does, and the next half has time of its own.
    peer.write_all(&[&[7; 318][..], &[0x10, 0]].concat()).await.unwrap();
    readable(&socket).await;
    assert_eq!(socket.read().unwrap(), Some(Frame::Binary([&[0x10_u8][..], &[7; 320]].concat().into())));
    assert_eq!(socket.read().unwrap(), None);
    assert_eq!(socket.unfinished_until(patience), Some(began + 8 * SECOND + patience));
    time::advance(SECOND).await;
    socket.excuse();
    assert_eq!(socket.unfinished_until(patience), Some(began + 9 * SECOND + patience));
}

async fn readable(socket: &Socket) {
    std::future::poll_fn(|cx| socket.poll_readable(cx)).await.unwrap();
}

#[tokio::test]
async fn the_end_between_frames_is_a_goodbye_and_within_one_a_loss() {
    for (bytes, whole) in [(frame(0x10, &[1, 2]), true), (vec![0x10, 0, 2, 1], false)] {
        let (mut peer, mut socket) = connected(LIMITS).await;
        peer.write_all(&bytes).await.unwrap();
        drop(peer);
        if whole {
            assert_eq!(socket.next().await.unwrap(), Frame::Binary(Bytes::from_static(&[0x10, 1, 2])));
            assert_eq!(socket.next().await.unwrap(), Frame::Closed { code: None, reason: String::new() });
        }
        assert!(matches!(socket.next().await, Err(SocketError::Lost(_))));
        assert!(matches!(socket.next().await, Err(SocketError::Lost(_))), "and so it stays");
    }
}

#[tokio::test]
async fn nothing_is_written_that_asterisk_does_not_stand() {
    let (mut peer, mut socket) = connected(LIMITS).await;
    for nothing in [&[][..], &[0x10], &[0x18], &[0x01, 1, 2], &[0x03, b'5'], &[0x0F, 1], &[0x19, 1, 2], &[0xFF, 1]] {
        socket.send_binary(nothing);
        socket.outbox().control(Bytes::from_static(nothing));
    }
    socket.send_text("{}");
    socket.send_urgent("{}");
    socket.outbox().spoken(Bytes::from_static(b"{}"));
    socket.send_ping();
    socket.send_binary(&[0x18, 1, 2][..]);
    // 65,535 bytes do not fit into whole samples, and 65,536 not into the length.
    socket.send_binary([&[0x10_u8][..], &[9; 131_070]].concat());
    socket.outbox().control(Bytes::from_static(&[0x00]));
    let mut got = Vec::new();
    tokio::join!(socket.close(1000, "bye", SECOND), async { peer.read_to_end(&mut got).await.unwrap() });
    let want = [
        frame(0x18, &[1, 2]),
        frame(0x10, &[9; 65_534]),
        frame(0x10, &[9; 65_534]),
        frame(0x10, &[9; 2]),
        frame(0x00, &[]),
    ];
    assert!(got == want.concat(), "{} bytes", got.len());
}

#[tokio::test]
async fn what_we_say_is_what_others_said_to_asterisk() {
    let want = golden("audiosocket_to_asterisk.bin");
    let (mut peer, mut socket) = connected(LIMITS).await;
    cut(&want).into_iter().for_each(|message| socket.send_binary(message));
    let mut got = Vec::new();
    tokio::join!(socket.close(1000, "", SECOND), async { peer.read_to_end(&mut got).await.unwrap() });
    assert_eq!(got, want);
}

/// A connection whose peer takes little at once.
async fn narrow() -> (TcpStream, Socket) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let peer = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    peer.set_recv_buffer_size(4_096).unwrap();
    peer.connect(&listener.local_addr().unwrap().into()).unwrap();
    peer.set_nonblocking(true).unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&ours).set_send_buffer_size(4_096).unwrap();
    (TcpStream::from_std(peer.into()).unwrap(), Socket::audiosocket(Io::plain(ours), LIMITS, &[]))
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_little_blocks_nobody_and_gets_whole_frames() {
    let (mut peer, mut socket) = narrow().await;
    let message = |n: u32| [&[0x10_u8][..], &n.to_be_bytes().repeat(80)].concat();
    (0..1_000).for_each(|n| socket.send_binary(message(n)));
    assert_eq!((socket.queued_bytes(), socket.waiting_audio()), (321_000, 1_000));
    socket.watch(false);
    let began = Instant::now();
    socket.flush().unwrap();
    assert!(!socket.is_flushed() && socket.waiting_audio() > 500, "{} wait", socket.waiting_audio());
    assert_eq!(socket.stalled_since(), Some(began));
    let pending = std::future::poll_fn(|cx| std::task::Poll::Ready(socket.poll_writable(cx).is_pending())).await;
    assert!(pending, "and whoever waits is told, though nobody watched it");
    time::advance(3 * SECOND).await;
    socket.flush().unwrap();
    assert_eq!(socket.stalled_since(), Some(began));
    // What no socket has taken is dropped; what is half written stays whole.
    let taken = 1_000 - u32::try_from(socket.waiting_audio()).unwrap();
    socket.drop_binary();
    socket.send_binary(message(5_000));
    let write = async {
        while !socket.is_flushed() {
            std::future::poll_fn(|cx| socket.poll_writable(cx)).await.unwrap();
            socket.flush().unwrap();
        }
        assert_eq!((socket.stalled_since(), socket.queued_bytes()), (None, 0));
        socket.close(1000, "", SECOND).await;
    };
    let mut got = Vec::new();
    tokio::join!(write, async { peer.read_to_end(&mut got).await.unwrap() });
    let want: Vec<Bytes> = (0..taken).chain([5_000]).map(|n| message(n).into()).collect();
    assert!(cut(&got) == want, "{taken} were taken");
}

#[tokio::test]
async fn a_goodbye_is_not_destroyed_by_what_we_have_not_read() {
    let (mut peer, mut socket) = connected(LIMITS).await;
    peer.write_all(&frame(0x10, &[3; 320]).repeat(50)).await.unwrap();
    socket.send_binary(&[0x10, 5, 6][..]);
    socket.outbox().control(Bytes::from_static(&[HANG_UP]));
    let mut got = Vec::new();
    let heard = async {
        peer.read_to_end(&mut got).await.unwrap();
        drop(peer);
    };
    tokio::join!(socket.close(1008, "a reason", SECOND), heard);
    assert_eq!(got, [frame(0x10, &[5, 6]), frame(0, &[])].concat());
}

#[tokio::test]
async fn buffers_grow_when_they_are_full_and_are_given_back() {
    let (mut peer, io) = pair().await;
    let mut socket = Socket::audiosocket(io, LIMITS, &[]);
    assert!(!socket.is_crowded(8 << 10));
    peer.write_all(&frame(0x10, &[1; 2_000])).await.unwrap();
    assert!(matches!(socket.next().await, Ok(Frame::Binary(_))));
    assert!(socket.is_crowded(8 << 10) && !socket.is_crowded(512));
    assert_eq!(socket.read().unwrap(), None);
    socket.resize(8 << 10);
    assert!(!socket.is_crowded(8 << 10));
    // Half a frame is not thrown away for it, and an unwatched socket is read all the same.
    peer.write_all(&frame(0x10, &[2; 4])[..5]).await.unwrap();
    readable(&socket).await;
    assert_eq!(socket.read().unwrap(), None);
    socket.resize(512);
    socket.watch(false);
    peer.write_all(&[2, 2]).await.unwrap();
    let read = async {
        loop {
            if let Some(frame) = socket.read().unwrap() {
                return frame;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(time::timeout(5 * SECOND, read).await.unwrap(), Frame::Binary(Bytes::from_static(&[0x10, 2, 2, 2, 2])));
}
