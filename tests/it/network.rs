//! Bad networks between the client and the relay, and between the relay and the service (fault matrix N1, N2, N4, U7). Each
//! test proves by the proxy's own counters that its fault happened.
use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    task::JoinSet,
    time::{self, Instant},
};
use voxrelay::{
    chaos::{Direction, Fault, Kind, Nth, Part, Proxy, Script, When},
    config::Config,
    serve::Server,
    sim::{Faults, Sim, SimConfig},
};

use crate::support::{Client, Got, Raw, Rig, clip, config, until};

fn free() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn proxy(target: SocketAddr, script: &str) -> Proxy {
    Proxy::start(free(), target, Script::from_toml(script).unwrap()).await.unwrap()
}

fn url(proxy: &Proxy, query: &str) -> String {
    format!("ws://{}/v1/voice?{query}", proxy.addr())
}

/// A relay that reaches its service through a proxy.
async fn behind(script: &str, change: impl FnOnce(&mut Config)) -> (Rig, Proxy) {
    let sim = Sim::start(free(), SimConfig::default(), Faults::default()).await.unwrap();
    let proxy = proxy(sim.addr(), script).await;
    let mut config = config(&format!("http://{}/v1", proxy.addr()));
    change(&mut config);
    (Rig { relay: Server::start(config, None).await.unwrap(), sim }, proxy)
}

/// What a client saw of one turn.
#[derive(Debug, PartialEq)]
struct Story {
    /// Types of messages, but for those whose number or moment is the clock's.
    events: Vec<String>,
    /// What was understood and said.
    words: Vec<(Value, Value)>,
    /// Sizes of the audio messages.
    sizes: Vec<usize>,
    audio: Vec<u8>,
    ended: Value,
}

impl Story {
    /// The reply is what was said, filled up with silence, and nothing else happened.
    fn echoes(&self, said: &[u8], silence: u8) {
        assert_eq!(self.events, ["ready", "reply_started", "reply_ended"]);
        assert_eq!(self.ended["status"], "completed");
        assert!(self.audio.len() >= said.len(), "{} bytes of {}", self.audio.len(), said.len());
        assert!(self.audio[..said.len()] == *said, "not what was said");
        assert!(self.audio[said.len()..].iter().all(|byte| *byte == silence), "filled up with something");
        assert!(self.sizes.iter().all(|size| *size == self.sizes[0]), "messages of 20 ms: {:?}", self.sizes);
    }
}

/// One manual turn, spoken in real time.
async fn turn(client: &mut Client, said: &[u8], frame: usize) -> Story {
    client.stream(said, frame).await;
    client.json(r#"{"type":"commit"}"#).await;
    let (mut events, mut words, mut sizes, mut audio) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    loop {
        let message = match client.next().await {
            Got::Audio(bytes) => {
                sizes.push(bytes.len());
                audio.extend(bytes);
                continue;
            }
            Got::Json(message) => message,
            end => panic!("{end:?} in the middle of a turn"),
        };
        match message["type"].as_str().unwrap() {
            "ack" => continue,
            "transcript" if message["final"] == true => {
                words.push((message["role"].clone(), message["text"].clone()));
                continue;
            }
            "transcript" => continue,
            kind => events.push(kind.to_owned()),
        }
        if message["type"] == "reply_ended" {
            words.sort_by_key(|(role, _)| role.to_string());
            return Story { events, words, sizes, audio, ended: message };
        }
    }
}

/// N1.
#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_milliseconds_with_jitter_change_nothing_but_the_time() {
    let rig = Rig::new().await;
    let script = "seed = 1\n[[fault]]\nkind = \"delay\"\nms = 200\njitter_ms = 200";
    let proxy = proxy(rig.relay.addr(), script).await;
    let said = clip("assets/hello.wav");
    let mut client = Client::connect(&url(&proxy, "turns=manual")).await;
    let asked = Instant::now();
    client.json(r#"{"type":"ping","t":1}"#).await;
    assert_eq!(client.until("ready").await["type"], "ready");
    client.until("pong").await;
    assert!(asked.elapsed() >= Duration::from_millis(400), "there and back: {:?}", asked.elapsed());
    let mut story = turn(&mut client, &said, 960).await;
    story.events.insert(0, "ready".to_owned());
    story.echoes(&said, 0);
    assert_eq!(proxy.stats().count("delay"), 2, "both ways");
    assert_eq!(client.until_closed_by_us().await, Got::Closed(1000));
    assert_eq!(rig.sim.stats().append_bytes, said.len() as u64, "nothing lost, nothing twice");
}

/// N2, a reply that the link is too slow for.
#[tokio::test(flavor = "multi_thread")]
async fn audio_over_a_slow_link_is_late_but_whole_and_in_order() {
    let rig = Rig::new().await;
    let script = "[[fault]]\nkind = \"rate\"\ndirection = \"to_client\"\nbytes_per_s = 8_000";
    let proxy = proxy(rig.relay.addr(), script).await;
    // A second and a half, which takes nine on this link.
    let said = &clip("assets/hello.wav")[24_000..96_000];
    let mut client = Client::connect(&url(&proxy, "turns=manual")).await;
    let began = Instant::now();
    turn(&mut client, said, 960).await.echoes(said, 0);
    assert!(began.elapsed() > Duration::from_secs(9), "the link was not slow: {:?}", began.elapsed());
    assert_eq!(proxy.stats().count("rate"), 1);
    assert!(proxy.stats().to_client_bytes > said.len() as u64);
}

/// N2, more than is kept for a slow reader: C4.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_slow_for_too_long_is_a_slow_consumer() {
    let mut sim = SimConfig::default();
    sim.reply.speed = 1_000.0;
    let rig = Rig::with(|c| c.call.resume_window_s = 1, sim, "").await;
    let script = "[[fault]]\nkind = \"rate\"\ndirection = \"to_client\"\nbytes_per_s = 8_000";
    let proxy = proxy(rig.relay.addr(), script).await;
    let mut slow = Client::connect(&url(&proxy, "turns=manual&pace=fast&out_rate=48000")).await;
    slow.until("ready").await;
    // 110 s of reply at 48 kHz are 10.5 MB: more than 4 MiB and what the kernels take. 30 s may come at once.
    for second in 0..110 {
        slow.audio(&[0; 48_000]).await;
        if second > 28 {
            time::sleep(Duration::from_millis(270)).await;
        }
    }
    slow.json(r#"{"type":"commit"}"#).await;
    until("its session is given up", || rig.sim.stats().sessions_opened == 1 && rig.sim.stats().sessions_now == 0)
        .await;
    assert_eq!(proxy.stats().count("rate"), 1);
    // The link recovers, too late.
    proxy.set(Script::default());
    assert_eq!(slow.end().await, (Some("slow_consumer".into()), 4508));
}

/// N4, on both legs.
#[tokio::test(flavor = "multi_thread")]
async fn streams_in_pieces_of_one_byte_or_glued_together_are_the_same_streams() {
    const QUERY: &str = "turns=manual&format=mulaw";
    let said = telephone();
    let plain = Rig::new().await;
    let mut want = turn(&mut plain.call(QUERY).await, &said, 160).await;
    want.echoes(&said, 0xFF);
    for (kind, keys) in [("slice", ""), ("slice", "max = 300"), ("glue", "bytes = 4_000\nms = 150")] {
        let fault = format!("[[fault]]\nkind = \"{kind}\"\n{keys}\n");
        let (rig, service) = behind(&fault, |_| {}).await;
        // This client's library takes a handshake in pieces for an attack: it hears pieces after it only.
        let script = format!("{fault}direction = \"to_server\"\n{fault}direction = \"to_client\"\nframe = 1");
        let network = proxy(rig.relay.addr(), &script).await;
        let mut got = turn(&mut Client::connect(&url(&network, QUERY)).await, &said, 160).await;
        got.echoes(&said, 0xFF);
        for story in [&mut want, &mut got] {
            story.ended["latency"] = json!(null); // the clock's
        }
        assert_eq!(got, want, "{fault}");
        for (leg, proxy) in [("client", &network), ("service", &service)] {
            assert_eq!(proxy.stats().count(kind), 2 * proxy.stats().connections, "{leg}");
            assert!(proxy.stats().to_client_bytes > said.len() as u64, "{leg}: {:?}", proxy.stats());
        }
    }
}

/// Two seconds as a telephone sends them.
fn telephone() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/hello.wav");
    let samples = voxrelay::audio::decode::decode_file(path, 8_000).unwrap().samples;
    let mut bytes = Vec::new();
    voxrelay::audio::g711::Law::of(voxrelay::audio::Codec::Mulaw).unwrap().encode_into(&samples[..16_000], &mut bytes);
    bytes
}

/// U7.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_behind_a_connection_that_leads_nowhere_is_told_in_time() {
    let (rig, proxy) = behind("[[fault]]\nkind = \"stall\"\nconnection = 1", |config| {
        (config.upstream.connect_timeout_ms, config.upstream.session_timeout_ms) = (400, 800);
        config.upstream.attempts = 1;
    })
    .await;
    let began = Instant::now();
    let mut client = rig.call("").await;
    client.until("ready").await;
    assert_eq!(client.end().await, (Some("upstream_timeout".into()), 4504));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!((proxy.stats().count("stall"), rig.sim.stats().attempts), (1, 0));
    // The next connection leads somewhere.
    let mut client = rig.call("").await;
    client.json(r#"{"type":"text","text":"hello"}"#).await;
    assert_eq!(client.until("reply_ended").await["status"], "completed");
}

/// Bits that turn round on the way: C7's answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_breaks_the_framing_ends_its_own_call_only() {
    let rig = Rig::new().await;
    let text = br#"{"type":"ping","t":"a text that is long enough"}"#;
    for (name, part, bit, code) in
        [("reserved bit", Part::Before, 6, 1002), ("opcode", Part::Before, 1, 1002), ("UTF-8", Part::Middle, 7, 1007)]
    {
        let flip = Fault::new(Kind::Flip { bit: Some(bit), per_byte: None, for_ms: None })
            .to(Direction::ToServer)
            .when(When::Frame { nth: Nth::At(3), part });
        let proxy = Proxy::start(free(), rig.relay.addr(), Script::new(0).with(flip)).await.unwrap();
        let mut other = rig.call("").await;
        let mut raw = Raw::upgraded(proxy.addr()).await;
        raw.send(&Raw::frame(0x81, text).repeat(5)).await;
        let (errors, close, took) = raw.end().await;
        assert_eq!((close, errors.len()), (Some(code), 0), "{name}");
        assert!(took < Duration::from_secs(3), "{name}: {took:?}");
        assert_eq!(proxy.stats().count("flip"), 1, "{name}");
        other.json(r#"{"type":"ping","t":1}"#).await;
        other.until("pong").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_line_ends_calls_but_never_hangs_and_disturbs_nobody_else() {
    let rig = Rig::new().await;
    let script = "seed = 11\n[[fault]]\nkind = \"flip\"\ndirection = \"to_server\"\nframe = 2\nper_byte = 0.002";
    let proxy = proxy(rig.relay.addr(), script).await;
    let mut calls = JoinSet::new();
    for _ in 0..12 {
        let mut raw = Raw::upgraded(proxy.addr()).await;
        calls.spawn(async move {
            let frames = Raw::frame(0x82, &[0; 320]).repeat(100);
            // The relay may have said goodbye by then.
            let _ = raw.tcp.write_all(&frames).await;
            let _ = raw.tcp.shutdown().await;
            raw.end().await
        });
    }
    let said = telephone();
    let other = turn(&mut rig.call("turns=manual&format=mulaw").await, &said, 160).await;
    other.echoes(&said, 0xFF);
    let mut told = 0;
    for (errors, close, took) in calls.join_all().await {
        assert!(took < Duration::from_secs(20), "{errors:?} {close:?} after {took:?}");
        told += usize::from(close.is_some());
        assert!(matches!(close, None | Some(1002 | 1003 | 1007 | 1008 | 1009)), "{close:?} {errors:?}");
    }
    assert!(told >= 3, "{told} calls of 12 were told what was wrong");
    assert!(proxy.stats().count("flip") > 100, "{:?}", proxy.stats());
}
