//! Whoever pretends to be a provider, and providers that do what they should not: each ends clearly, with a line that says why,
//! and nothing of it reaches the service.
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_tungstenite::tungstenite::Message as Frame;
use voxrelay::{
    config::Config,
    provider::{Address, Line, Message, Provider, ReachError, Setup},
    sim::SimConfig,
    wall::unix_now,
};

use super::{account, kind, phones, reach, setup};
use crate::{
    canary::warned,
    support::{Client, Rig, answer, http, until},
};

pub(super) const WITHIN: Duration = Duration::from_secs(20);

pub(super) async fn rig(change: impl FnOnce(&mut Config)) -> Rig {
    let accounts = || {
        let usual = Provider::ALL.into_iter().filter(|provider| *provider != Provider::AudioSocket);
        let usual = usual.map(|provider| (kind(provider).name().to_owned(), account(provider, None)));
        usual.chain([("second".to_owned(), account(Provider::Plivo, None))])
    };
    let change = |config: &mut Config| {
        phones(config, accounts());
        change(config);
    };
    Rig::with(change, SimConfig::instant(), "").await
}

/// A call that the webhook has been asked about: its setup, which knows the token, the upgrade's headers, and its page.
async fn asked_at(
    rig: &Rig,
    provider: Provider,
    name: &str,
    seed: u64,
) -> (Setup, Vec<(&'static str, String)>, String) {
    let mut setup = setup(provider, seed);
    let reached = reach(rig, provider, name).reach(&mut setup, unix_now()).await.unwrap();
    let Address::WebSocket { url, headers, .. } = reached.address else { panic!("a WebSocket") };
    let headers = headers.iter().map(|(name, value)| {
        let name = if name == "Authorization" { "authorization" } else { "x-twilio-signature" };
        (name, value.expose_secret().to_owned())
    });
    (setup, headers.collect(), url.rsplit('/').next().unwrap().to_owned())
}

pub(super) async fn asked(
    rig: &Rig,
    provider: Provider,
    name: &str,
    seed: u64,
) -> (Setup, Vec<(&'static str, String)>) {
    let (setup, headers, _) = asked_at(rig, provider, name, seed).await;
    (setup, headers)
}

pub(super) async fn stream(rig: &Rig, name: &str, headers: &[(&'static str, String)]) -> Result<Client, u16> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Client::dial(rig.relay.addr(), &format!("/phone/{name}/stream"), &headers).await.map_err(|(status, _)| status)
}

/// What the provider says first.
pub(super) fn start(setup: &Setup) -> Vec<String> {
    let mut line = Line::new(setup.clone());
    line.open(Duration::ZERO);
    let text = |message| if let Message::Text(text) = message { text } else { panic!("text") };
    std::iter::from_fn(|| line.poll(Duration::ZERO)).map(text).collect()
}

fn media(stream: &str, number: u64) -> String {
    let payload = format!("{}/w==", "/".repeat(212));
    let media = json!({"track": "inbound", "chunk": number.to_string(), "timestamp": (number * 20).to_string(), "payload": payload});
    json!({"event": "media", "sequenceNumber": "3", "streamSid": stream, "media": media}).to_string()
}

/// A Twilio stream that runs.
async fn running(rig: &Rig, seed: u64) -> (Client, Setup) {
    let (setup, headers) = asked(rig, Provider::Twilio, "twilio", seed).await;
    let mut client = stream(rig, "twilio", &headers).await.unwrap();
    let before = rig.sim.stats().sessions_opened;
    for text in start(&setup) {
        client.json(&text).await;
    }
    until("the session is up", || rig.sim.stats().sessions_opened > before).await;
    (client, setup)
}

async fn gone(rig: &Rig) {
    until("the service's leg is closed", || rig.sim.stats().sessions_now == 0).await;
}

/// The close code within a bound that has nothing to do with timeouts of minutes.
pub(super) async fn end(client: &mut Client) -> u16 {
    time::timeout(WITHIN, client.end()).await.expect("it ends").1
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_end_however_the_line_breaks() {
    let rig = rig(|_| {}).await;
    let (client, _) = running(&rig, 1).await;
    client.reset();
    gone(&rig).await;
    let (mut client, setup) = running(&rig, 2).await;
    client.json(&media(&setup.ids.stream, 1)).await;
    client.close_with(1000).await;
    gone(&rig).await;
    let (mut client, setup) = running(&rig, 3).await;
    let stop = json!({"event": "stop", "streamSid": setup.ids.stream, "stop": {"callSid": setup.ids.call}}).to_string();
    client.json(&stop).await;
    client.tries(Frame::text(stop)).await;
    assert_eq!(end(&mut client).await, 1000, "stop, twice");
    gone(&rig).await;
    // Messages that make no sense are borne, and not for ever.
    let binary = || Frame::binary(vec![0x7F; 160]);
    type Make = Box<dyn Fn(u64) -> Frame>;
    let kinds: [(&str, Make); 4] = [
        ("media of another stream", Box::new(|n| Frame::text(media("MZother", n)))),
        ("binary", Box::new(move |_| binary())),
        ("no JSON", Box::new(|_| Frame::text("hello"))),
        ("no base64", Box::new(|_| Frame::text(json!({"event": "media", "media": {"payload": "*"}}).to_string()))),
    ];
    for (n, (what, make)) in kinds.into_iter().enumerate() {
        let (mut client, setup) = running(&rig, 10 + n as u64).await;
        client.tries(make(1)).await;
        client.json(&media(&setup.ids.stream, 2)).await;
        for n in 3..40 {
            client.tries(make(n)).await;
        }
        assert_eq!(end(&mut client).await, 1008, "{what}");
        gone(&rig).await;
    }
    let (mut client, _) = running(&rig, 20).await;
    client.tries(Frame::text("x".repeat(1 << 20))).await;
    assert_eq!(end(&mut client).await, 1009, "1 MB");
    gone(&rig).await;
    let stats = rig.sim.stats();
    assert_eq!(stats.sessions_opened, stats.closed_by_client.values().sum::<u64>(), "each once: {stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_doors_bear_text_but_not_for_ever() {
    let rig = rig(|_| {}).await;
    for (provider, name) in [
        (Provider::Vonage, "vonage"),
        (Provider::Jambonz, "jambonz"),
        (Provider::ChanWebSocket, "asterisk"),
        (Provider::AudioFork, "freeswitch"),
    ] {
        let (setup, headers, page) = asked_at(&rig, provider, name, 1).await;
        let path = format!("/phone/{name}/{page}");
        let shown: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let before = rig.sim.stats().sessions_opened;
        let mut client = Client::dial(rig.relay.addr(), &path, &shown).await.unwrap();
        for text in start(&setup) {
            client.json(&text).await;
        }
        until("the session is up", || rig.sim.stats().sessions_opened > before).await;
        // Half a sample waits for its other half.
        client.audio(&[0; 641]).await;
        client.audio(&[0; 639]).await;
        for _ in 0..40 {
            client.tries(Frame::text("{")).await;
        }
        assert_eq!(end(&mut client).await, 1008, "{name}");
        gone(&rig).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_reach_nothing() {
    let rig = rig(|_| {}).await;
    // Webhooks: every provider's, unsigned and signed with another key.
    for provider in Provider::ALL {
        let name = kind(provider).name();
        for key in [None, Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")] {
            let mut reach = reach(&rig, provider, name);
            (reach.auth_token, reach.stream_password) = (key.map(Into::into), key.map(Into::into));
            let error = reach.reach(&mut setup(provider, 1), unix_now()).await.unwrap_err();
            assert!(error.to_string().contains("HTTP 403"), "{name}: {error}");
        }
    }
    assert!(warned(&["a request in a telephone provider's name is refused", "twilio", "signature"]) > 0);
    // Upgrades: no signature, a wrong one, no password, a wrong one.
    for (name, headers) in [
        ("twilio", vec![]),
        ("twilio", vec![("x-twilio-signature", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned())]),
        ("signalwire", vec![("authorization", "Bearer guessed".to_owned())]),
        ("jambonz", vec![("authorization", "Basic dm94cmVsYXk6Z3Vlc3NlZA==".to_owned())]),
        ("asterisk", vec![]),
        ("freeswitch", vec![("authorization", "Basic cmVsYXk6Z3Vlc3NlZA==".to_owned())]),
    ] {
        assert_eq!(stream(&rig, name, &headers).await.err(), Some(403), "{name}");
    }
    for page in ["voice", "status", "stream"] {
        let answer = answer(http().post(format!("http://{}/phone/nobody/{page}", rig.relay.addr())).body("{}")).await;
        let wanted = if page == "stream" { 405 } else { 404 };
        assert_eq!(answer.status, wanted, "{page}: {}", answer.text);
    }
    assert_eq!(stream(&rig, "nobody", &[]).await.err(), Some(404));
    assert_eq!(rig.sim.stats().attempts, 0, "nothing reached the service");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_good_once_for_their_call_and_account() {
    let rig = rig(|_| {}).await;
    let turned_away = |why: &str| warned(&["a stream is turned away", why]);
    let open = async |setup: &Setup, name: &str, headers: &[(&'static str, String)]| {
        let mut client = stream(&rig, name, headers).await.unwrap();
        for text in start(setup) {
            client.json(&text).await;
        }
        client
    };
    // Audio before the start; none at all of what is due; a first message of 1 MB; binary.
    let (setup, headers) = asked(&rig, Provider::Twilio, "twilio", 1).await;
    for (first, code, why) in [
        (Frame::text(media(&setup.ids.stream, 1)), 1008, "audio before its start"),
        (Frame::text("x".repeat(1 << 20)), 1009, "byte limit"),
        (Frame::binary(vec![0; 160]), 1008, "a binary message"),
        (Frame::text("{}"), 1008, "its first message"),
        (Frame::text(r#"{"event":"start","start":{}}"#), 1008, "there is no `start.streamSid`"),
    ] {
        let before = turned_away(why);
        let mut client = stream(&rig, "twilio", &headers).await.unwrap();
        client.tries(first).await;
        assert_eq!(end(&mut client).await, code, "{why}");
        until(why, || turned_away(why) > before).await;
    }
    // None, a guessed one.
    let mut guessed = setup.clone();
    guessed.parameters = vec![("token".to_owned(), "0123456789abcdef0123456789abcdef".to_owned())];
    let mut none = setup.clone();
    none.parameters.clear();
    for (wrong, why) in [(none, "it shows no token"), (guessed, "its token is not known")] {
        assert_eq!(end(&mut open(&wrong, "twilio", &headers).await).await, 1008, "{why}");
        until(why, || turned_away(why) > 0).await;
    }
    // Another call's: used up by that.
    let mut other = setup.clone();
    other.ids.call = "CA00000000000000000000000000000000".to_owned();
    assert_eq!(end(&mut open(&other, "twilio", &headers).await).await, 1008);
    until("its token was made for another call", || turned_away("made for another call") > 0).await;
    assert_eq!(end(&mut open(&setup, "twilio", &headers).await).await, 1008);
    // Another account's, of the same provider.
    let (plivo, headers) = asked(&rig, Provider::Plivo, "plivo", 2).await;
    assert_eq!(end(&mut open(&plivo, "second", &headers).await).await, 1008);
    assert_eq!(rig.sim.stats().attempts, 0, "nothing reached the service");
    // Two streams for one.
    let (plivo, headers) = asked(&rig, Provider::Plivo, "plivo", 3).await;
    let first = open(&plivo, "plivo", &headers).await;
    until("the session is up", || rig.sim.stats().sessions_opened == 1).await;
    assert_eq!(end(&mut open(&plivo, "plivo", &headers).await).await, 1008);
    first.close_with(1000).await;
    gone(&rig).await;
    assert_eq!(rig.sim.stats().sessions_opened, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_token_and_a_number_without_an_agent_are_refused() {
    let rig = rig(|config| {
        config.phone.token_ttl_s = 0;
        config.phone.numbers.first_mut().unwrap().number = "+13125550101".to_owned();
    })
    .await;
    let (setup, headers) = asked(&rig, Provider::Plivo, "plivo", 1).await;
    let mut client = stream(&rig, "plivo", &headers).await.unwrap();
    for text in start(&setup) {
        client.json(&text).await;
    }
    assert_eq!(end(&mut client).await, 1008);
    for provider in Provider::ALL {
        let name = kind(provider).name();
        let mut setup = super::setup(provider, 1);
        setup.to = "+13125559999".to_owned();
        let error = reach(&rig, provider, name).reach(&mut setup, unix_now()).await.unwrap_err();
        assert!(matches!(error, ReachError::Markup(_)), "{name}: {error}");
    }
    assert!(warned(&["nobody is configured for this number", "13125559999"]) >= Provider::ALL.len());
    assert_eq!(rig.sim.stats().attempts, 0, "nothing reached the service");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_are_bounded_and_do_not_stay() {
    let rig = rig(|_| {}).await;
    let began = Instant::now();
    let mut streams = JoinSet::new();
    let addr = rig.relay.addr();
    // An account has half of all places; who comes from this machine is not counted by address.
    for n in 0..800 {
        let path = ["/phone/telnyx/stream", "/phone/vonage/stream"][n % 2];
        streams.spawn(async move { Client::dial(addr, path, &[]).await });
    }
    let mut accepted = Vec::new();
    let mut refused = 0;
    while let Some(opened) = streams.join_next().await {
        match opened.unwrap() {
            Ok(client) => accepted.push(client),
            Err((status, code)) => {
                assert_eq!((status, code.as_str()), (503, "overloaded"));
                refused += 1;
            }
        }
    }
    assert!(refused >= 1 && accepted.len() >= 512, "{refused} refused, {} accepted", accepted.len());
    // Whose upgrade is signed is no stranger.
    let (setup, headers) = asked(&rig, Provider::Twilio, "twilio", 1).await;
    let mut client = stream(&rig, "twilio", &headers).await.unwrap();
    for text in start(&setup) {
        client.json(&text).await;
    }
    until("the session is up", || rig.sim.stats().sessions_opened == 1).await;
    for client in &mut accepted {
        assert_eq!(end(client).await, 1008);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(15), "{took:?}");
    assert!(warned(&["a stream is turned away", "it did not say whose it is within 5 s"]) >= 512);
    assert_eq!(rig.sim.stats().attempts, 1, "nothing else reached the service");
    // There is room again, when the goodbyes are said.
    let (setup, headers) = asked(&rig, Provider::Plivo, "plivo", 1).await;
    let end = Instant::now() + WITHIN;
    let mut client = loop {
        match stream(&rig, "plivo", &headers).await {
            Ok(client) => break client,
            Err(status) => assert!(status == 503 && Instant::now() < end, "{status}"),
        }
    };
    for text in start(&setup) {
        client.json(&text).await;
    }
    until("the session is up", || rig.sim.stats().sessions_opened == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_the_line_is_hung_up() {
    let rig = rig(|config| config.upstream.url = Some("http://127.0.0.1:1/v1".to_owned())).await;
    let (setup, headers) = asked(&rig, Provider::Plivo, "plivo", 1).await;
    let mut client = stream(&rig, "plivo", &headers).await.unwrap();
    for text in start(&setup) {
        client.json(&text).await;
    }
    let code = end(&mut client).await;
    assert!([1000, 1011].contains(&code), "{code}");
}
