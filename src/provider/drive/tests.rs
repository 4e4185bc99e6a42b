//! Real sockets against small relays that echo: what the caller hears must be what the caller has said.
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message as Frame,
        handshake::server::{Request, Response},
        http::HeaderValue,
    },
};

use super::*;
use crate::provider::{Action, Provider, What, When, Who, ear::is_audible};

const LONGEST: Duration = Duration::from_secs(10);

/// Half a second of voice.
fn voice(rate: u32) -> Vec<i16> {
    (0..rate / 2).map(|n| if n % 40 < 20 { 8_000 } else { -8_000 }).collect()
}

fn says(setup: &Setup, more: Vec<Action>) -> Person {
    let say = Action { when: When::At(Duration::ZERO), what: What::Say(voice(setup.media.rate)) };
    Person::new(setup.media, std::iter::once(say).chain(more))
}

fn websocket(listener: &TcpListener, setup: &Setup) -> Address {
    Address::WebSocket {
        url: format!("ws://{}/stream", listener.local_addr().unwrap()),
        subprotocol: setup.provider.subprotocol().map(str::to_owned),
        headers: vec![("X-Test".to_owned(), "seen".into())],
        roots: Vec::new(),
    }
}

/// Takes the call; chooses what is offered, if `choose`. Also the headers that came.
async fn accept(listener: TcpListener, choose: bool) -> Option<(WebSocketStream<TcpStream>, Vec<String>)> {
    let (tcp, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let ws = accept_hdr_async(tcp, |request: &Request, mut response: Response| {
        let offered = request.headers().get("sec-websocket-protocol").cloned();
        seen.extend(request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
        if let Some(offered) = offered.filter(|_| choose) {
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from(&offered));
        }
        Ok(response)
    });
    let ws = ws.await.ok()?;
    Some((ws, seen))
}

/// Twilio's: answers with what it was told as soon as that is over, and hangs up when it was heard.
async fn echo_twilio(listener: TcpListener) -> Vec<String> {
    let (mut ws, seen) = accept(listener, true).await.unwrap();
    let (mut told, mut answered) = (Vec::new(), false);
    while let Some(Ok(frame)) = ws.next().await {
        let Frame::Text(text) = frame else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let stream = &message["streamSid"];
        match message["event"].as_str() {
            Some("media") if !answered => {
                let payload = message["media"]["payload"].as_str().unwrap().to_owned();
                // Twenty frames of the same: silence, 0xFF in every byte.
                told.push(payload);
                let silent = |payload: &String| payload.chars().filter(|c| *c == '/').count() > 200;
                answered = told.len() > 25 && silent(told.last().unwrap());
                if answered {
                    for payload in told.iter().filter(|payload| !silent(payload)) {
                        let media = json!({ "event": "media", "streamSid": stream, "media": { "payload": payload } });
                        ws.send(Frame::Text(media.to_string().into())).await.unwrap();
                    }
                    let mark = json!({ "event": "mark", "streamSid": stream, "mark": { "name": "end" } });
                    ws.send(Frame::Text(mark.to_string().into())).await.unwrap();
                }
            }
            Some("mark") => ws.close(None).await.unwrap(),
            _ => {}
        }
    }
    seen
}

#[tokio::test]
async fn a_call_over_a_websocket_hears_what_it_has_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new(Provider::Twilio, 3);
    let (address, person) = (websocket(&listener, &setup), says(&setup, Vec::new()));
    let mut relay = JoinSet::new();
    relay.spawn(echo_twilio(listener));
    let mut told = Vec::new();
    let outcome = drive(&address, setup, person, LONGEST, |_, what| told.push(what)).await.unwrap();
    let Outcome { line, summary, .. } = outcome;
    assert_eq!(summary.violations, []);
    assert_eq!((summary.ended.who, summary.ended.unheard), (Who::Relay, Duration::ZERO), "{summary:?}");
    assert_eq!((summary.marks_played, summary.heard), (1, Duration::from_millis(500)));
    assert!(summary.first_sound.is_some_and(|after| after < Duration::from_secs(2)), "{summary:?}");
    let media = line.setup().media;
    let said = media.decode(&media.encode(&voice(8_000)));
    assert_eq!(line.ear().samples(LONGEST), said);
    assert!(
        matches!(
            told.as_slice(),
            [Told::Connected, Told::Speaks(false), Told::Spoke(_), Told::Sounds(_), Told::Ended(_)]
        ),
        "{told:?}"
    );
    assert!(relay.join_next().await.unwrap().unwrap().contains(&"x-test: seen".to_owned()));
}

#[tokio::test]
async fn a_subprotocol_must_be_chosen() {
    for choose in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let setup = Setup::new(Provider::Jambonz, 3);
        let hang_up = Action { when: When::Said, what: What::HangUp };
        let (address, person) = (websocket(&listener, &setup), says(&setup, vec![hang_up]));
        let first = Arc::new(Mutex::new(None));
        let mut relay = JoinSet::new();
        relay.spawn({
            let first = first.clone();
            async move {
                if let Some((mut ws, _)) = accept(listener, choose).await {
                    *first.lock().await = ws.next().await;
                    while let Some(Ok(_)) = ws.next().await {}
                }
            }
        });
        let outcome = drive(&address, setup, person, LONGEST, |_, _| {}).await;
        relay.join_next().await.unwrap().unwrap();
        match outcome {
            Ok(outcome) => {
                assert!(choose && outcome.summary.ended.who == Who::Caller);
                assert!(
                    matches!(&*first.lock().await, Some(Ok(Frame::Text(text))) if text.contains("\"sampleRate\":24000"))
                );
            }
            Err(error) => {
                assert!(!choose && error.to_string().contains("did not choose the subprotocol"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_call_over_audiosocket_is_interrupted_and_hung_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let setup = Setup::new(Provider::AudioSocket, 3);
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let script = vec![
        Action { when: When::Said, what: What::Press("7".to_owned()) },
        Action { when: When::Heard(Duration::from_millis(300)), what: What::Say(voice(8_000)) },
        Action { when: When::Said, what: What::HangUp },
    ];
    let person = says(&setup, script);
    let mut relay = JoinSet::new();
    // Answers a key with a voice without end, and is silent as soon as somebody speaks.
    relay.spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let (mut seen, mut speaking) = (Vec::new(), false);
        loop {
            let mut head = [0; 3];
            if tcp.read_exact(&mut head).await.is_err() {
                return seen;
            }
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            tcp.read_exact(&mut payload).await.unwrap();
            seen.push(head[0]);
            let loud = payload.as_chunks().0.iter().any(|pair| is_audible(i16::from_le_bytes(*pair)));
            speaking = (speaking || head[0] == 3) && !(head[0] == 0x10 && loud);
            if speaking && head[0] == 0x10 {
                let mut frame = vec![0x10, 1, 64];
                frame.extend(voice(8_000).iter().take(160).flat_map(|sample| sample.to_le_bytes()));
                tcp.write_all(&frame).await.unwrap();
            }
        }
    });
    let outcome = drive(&address, setup, person, LONGEST, |_, _| {}).await.unwrap();
    let summary = outcome.summary;
    assert_eq!((summary.ended.who, summary.violations.len()), (Who::Caller, 0), "{summary:?}");
    assert!(summary.heard >= Duration::from_millis(300), "{summary:?}");
    // The frame on its way, and the one that sounds.
    assert!(matches!(summary.silenced.as_slice(), [silenced] if *silenced < Duration::from_millis(200)), "{summary:?}");
    let seen = relay.join_next().await.unwrap().unwrap();
    assert_eq!((seen[0], seen.iter().filter(|kind| **kind == 3).count()), (1, 1));
}

#[tokio::test]
async fn nobody_there_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    for (address, provider) in [
        (Address::Tcp(address.clone()), Provider::AudioSocket),
        (
            Address::WebSocket {
                url: format!("ws://{address}/"),
                subprotocol: None,
                headers: Vec::new(),
                roots: Vec::new(),
            },
            Provider::Twilio,
        ),
    ] {
        let setup = Setup::new(provider, 1);
        let person = says(&setup, Vec::new());
        let error = drive(&address, setup, person, LONGEST, |_, _| {}).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot connect to 127.0.0.1:"), "{error}");
    }
}
