//! What must never be seen: while these tests run, every line that any relay of this process logs at `trace` is searched for
//! every secret and every word that was planted. One find ends the whole run.
use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, process::Command, time};
use voxrelay::{
    cli::logs,
    config::{Credentials, LogConfig, LogFormat, Secret},
    sim::{Faults, Sim, SimConfig},
};

use crate::support::{API_KEY, Answer, Client, Got, Raw, Rig, answer, tenant, until};

static PLANTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LINES: Mutex<u64> = Mutex::new(0);
/// Warnings of all relays of this process.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn planted() -> MutexGuard<'static, Vec<String>> {
    PLANTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This must be seen nowhere from now on: neither as it is nor in base64 or hexadecimal.
pub(crate) fn plant(secret: &str) {
    let mut planted = planted();
    if planted.iter().all(|known| known != secret) {
        planted.extend(forms(secret.as_bytes()));
        planted.push(secret.to_owned());
    }
}

fn forms(bytes: &[u8]) -> [String; 2] {
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // In base64 it depends on what stands before it; the middle of it does not.
    [STANDARD.encode(bytes).trim_end_matches('=').to_owned(), hex]
}

/// What of a text was planted, if anything.
fn found(text: &str) -> Option<String> {
    planted().iter().find(|canary| text.contains(*canary)).cloned()
}

/// Takes log lines and looks at each of them.
#[derive(Debug, Clone, Copy)]
struct Watcher;

impl Write for Watcher {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        *LINES.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Some(canary) = found(&String::from_utf8_lossy(line)) {
            eprintln!("a log line shows what it must not, {canary:?}: {}", String::from_utf8_lossy(line));
            std::process::abort();
        }
        if line.windows(6).any(|word| word == b"\"WARN\"") {
            let mut warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
            warnings.push(String::from_utf8_lossy(line).into_owned());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many warnings say all of this.
pub(crate) fn warned(parts: &[&str]) -> usize {
    let warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    warnings.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// From now on every line is looked at.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let config = LogConfig { format: LogFormat::Json, level: "trace".to_owned() };
        logs::install_to(&config, None, || Watcher).unwrap();
    });
}

/// A pattern that no codec makes by chance.
fn pattern() -> Vec<u8> {
    b"\x5A\x17\xC3\x2E\x91\x6D".repeat(800)
}

const WORDS: &str = "xylophone-marmalade-7719";

/// Everything where input can be, with canaries in it; the answers.
async fn plant_everywhere(rig: &Rig, key: &str) -> Vec<Answer> {
    let pcm = pattern();
    plant(WORDS);
    planted().push(STANDARD.encode(&pcm[..30]));
    planted().extend(forms(&pcm[..30]));
    let token = rig.token(key, json!({"user": WORDS})).await;
    let mut answers = Vec::new();
    // Calls: audio, words, tools, credentials, nonsense.
    let mut call = rig.dial("/v1/voice?turns=manual", &token).await.unwrap();
    call.audio(&pcm).await;
    for text in [
        json!({"type": "text", "text": WORDS}).to_string(),
        json!({"type": "tool_result", "call_id": WORDS, "output": WORDS}).to_string(),
        json!({"type": "token", "token": key}).to_string(),
        json!({"type": "token", "token": WORDS}).to_string(),
        json!({"type": WORDS}).to_string(),
        json!({"type": "played", "reply": WORDS, "ms": "x"}).to_string(),
        format!("{{{WORDS}"),
        json!({"type": "commit"}).to_string(),
    ] {
        call.json(&text).await;
    }
    call.until("reply_ended").await;
    let mut openai = rig.dial("/v1/realtime", key).await.unwrap();
    openai.until("session.created").await;
    for event in [
        json!({"type": "session.update", "session": {"type": "realtime", "instructions": WORDS, "audio": {"input": {"turn_detection": null}}}}),
        json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(&pcm)}),
        json!({"type": "input_audio_buffer.commit"}),
        json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": WORDS}]}}),
        json!({"type": WORDS, "event_id": WORDS}),
        json!({"type": "response.create", "response": {"instructions": WORDS}}),
    ] {
        openai.json(&event.to_string()).await;
    }
    openai.until("response.done").await;
    // Heads and bodies.
    for path in [
        format!("/v1/voice?token={key}"),
        format!("/v1/voice?token={token}&agent={WORDS}"),
        format!("/v1/voice?format={WORDS}&token={token}"),
        format!("/v1/realtime?model={WORDS}&token={token}"),
        format!("/v1/realtime?call_id={WORDS}&token={token}"),
        format!("/{WORDS}?token={token}"),
    ] {
        answers.push(rig.ask("GET", &path, "").await);
    }
    for (path, body) in [
        ("/v1/tokens", json!({"user": WORDS, WORDS: 1})),
        ("/v1/realtime/client_secrets", json!({"session": {"type": "realtime", "instructions": WORDS, WORDS: 1}})),
        ("/v1/realtime/client_secrets", json!({"session": {"type": WORDS}})),
        ("/v1/realtime/calls/rtc_x/refer", json!({"target_uri": WORDS})),
    ] {
        answers.push(rig.post(path, key, body).await);
    }
    let secret = rig.post("/v1/realtime/client_secrets", key, json!({})).await;
    let value = secret.json()["value"].as_str().unwrap().to_owned();
    plant(&value);
    let offer = format!("v=0\r\ns={WORDS}\r\nm=audio 9 X 111\r\na=mid:0\r\na=rtpmap:111 opus/48000/2\r\n");
    let sdp = rig.request("POST", "/v1/realtime/calls", &value).header("content-type", "application/sdp");
    answers.push(answer(sdp.header("idempotency-key", WORDS).body(offer)).await);
    let odd = rig.request("GET", "/v1/limits", key).header("x-forwarded-for", WORDS).header("cookie", WORDS);
    answers.push(answer(odd.header("referer", WORDS).header("origin", format!("http://{}", rig.relay.addr()))).await);
    drop((call, openai));
    answers
}

#[tokio::test]
async fn nothing_that_was_planted_is_ever_shown() {
    let mut key = String::new();
    let faults = "[[fault]]\nkind = \"error\"\nsession = 1\nresponse = 1\nmessage = \"Incorrect API key provided: sk-test-0f1e2d3c4b5a69788796a5b4c3d2e1f0 xylophone-marmalade-7719\"\n\
                  [[fault]]\nkind = \"refuse\"\nsession = 4\nstatus = 401\nbody = \"{\\\"error\\\":{\\\"code\\\":\\\"xylophone-marmalade-7719\\\",\\\"message\\\":\\\"sk-test-0f1e2d3c4b5a69788796a5b4c3d2e1f0\\\"}}\"\n";
    let change = |c: &mut voxrelay::config::Config| {
        c.upstream.credentials = Credentials::Ephemeral;
        c.auth.safety_secret = Some(Secret::new("0123456789abcdef0123456789abcdef"));
        key = tenant(c, "acme", |_| {});
    };
    let rig = Rig::with(change, SimConfig::default(), faults).await;
    let before = *LINES.lock().unwrap();
    let answers = plant_everywhere(&rig, &key).await;
    assert!(*LINES.lock().unwrap() > before + 20, "the watcher sees lines");
    for got in answers {
        // What a client itself has said may come back to it where it says what was wrong; secrets never do.
        let shown = found(&got.text).filter(|canary| canary != WORDS);
        assert_eq!(shown, None, "{}", got.text);
    }
    // A refused account, whose service quotes the key.
    let quotes = "[[fault]]\nkind = \"refuse\"\nstatus = 401\nbody = \"{\\\"error\\\":{\\\"code\\\":\\\"xylophone-marmalade-7719\\\",\\\"message\\\":\\\"sk-test-0f1e2d3c4b5a69788796a5b4c3d2e1f0\\\"}}\"\n";
    let poor = Rig::with(|_| {}, SimConfig::default(), quotes).await;
    for path in ["/v1/voice", "/v1/realtime"] {
        let mut refused = poor.dial(path, "").await.unwrap();
        loop {
            match refused.next().await {
                Got::Json(message) => assert_eq!(found(&message.to_string()), None, "{message}"),
                Got::Audio(_) => {}
                Got::Closed(_) | Got::Lost => break,
            }
        }
    }
    rig.relay.drain(std::future::ready(())).await;
}

/// The same in a process of its own, with everything that it prints, its metrics, and a configuration that is printed.
#[tokio::test]
async fn a_process_shows_nothing_either() {
    let sim = Sim::start("127.0.0.1:0".parse().unwrap(), SimConfig::default(), Faults::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.toml");
    let (key, hashed) = crate::support::new_key("k", &voxrelay::config::Scope::all(), None);
    let signing = "signing-key-0123456789abcdef0123456789abcdef";
    plant(signing);
    plant(API_KEY);
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"{}\"\napi_key = \"{API_KEY}\"\ncredentials = \"ephemeral\"\n\
         [log]\nlevel = \"trace\"\n[store]\nfile = \"\"\n[ledger]\nfile = \"\"\n[auth]\nsafety_secret = \"{signing}\"\n[[auth.signing_keys]]\nid = \"a\"\nsecret = \"{signing}\"\n\
         [tenants.acme]\n[[tenants.acme.keys]]\nlabel = \"k\"\nhash = \"{}\"\nscopes = [\"call\", \"token\", \"secret\", \"sip\", \"admin\"]\n",
        sim.base_url(),
        hashed.hash
    );
    tokio::fs::write(&file, config).await.unwrap();
    let program = env!("CARGO_BIN_EXE_voxrelay");
    let checked =
        Command::new(program).args(["check", "--upstream", "--config"]).arg(&file).env("RUST_LOG", "trace").output();
    let checked = checked.await.unwrap();
    let mut serve = Command::new(program)
        .args(["serve", "--config"])
        .arg(&file)
        .env("RUST_LOG", "trace")
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(serve.stdout.take().unwrap()));
    let listening = time::timeout(crate::support::PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let addr: std::net::SocketAddr = listening.rsplit('/').next().unwrap().parse().unwrap();
    let bearer = format!("Bearer {key}");
    let mut call = Client::dial(addr, "/v1/voice?turns=manual", &[("authorization", &bearer)]).await.unwrap();
    call.audio(&pattern()).await;
    call.json(&json!({"type": "text", "text": WORDS}).to_string()).await;
    call.until("reply_ended").await;
    plant(WORDS);
    let mut raw = Raw::connect(addr).await;
    let metrics = raw.request("GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(metrics.contains("voxrelay_secrets_made_total 1"), "{metrics}");
    raw.tcp.write_all(format!("GET /{WORDS} NONSENSE\r\n{API_KEY}\r\n\r\n").as_bytes()).await.unwrap();
    until("it has logged", || std::fs::metadata(dir.path().join("log")).unwrap().len() > 500).await;
    serve.kill().await.unwrap();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("call started"), "{log}");
    let printed = [&checked.stdout, &checked.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(printed[0].contains("(redacted)") && printed[0].contains("verdict"), "{printed:?}");
    for text in [log, metrics, listening, printed.concat()] {
        assert_eq!(found(&text), None, "{text}");
    }
}

#[test]
fn the_watcher_finds_what_was_planted_in_every_form() {
    plant("needle-in-the-hay-42");
    for text in [
        "x needle-in-the-hay-42 y".to_owned(),
        STANDARD.encode("needle-in-the-hay-42"),
        format!("{:?}", forms(b"needle-in-the-hay-42")[1]),
    ] {
        assert!(found(&text).is_some(), "{text}");
    }
    assert_eq!(found("hay"), None);
}
