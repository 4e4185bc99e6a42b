//! What may come over the wire and should not: each is answered with the contract's code, in its time (fault matrix C5-C9,
//! N4, M1).
use std::time::Duration;

use serde_json::json;
use tokio::time::{self, Instant};
use voxrelay::sim::SimConfig;

use crate::support::{Client, Got, Raw, Rig};

/// Promised is 100 ms; these machines are busy.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn framing_violations_are_closed_with_their_code() {
    let rig = Rig::new().await;
    let cases: [(&str, Vec<u8>, u16, &[&str]); 11] = [
        ("reserved bit", Raw::frame(0xC1, b"{}"), 1002, &[]),
        ("unknown opcode", Raw::frame(0x83, b""), 1002, &[]),
        ("unknown control frame", Raw::frame(0x8B, b""), 1002, &[]),
        ("unmasked", vec![0x81, 2, b'{', b'}'], 1002, &[]),
        ("fragmented ping", Raw::frame(0x09, b""), 1002, &[]),
        ("long ping", Raw::frame(0x89, &[0; 126]), 1002, &[]),
        ("continuation of nothing", Raw::frame(0x80, b"x"), 1002, &[]),
        ("new message inside another", [Raw::frame(0x01, b"a"), Raw::frame(0x81, b"b")].concat(), 1002, &[]),
        ("bad UTF-8", Raw::frame(0x81, &[b'"', 0xFF, 0xFE, b'"']), 1007, &[]),
        ("message too large", Raw::frame(0x82, &[0; 262_145])[..20].to_vec(), 1009, &["message_too_large"]),
        (
            "fragments too large together",
            [Raw::frame(0x02, &[0; 200_000]), Raw::frame(0x80, &[0; 100_000])].concat(),
            1009,
            &["message_too_large"],
        ),
    ];
    for (name, bytes, code, errors) in cases {
        let mut raw = Raw::upgraded(rig.relay.addr()).await;
        raw.send(&bytes).await;
        let (told, close, took) = raw.end().await;
        assert_eq!(close, Some(code), "{name}");
        assert_eq!(told, errors, "{name}");
        assert!(took < SOON, "{name}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_followed_by_the_end_of_the_connection_at_once() {
    let rig = Rig::new().await;
    let mut client = rig.call("turns=manual").await;
    client.until("ready").await;
    client.audio(&[0; 262_145]).await;
    client.until("error").await;
    assert_eq!(client.next().await, Got::Closed(1009));
    // Clients wait for this; before, it came only when the second of reading on was over.
    let asked = Instant::now();
    assert_eq!(client.next().await, Got::Lost);
    assert!(asked.elapsed() < Duration::from_millis(800), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_is_refused_by_its_header_and_the_largest_is_taken() {
    let rig = Rig::new().await;
    let mut client = rig.call("turns=manual").await;
    client.until("ready").await;
    client.audio(&[0; 262_144]).await;
    assert_eq!(client.until("ack").await["audio_ms"], 262_144 / 48);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_one_by_one_are_the_same_messages() {
    let rig = Rig::new().await;
    let mut raw = Raw::upgraded(rig.relay.addr()).await;
    let ping = Raw::frame(0x81, br#"{"type":"ping","t":"one by one"}"#);
    let close = Raw::frame(0x81, br#"{"type":"close"}"#);
    for byte in [&ping[..], &Raw::frame(0x01, br#"{"type":"#), &Raw::frame(0x80, br#""nothing"}"#), &close].concat() {
        raw.send(&[byte]).await;
    }
    assert_eq!(raw.end().await.1, Some(1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_told_and_twenty_are_too_many() {
    let rig = Rig::new().await;
    let mut client = rig.call("").await;
    client.json(r#"{"type":"played","reply":"r1"}"#).await;
    let error = client.until("error").await;
    assert_eq!(error["error"]["code"], "invalid_message");
    assert_eq!(error["error"]["field"], "ms");
    assert_eq!(error["error"]["message"], "`ms` must be a number, 0 or more; found missing");
    client.json(r#"{"type":"from_the_future","x":1}"#).await;
    client.json(r#"{"type":"ping","t":{"n":1}}"#).await;
    assert_eq!(client.until("pong").await["t"], json!({"n": 1}), "the call goes on");
    for _ in 0..19 {
        client.json("not json").await;
    }
    assert_eq!(client.end().await, (Some("policy_violation".into()), 1008));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_sample_is_carried_over() {
    let rig = Rig::new().await;
    let mut client = rig.call("turns=manual").await;
    for piece in [&[1u8; 4_799][..], &[1; 3], &[1; 4_798]] {
        client.audio(piece).await;
    }
    assert_eq!(client.until("ack").await["audio_ms"], 200);
    client.json(r#"{"type":"commit"}"#).await;
    assert_eq!(client.until("reply_ended").await["audio_ms"], 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn audio_that_is_no_opus_is_refused_and_reaches_nobody() {
    let rig = Rig::new().await;
    let mut client = rig.call("format=opus&turns=manual").await;
    client.until("ready").await;
    client.audio(&[0xFF; 40]).await;
    assert_eq!(client.end().await, (Some("invalid_audio".into()), 1003));
    assert_eq!(rig.sim.stats().appends, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_audio_is_refused_and_then_ends_the_call() {
    let rig = Rig::new().await;
    let mut client = rig.call("turns=manual").await;
    // 40 s of audio at once: 30 s are the burst.
    for _ in 0..40 {
        client.audio(&[0; 48_000]).await;
    }
    assert_eq!(client.until("error").await["error"]["code"], "audio_too_fast");
    let began = Instant::now();
    let mut client = client;
    let end = loop {
        if began.elapsed() > Duration::from_secs(25) {
            panic!("25 s of flood and no end");
        }
        client.audio(&[0; 192_000]).await;
        time::sleep(Duration::from_millis(200)).await;
        // A peek: the flood goes on until the relay says goodbye.
        if let Ok(Got::Closed(code)) = time::timeout(Duration::from_millis(1), client.next()).await {
            break code;
        }
    };
    assert_eq!(end, 4429);
    assert!(began.elapsed() > Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn twice_the_agreed_rate_is_taken() {
    let rig = Rig::new().await;
    let mut client = rig.call("turns=manual").await;
    client.stream(&[0; 2 * 960 * 100], 1_920).await;
    client.json(r#"{"type":"commit"}"#).await;
    assert_eq!(client.until("reply_ended").await["audio_ms"], 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_message_has_ten_seconds_and_a_silent_call_has_more() {
    let rig = Rig::new().await;
    let mut half_header = Raw::upgraded(rig.relay.addr()).await;
    let mut half_frame = Raw::upgraded(rig.relay.addr()).await;
    let mut fragment = Raw::upgraded(rig.relay.addr()).await;
    let mut pings = Raw::upgraded(rig.relay.addr()).await;
    let mut silent = Client::connect(&rig.url("")).await;
    half_header.send(&[0x82]).await;
    half_frame.send(&Raw::frame(0x82, &[0; 500])[..100]).await;
    fragment.send(&Raw::frame(0x01, b"{")).await;
    pings.send(&Raw::frame(0x01, b"{")).await;
    let pings = async {
        for _ in 0..2 {
            time::sleep(Duration::from_secs(4)).await;
            pings.send(&Raw::frame(0x89, b"")).await; // which finishes nothing
        }
        let (errors, close, took) = pings.end().await;
        (errors, close, took + Duration::from_secs(8))
    };
    let ends = tokio::join!(half_header.end(), half_frame.end(), fragment.end(), pings);
    for (errors, close, took) in [ends.0, ends.1, ends.2, ends.3] {
        assert_eq!((errors, close), (vec!["policy_violation".to_owned()], Some(1008)));
        assert!((9..17).contains(&took.as_secs()), "{took:?}");
    }
    silent.json(r#"{"type":"ping","t":1}"#).await;
    silent.until("pong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_say_nothing_or_half_a_request_are_closed() {
    let rig = Rig::new().await;
    let began = Instant::now();
    let (mut silent, mut half) = (Raw::connect(rig.relay.addr()).await, Raw::connect(rig.relay.addr()).await);
    half.send(b"GET /v1/voice HTTP/1.1\r\nHost: localhost\r\nX-Slow").await;
    let (silent, half) = tokio::join!(silent.end(), half.end());
    assert_eq!((silent.1, half.1), (None, None));
    assert!((9..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_ends_its_own_call_only() {
    let rig = Rig::new().await;
    let mut other = rig.call("").await;
    let mut flood = Raw::upgraded(rig.relay.addr()).await;
    flood.send(&Raw::frame(0x89, b"x").repeat(500)).await;
    let (errors, close, _) = flood.end().await;
    assert_eq!((errors, close), (vec!["policy_violation".to_owned()], Some(1008)));
    other.json(r#"{"type":"ping","t":1}"#).await;
    other.until("pong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_ended_and_costs_nobody_else() {
    // The whole reply is there at once: what is slow is the client alone.
    let mut sim = SimConfig::default();
    sim.reply.speed = 1_000.0;
    let rig = Rig::with(|c| c.call.resume_window_s = 1, sim, "").await;
    let mut slow = rig.call("turns=manual&pace=fast&out_rate=48000").await;
    slow.until("ready").await;
    // 90 s of reply at 48 kHz are 8.6 MB: more than 4 MiB and what the kernels take. 30 s may come at once.
    for second in 0..90 {
        slow.audio(&[0; 48_000]).await;
        if second > 28 {
            time::sleep(Duration::from_millis(270)).await;
        }
    }
    let mut other = rig.call("").await;
    while rig.sim.stats().sessions_now < 2 {
        time::sleep(Duration::from_millis(20)).await;
    }
    slow.json(r#"{"type":"commit"}"#).await;
    // It is given up ten seconds after its 4 MiB were full; meanwhile the other is as well as ever.
    let began = Instant::now();
    while rig.sim.stats().sessions_now > 1 {
        other.json(r#"{"type":"ping","t":1}"#).await;
        other.until("pong").await;
        assert!(began.elapsed() < Duration::from_secs(90), "a client that takes nothing is still served");
        time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(9), "it had ten seconds");
    // It reads again, too late: the error overtook the audio, and the close follows.
    assert_eq!(slow.end().await, (Some("slow_consumer".into()), 4508));
}
