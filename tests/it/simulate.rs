//! `voxrelay phone simulate`: the command as a person types it, against a relay of a few lines.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    thread,
};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message};
use voxrelay::provider::webhook::twilio_signature;

use crate::commands::{run, voxrelay};

const KEY: &str = "12345";
const PUBLIC: &str = "https://relay.example.com";

/// One HTTP request: its head in lower case where that matters not, and its body.
fn request(tcp: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        tcp.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head
        .to_lowercase()
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    tcp.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Answers the voice webhook, then plays a second of a tone on the stream when half a second of speech has come.
fn relay(listener: &TcpListener, answer: &str) -> (String, String, Vec<Value>) {
    let (mut tcp, _) = listener.accept().unwrap();
    let (head, body) = request(&mut tcp);
    write!(tcp, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}", answer.len()).unwrap();
    drop(tcp);
    let (tcp, _) = listener.accept().unwrap();
    let mut signature = String::new();
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let mut ws = tungstenite::accept_hdr(tcp, |request: &tungstenite::handshake::server::Request, response| {
        signature = request.headers()["x-twilio-signature"].to_str().unwrap().to_owned();
        Ok(response)
    })
    .unwrap();
    assert_eq!(signature, twilio_signature(KEY, "wss://relay.example.com/phone/main/stream", &[]));
    let mut seen: Vec<Value> = Vec::new();
    while let Ok(message) = ws.read() {
        let Message::Text(text) = message else { continue };
        seen.push(serde_json::from_str(&text).unwrap());
        if seen.len() == 300 {
            let stream = &seen[1]["streamSid"];
            // A square wave in mu-law: 0x8F and 0x0F are loud and opposite.
            let payload = format!("{}{}", "j4+P".repeat(2), "Dw8P".repeat(2)).repeat(667);
            let media = json!({ "event": "media", "streamSid": stream, "media": { "payload": payload } });
            ws.send(Message::Text(media.to_string().into())).unwrap();
            let mark = json!({ "event": "mark", "streamSid": stream, "mark": { "name": "1:item:1000" } });
            ws.send(Message::Text(mark.to_string().into())).unwrap();
        }
    }
    (head, body, seen)
}

#[test]
fn a_stranger_hears_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let voice = format!("http://{}/phone/main/voice", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (heard, wire): (PathBuf, PathBuf) = (folder.path().join("heard.wav"), folder.path().join("wire.jsonl"));
    let answer = r#"<?xml version="1.0" encoding="UTF-8"?><Response><Connect><Stream url="wss://relay.example.com/phone/main/stream"><Parameter name="token" value="relay-token-1" /></Stream></Connect></Response>"#;
    let server = thread::spawn(move || relay(&listener, answer));
    let (code, out, error) = run(voxrelay()
        .args(["phone", "simulate", "twilio", "--audio", "assets/hello.wav", "--press", "5", "--quiet", "1"])
        .args(["--quirk", "stop-twice", "--quirk", "swap=50", "--delay", "10"])
        .args(["--voice-url", &voice, "--public-url", PUBLIC, "--auth-token", KEY])
        .arg("--out")
        .arg(&heard)
        .arg("--wire")
        .arg(&wire));
    let (head, body, seen) = server.join().unwrap();
    assert_eq!(code, 0, "{out}\n{error}");
    for want in [
        "calls +13125550101 as twilio",
        "token (13 characters)",
        "the caller has spoken 5.4 s",
        "the caller presses 5",
        "ms after the caller's last word",
        "ended by the caller",
        "heard         1.0 s",
        "; 2 stop messages",
        "1 played, 0 brought back by 0 clears",
    ] {
        assert!(out.contains(want), "{want}: {out}");
    }
    assert!(!out.contains("relay-token-1"), "the token is nobody's to read");
    // What was signed is the public address and the form.
    let form: Vec<(String, String)> = form(&body);
    let pairs: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let signature = twilio_signature(KEY, "https://relay.example.com/phone/main/voice", &pairs);
    assert!(head.contains(&format!("x-twilio-signature: {signature}")), "{head}");
    assert_eq!(seen[1]["start"]["customParameters"], json!({ "token": "relay-token-1" }));
    assert!(seen.iter().any(|message| message["event"] == "dtmf" && message["dtmf"]["digit"] == "5"));
    let tape = hound::WavReader::open(&heard).unwrap();
    assert_eq!(tape.spec().sample_rate, 8_000);
    assert!(
        tape.into_samples::<i16>().filter(|sample| sample.as_ref().unwrap().unsigned_abs() > 1_000).count() > 7_900
    );
    let wire = std::fs::read_to_string(wire).unwrap();
    assert_eq!(wire.lines().filter(|line| line.contains("app->provider")).count(), 2);
}

fn form(body: &str) -> Vec<(String, String)> {
    let decode = |text: &str| text.replace("%2B", "+");
    body.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (decode(name), decode(value))).collect()
}

#[test]
fn what_can_never_work_is_told_before_any_call() {
    for (args, want) in [
        (vec!["nobody", "--url", "ws://h/"], "there is no provider `nobody`; known: twilio"),
        (vec!["twilio"], "--voice-url"),
        (vec!["twilio", "--url", "http://h/"], "its scheme is neither ws nor wss"),
        (vec!["twilio", "--voice-url", "h/voice"], "begins with http://"),
        (vec!["audiosocket", "--url", "ws://h/"], "audiosocket wants it"),
        (vec!["twilio", "--url", "ws://h/", "--codec", "l16"], "twilio cannot carry L16 8000 Hz"),
        (vec!["twilio", "--url", "ws://h/", "--quirk", "hiccup"], "`hiccup` is no quirk; known: pauses"),
        (vec!["twilio", "--voice-url", "http://h/", "--url", "ws://h/"], "the webhook's answer names the stream"),
    ] {
        let (code, out, error) = run(voxrelay().args(["phone", "simulate", "--audio", "assets/hello.wav"]).args(&args));
        assert!(code == 2 && error.contains(want), "{args:?}: {code} {out} {error}");
    }
}
