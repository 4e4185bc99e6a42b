//! Telephones are called: from the request at `/v1/dial` to the callee's ear, with the simulator's providers on the other side.
#[path = "dial/transfer.rs"]
mod transfer;

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use aws_lc_rs::{encoding::AsDer as _, rsa};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{self, Instant};
use voxrelay::{
    config::{Config, NumberConfig, PhoneAccountConfig, Scope, Secret},
    provider::{Provider, Setup, webhook},
    sim::{SimConfig, carrier::Dialled},
    wall::unix_now,
};

use crate::support::{Answer, PATIENCE, Rig, answer, tenant, tenant_with, until};

const AUTH: &str = "tok_7a6b5c4d3e2f1a0b";
const CALLER: &str = "+15550199";
/// Providers whose calls are begun in different ways.
const KINDS: [&str; 7] = ["twilio", "telnyx", "plivo", "vonage", "asterisk", "signalwire", "jambonz"];

/// A relay with an account at every provider, and two tenants.
struct World {
    rig: Rig,
    acme: String,
    other: String,
    _files: tempfile::TempDir,
}

/// An RSA key as Vonage's dashboard gives it out.
fn write_key(file: &Path) {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let der = STANDARD.encode(pair.as_der().unwrap().as_ref());
    let lines: Vec<&str> = der.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    std::fs::write(file, format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
        .unwrap();
}

fn accounts(config: &mut Config, addr: SocketAddr, key: &Path) {
    let sim = config.upstream.url.as_deref().unwrap().trim_end_matches("/v1").to_owned();
    let secret = |text: &str| Some(Secret::new(text));
    config.server.listen = addr;
    config.phone.public_url = Some(format!("http://{addr}"));
    for kind in KINDS {
        let mut account = PhoneAccountConfig {
            account: Some("account-1".into()),
            api_url: Some(sim.clone()),
            caller: Some(CALLER.into()),
            ..PhoneAccountConfig::default()
        };
        match kind {
            "twilio" | "plivo" | "signalwire" => account.auth_token = secret(AUTH),
            "telnyx" => {
                account.public_key = Some("6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=".into());
                account.api_key = secret("KEY_0102");
                account.connection_id = Some("1".into());
            }
            "vonage" => {
                account.signing_key = secret("voxrelay-sim");
                account.private_key = Some(key.to_owned());
            }
            "jambonz" => {
                account.signing_key = secret("voxrelay-sim");
                account.api_key = secret("key-0102");
            }
            _ => {
                account.stream_password = secret("voxrelay-sim");
                account.api_key = secret("word-0102");
                account.api_url = Some(format!("{sim}/ari"));
                account.endpoint = Some("PJSIP/{number}@trunk".into());
                account.context = Some("voxrelay".into());
            }
        }
        config.phone.accounts.insert(kind.to_owned(), account);
    }
}

/// The relay must know how it is reached before it listens: a port that the system gives to nobody by itself.
pub(crate) fn address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let own = u16::try_from(std::process::id() % 400).unwrap() * 25;
        let port = 20_000 + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

async fn world(sim: impl FnOnce(&mut SimConfig), relay: impl FnOnce(&mut Config)) -> World {
    let files = tempfile::tempdir().unwrap();
    let key = files.path().join("vonage.pem");
    write_key(&key);
    let addr = address();
    let mut service = SimConfig::instant();
    service.carrier.ring_ms = 150;
    service.carrier.quiet_ms = 600;
    service.carrier.asterisk_stream = Some(format!("ws://{addr}/phone/asterisk/stream"));
    sim(&mut service);
    let (mut acme, mut other) = (String::new(), String::new());
    let change = |c: &mut Config| {
        accounts(c, addr, &key);
        c.phone.dial.prefixes = vec!["+1555".into()];
        c.phone.dial.per_minute = 100;
        c.agents.get_mut("default").unwrap().greeting = Some("Good day! You are called.".into());
        acme = tenant(c, "acme", |_| {});
        other = tenant(c, "other", |_| {});
        relay(c);
    };
    let rig = Rig::with(change, service, "").await;
    World { rig, acme, other, _files: files }
}

impl World {
    async fn dial(&self, body: Value) -> Answer {
        self.rig.post("/v1/dial", &self.acme, body).await
    }

    /// Begins a call that must begin; its id.
    async fn begin(&self, account: &str, number: &str) -> String {
        let begun = self.dial(json!({"to": number, "account": account, "ring_s": 5, "detect_machine": true})).await;
        assert_eq!(begun.status, 201, "{account}: {}", begun.text);
        let shown = begun.json();
        let id = shown["dial"].as_str().unwrap().to_owned();
        assert_eq!(begun.header("location"), format!("/v1/dial/{id}"));
        assert_eq!((shown["to"].as_str(), shown["from"].as_str()), (Some(number), Some(CALLER)));
        assert_eq!((shown["account"].as_str(), shown["agent"].as_str()), (Some(account), Some("default")));
        assert!(shown["call"].is_string(), "{shown}");
        id
    }

    /// A provider posts a form.
    async fn posts(&self, provider: Provider, target: &str, form: &[(&str, &str)], signed: bool) -> Answer {
        let url = format!("http://{}{target}", self.rig.relay.addr());
        let key = AUTH.into();
        let setup = Setup::new(provider, 1);
        let request = webhook::posted(&setup, &url, form, signed.then_some(&key), unix_now()).unwrap();
        let webhook::Body::Posted(body) = request.body else { panic!("{provider:?} posts") };
        let mut asked = self.rig.request("POST", target, "").body(body);
        for (name, value) in &request.headers {
            use secrecy::ExposeSecret as _;
            asked = asked.header(*name, value.expose_secret());
        }
        answer(asked).await
    }

    async fn shown(&self, id: &str) -> Value {
        let got = self.rig.ask("GET", &format!("/v1/dial/{id}"), &self.acme).await;
        assert_eq!(got.status, 200, "{}", got.text);
        got.json()
    }

    /// Waits until the call is in this state; what is told of it then.
    async fn until(&self, id: &str, state: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = self.shown(id).await;
            if shown["state"] == state {
                return shown;
            }
            assert!(Instant::now() < end && shown["state"] != "ended", "not {state}: {shown}");
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The provider's view of a call, once it is over.
    async fn over(&self, shown: &Value) -> Dialled {
        let find = || self.rig.sim.carrier().calls.into_iter().find(|call| shown["call"] == *call.call);
        until("the end at the provider", || find().is_some_and(|call| call.over)).await;
        find().unwrap()
    }

    fn count(&self, act: &str) -> usize {
        self.rig.sim.carrier().count(act)
    }
}

#[tokio::test]
async fn who_is_called_hears_the_agent_and_hangs_up() {
    let world = &world(|_| {}, |_| {}).await;
    let calls = KINDS.map(async |kind| {
        let id = world.begin(kind, "+15550100").await;
        let shown = world.until(&id, "ended").await;
        let seen = world.over(&shown).await;
        assert_eq!(
            (shown["reason"].as_str(), shown["ended_by"].as_str()),
            (Some("completed"), Some("callee")),
            "{kind}: {shown} {seen:?}"
        );
        assert!(shown["duration_s"].is_u64() && shown["voice_call"].is_string(), "{kind}: {shown}");
        assert!(seen.heard_ms > 300, "{kind}: the greeting is heard: {seen:?}");
        assert_eq!((seen.ended_by, seen.problem.as_deref()), ("caller", None), "{kind}: {seen:?}");
        assert!(seen.violations.is_empty() && seen.refused.is_empty(), "{kind}: {seen:?}");
        assert_eq!(seen.told.is_empty(), kind == "asterisk", "{kind}: it is told all steps: {seen:?}");
        assert_eq!((seen.to.as_str(), seen.from.as_str()), ("+15550100", CALLER));
    });
    join_all(calls).await;
    assert_eq!((world.count("dial"), world.count("refused")), (KINDS.len(), 0), "{:?}", world.rig.sim.carrier().seen);
    assert_eq!(world.rig.ask("GET", "/v1/calls", &world.acme).await.json()["calls"], json!([]), "no line is kept");
}

#[tokio::test]
async fn whoever_asked_for_a_call_ends_it_and_so_does_the_relay() {
    let world = world(|_| {}, |_| {}).await;
    for kind in KINDS {
        let id = world.begin(kind, "+15550005").await;
        let shown = world.until(&id, "streaming").await;
        let listed = world.rig.ask("GET", "/v1/calls", &world.acme).await.json();
        assert_eq!(listed["calls"][0]["id"], shown["voice_call"], "{kind}: one name for one call: {listed}");
        let gone = world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.other).await;
        assert_eq!((gone.status, gone.code().as_str()), (404, "unknown_dial"));
        let ended = world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.acme).await;
        assert_eq!(ended.status, 200, "{kind}: {}", ended.text);
        let shown = world.until(&id, "ended").await;
        assert_eq!(
            (shown["reason"].as_str(), shown["ended_by"].as_str()),
            (Some("completed"), Some("tenant")),
            "{kind}: {shown}"
        );
        let seen = world.over(&shown).await;
        assert!(seen.refused.is_empty(), "{kind}: {seen:?}");
        assert_eq!(world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.acme).await.status, 404, "{kind}: once");
    }
    assert!(world.count("hang_up") >= KINDS.len());
    let short = &self::world(|_| {}, |c| c.tenants.get_mut("acme").unwrap().max_call_s = Some(1)).await;
    let calls = KINDS.map(async |kind| {
        let id = short.begin(kind, "+15550005").await;
        let shown = short.until(&id, "ended").await;
        assert_eq!(
            (shown["reason"].as_str(), shown["ended_by"].as_str()),
            (Some("completed"), Some("relay")),
            "{kind}: {shown}"
        );
        assert!(shown["message"].as_str().unwrap().contains("longest call time"), "{kind}: {shown}");
        // Where a stream's end does not end the call, only the relay's word does.
        short.over(&shown).await;
    });
    join_all(calls).await;
}

#[tokio::test]
async fn telephones_that_nobody_answers_end_by_themselves() {
    let world = world(|_| {}, |_| {}).await;
    let world = &world;
    let calls = KINDS.into_iter().filter(|kind| *kind != "asterisk").map(async |kind| {
        for (number, reason, by) in
            [("+15550001", "busy", "callee"), ("+15550002", "no_answer", "callee"), ("+15550003", "", "")]
        {
            let id = world.begin(kind, number).await;
            let shown = world.until(&id, "ended").await;
            if !reason.is_empty() {
                let told = (shown["reason"].as_str(), shown["ended_by"].as_str());
                assert_eq!(told, (Some(reason), Some(by)), "{kind}: {shown}");
            }
            assert_eq!((&shown["duration_s"], &shown["voice_call"]), (&Value::Null, &Value::Null), "{kind}: {shown}");
            assert!(
                ["busy", "no_answer", "rejected", "failed"].contains(&shown["reason"].as_str().unwrap()),
                "{shown}"
            );
        }
    });
    join_all(calls).await;
    assert_eq!(world.rig.sim.stats().attempts, 0, "nobody has spoken with the service");
    // While it rings it can be given up, and the provider is told.
    let id = world.begin("twilio", "+15550002").await;
    world.until(&id, "ringing").await;
    assert_eq!(world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.acme).await.status, 200);
    let shown = world.shown(&id).await;
    assert_eq!((shown["reason"].as_str(), shown["ended_by"].as_str()), (Some("canceled"), Some("tenant")));
    assert!(world.over(&shown).await.told.contains(&"canceled".to_owned()));
}

#[tokio::test]
async fn an_answering_machine_is_told() {
    let world = &world(|_| {}, |_| {}).await;
    let kinds = [("twilio", "beep"), ("telnyx", "beep"), ("plivo", "machine"), ("vonage", "beep"), ("jambonz", "beep")];
    let calls = kinds.map(async |(kind, machine)| {
        let id = world.begin(kind, "+15550004").await;
        let shown = world.until(&id, "ended").await;
        assert_eq!(shown["machine"], machine, "{kind}: {shown}");
        let seen = world.over(&shown).await;
        assert!(seen.heard_ms > 300, "{kind}: {seen:?}");
    });
    join_all(calls).await;
}

#[tokio::test]
async fn a_machine_that_is_found_while_the_call_runs_is_told_to_the_model_once() {
    let world = world(|sim| sim.record_audio = true, |_| {}).await;
    let id = world.begin("twilio", "+15550005").await;
    let shown = world.until(&id, "streaming").await;
    let call = shown["call"].as_str().unwrap();
    let finds = async |who: &str| {
        let form = [("AccountSid", "account-1"), ("AnsweredBy", who), ("CallSid", call)];
        let answer = world.posts(Provider::Twilio, "/phone/twilio/status", &form, true).await;
        assert_eq!(answer.status, 204, "{}", answer.text);
    };
    let told = || {
        let items = world.rig.sim.stats().items;
        items.iter().filter(|(_, item)| item.to_string().contains("[The line says: ")).count()
    };
    finds("machine_start").await;
    finds("machine_start").await;
    until("the model is told of the machine", || told() == 1).await;
    finds("machine_end_beep").await;
    until("the model is told of the beep", || told() == 2).await;
    assert_eq!(world.shown(&id).await["machine"], "beep");
    let items = world.rig.sim.stats().items;
    let says = |part: &str| items.iter().any(|(_, item)| item.to_string().contains(part));
    assert!(says("an answering machine has picked up") && says("what is said now is recorded"), "{items:?}");
    assert_eq!(world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.acme).await.status, 200);
    world.until(&id, "ended").await;
}

#[tokio::test]
async fn what_is_not_allowed_reaches_no_provider() {
    let mut only_calls = String::new();
    let world = world(
        |_| {},
        |c| {
            only_calls = tenant_with(c, "callers", &[Scope::Call, Scope::Admin], |_| {});
            let number = |number: &str, tenant: &str| NumberConfig {
                number: number.into(),
                account: Some("twilio".into()),
                agent: "default".into(),
                tenant: Some(tenant.into()),
            };
            c.phone.numbers = vec![number("+15550111", "acme"), number("+15550122", "other")];
            c.agents.insert("secret".into(), Default::default());
            c.tenants.get_mut("acme").unwrap().agents = vec!["default".into()];
            c.phone
                .dial
                .tenants
                .insert("other".into(), voxrelay::config::TenantDialConfig { per_minute: 1, ..Default::default() });
        },
    )
    .await;
    let to = "+15550002";
    for (body, status, code, field, part) in [
        (json!({"to": "5550100", "account": "twilio"}), 400, "invalid_message", "to", "found `5550100`; allowed: `+`"),
        (json!({"account": "twilio"}), 400, "invalid_message", "to", "found null"),
        (json!({"to": "+4930123456", "account": "twilio"}), 403, "forbidden", "to", "not among those"),
        (json!({"to": to}), 400, "invalid_message", "account", "found nothing; allowed: asterisk, jambonz, plivo"),
        (json!({"to": to, "account": "bell"}), 400, "invalid_message", "account", "found `bell`"),
        (json!({"to": to, "account": "twilio", "agent": "nobody"}), 404, "unknown_agent", "agent", "no agent"),
        (json!({"to": to, "account": "twilio", "agent": "secret"}), 403, "forbidden", "agent", "not one that"),
        (json!({"to": to, "account": "twilio", "from": "+15550122"}), 403, "forbidden", "from", "found `+15550122`"),
        (json!({"to": to, "account": "plivo", "from": "+15550111"}), 403, "forbidden", "from", "found `+15550111`"),
        (json!({"to": to, "account": "twilio", "ring_s": 1}), 400, "invalid_message", "ring_s", "found 1"),
        (json!({"to": to, "account": "twilio", "tools": []}), 400, "invalid_message", "", "unknown field `tools`"),
    ] {
        let got = world.dial(body.clone()).await;
        let error = got.json()["error"].clone();
        assert_eq!((got.status, error["code"].as_str().unwrap()), (status, code), "{body}: {}", got.text);
        assert_eq!(error["field"].as_str().unwrap_or_default(), field, "{body}");
        assert!(error["message"].as_str().unwrap().contains(part), "{body}: {error}");
    }
    let refused = world.rig.post("/v1/dial", &only_calls, json!({"to": to, "account": "twilio"})).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"));
    // A tenant's own rules take the place of all others: nobody may be called.
    let refused = world.rig.post("/v1/dial", &world.other, json!({"to": to, "account": "twilio"})).await;
    assert_eq!((refused.status, refused.json()["error"]["field"].as_str()), (403, Some("to")));
    assert_eq!(world.rig.sim.carrier().seen, [], "no provider was asked");
    // Its own number may be shown.
    let begun = world.dial(json!({"to": to, "account": "twilio", "from": "+15550111"})).await;
    assert_eq!((begun.status, begun.json()["from"].as_str()), (201, Some("+15550111")), "{}", begun.text);
    assert_eq!(world.rig.sim.carrier().calls[0].from, "+15550111");
}

#[tokio::test]
async fn rates_lines_and_budgets_are_asked_before_the_provider() {
    let world = world(
        |_| {},
        |c| {
            let own = voxrelay::config::TenantDialConfig {
                per_minute: 2,
                prefixes: vec!["+1555".into()],
                ..Default::default()
            };
            c.phone.dial.tenants.insert("acme".into(), own);
            c.tenants.get_mut("other").unwrap().max_calls = 1;
        },
    )
    .await;
    let body = json!({"to": "+15550002", "account": "twilio"});
    for _ in 0..2 {
        assert_eq!(world.dial(body.clone()).await.status, 201);
    }
    let refused = world.dial(body.clone()).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"), "{}", refused.text);
    assert!((1..=60).contains(&refused.header("retry-after").parse::<u64>().unwrap()));
    assert_eq!(world.count("dial"), 2);
    // A call that rings takes its tenant's place already: who answers must find one.
    let first = world.rig.post("/v1/dial", &world.other, body.clone()).await;
    let second = world.rig.post("/v1/dial", &world.other, body.clone()).await;
    assert_eq!((first.status, second.status, second.code().as_str()), (201, 429, "concurrency_limited"));
    assert_eq!(world.count("dial"), 3);
    let id = first.json()["dial"].as_str().unwrap().to_owned();
    assert_eq!(world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.other).await.status, 200);
    assert_eq!(world.rig.post("/v1/dial", &world.other, body).await.status, 201, "and gives it back");
}

#[tokio::test]
async fn a_provider_that_refuses_is_told_in_its_words() {
    let world = world(|_| {}, |_| {}).await;
    for kind in KINDS {
        for (number, status, code, words) in [
            ("+15550011", 502, "provider_refused", "status 401"),
            ("+15550012", 429, "rate_limited", "status 429"),
            ("+15550013", 502, "provider_refused", "a call may have begun all the same"),
        ] {
            let before = world.count("dial");
            let got = world.dial(json!({"to": number, "account": kind})).await;
            assert_eq!((got.status, got.code().as_str()), (status, code), "{kind} {number}: {}", got.text);
            assert!(got.text.contains(words) && got.text.contains(kind), "{kind} {number}: {}", got.text);
            assert!(!got.text.contains(AUTH));
            assert_eq!(got.header("retry-after"), if status == 429 { "7" } else { "" }, "{kind} {number}");
            assert_eq!(world.count("dial"), before + 1, "asked once");
        }
    }
    assert_eq!(world.rig.ask("GET", "/v1/calls", &world.acme).await.json()["calls"], json!([]), "no line is kept");
    // A wrong credential is refused by the provider, and a provider that is not there cannot refuse.
    let bad = self::world(
        |_| {},
        |c| {
            c.phone.accounts.get_mut("twilio").unwrap().auth_token = Some(Secret::new("bad-token"));
            c.phone.accounts.get_mut("plivo").unwrap().api_url = Some("http://127.0.0.1:9".into());
        },
    )
    .await;
    let got = bad.dial(json!({"to": "+15550100", "account": "twilio"})).await;
    assert_eq!((got.status, got.code().as_str()), (502, "provider_refused"), "{}", got.text);
    assert_eq!((bad.count("refused"), bad.count("dial")), (1, 0));
    let got = bad.dial(json!({"to": "+15550100", "account": "plivo"})).await;
    assert_eq!((got.status, got.code().as_str()), (502, "provider_unreachable"), "{}", got.text);
}

#[tokio::test]
async fn a_call_that_may_have_begun_is_not_begun_twice_and_is_hung_up() {
    let world = world(|s| (s.carrier.slow_ms, s.carrier.ring_ms) = (12_000, 10_500), |_| {}).await;
    let ask = || {
        let request = world.rig.request("POST", "/v1/dial", &world.acme).header("idempotency-key", "slow");
        answer(request.json(&json!({"to": "+15550014", "account": "twilio"})))
    };
    let got = ask().await;
    assert_eq!((got.status, got.code().as_str()), (504, "provider_timeout"), "{}", got.text);
    let id = got.text.split("(dial_").nth(1).unwrap().split(')').next().unwrap();
    let shown = world.shown(&format!("dial_{id}")).await;
    assert_eq!((shown["state"].as_str(), shown["reason"].as_str()), (Some("ended"), Some("unknown")), "{shown}");
    let again = ask().await;
    assert_eq!((again.status, world.count("dial")), (504, 1), "the same answer, and no second call");
    // It rings all the same. As soon as the provider says so, it is told to stop; and its token opens nothing.
    until("the end at the provider", || world.rig.sim.carrier().calls[0].over).await;
    let seen = world.rig.sim.carrier().calls[0].clone();
    assert_eq!(seen.heard_ms, 0, "{seen:?}");
    assert!(world.count("hang_up") > 0 || seen.ended_by == "relay", "{seen:?}");
    assert_eq!(world.rig.sim.stats().attempts, 0);
}

#[tokio::test]
async fn a_key_begins_one_call_however_often_it_comes() {
    let world = world(|_| {}, |_| {}).await;
    let ask = |key: &str, who: &str, to: &str| {
        let request = world.rig.request("POST", "/v1/dial", who).header("idempotency-key", key.to_owned());
        answer(request.json(&json!({"to": to, "account": "twilio"})))
    };
    let all = join_all((0..5).map(|_| ask("k1", &world.acme, "+15550002"))).await;
    let first = all[0].json()["dial"].clone();
    assert!(first.is_string() && all.iter().all(|got| got.status == 201 && got.json()["dial"] == first));
    assert_eq!(world.count("dial"), 1);
    let other = ask("k1", &world.acme, "+15550001").await;
    assert_eq!((other.status, other.code().as_str()), (409, "idempotency_error"), "{}", other.text);
    let theirs = ask("k1", &world.other, "+15550002").await;
    assert_eq!(theirs.status, 201);
    assert_ne!(theirs.json()["dial"], first, "another tenant's key is another one");
    assert_eq!(ask("", &world.acme, "+15550002").await.json()["error"]["field"], "Idempotency-Key");
    // What has begun nothing may be tried again with the same key.
    for _ in 0..2 {
        assert_eq!(ask("k2", &world.acme, "+15550012").await.status, 429);
    }
    assert_eq!(world.count("dial"), 4);
}

#[tokio::test]
async fn two_tenants_do_not_see_each_others_calls() {
    let world = world(|_| {}, |_| {}).await;
    let id = world.begin("twilio", "+15550002").await;
    for method in ["GET", "DELETE"] {
        let theirs = world.rig.ask(method, &format!("/v1/dial/{id}"), &world.other).await;
        let never = world.rig.ask(method, "/v1/dial/dial_0123456789abcdef", &world.other).await;
        assert_eq!((theirs.status, theirs.code()), (404, never.code()), "{method}: as one that never was");
    }
    assert_ne!(world.shown(&id).await["state"], "ended");
}

#[tokio::test]
async fn a_reference_that_nobody_gave_out_leads_to_nobody() {
    let world = world(
        |_| {},
        |c| {
            let all = NumberConfig {
                number: "*".into(),
                account: None,
                agent: "default".into(),
                tenant: Some("acme".into()),
            };
            c.phone.numbers.push(all);
        },
    )
    .await;
    let ask = async |target: &str, call: &str, status: &str, signed: bool| {
        let form = [("CallStatus", status), ("CallUUID", call), ("From", "15550199"), ("To", "15550100")];
        world.posts(Provider::Plivo, target, &form, signed).await
    };
    let here = ask("/phone/plivo/voice", "call-1", "in-progress", true).await;
    assert!(here.status == 200 && here.text.contains("<Stream"), "anybody may call: {}", here.text);
    let forged = format!("/phone/plivo/voice?dial={}", "f".repeat(32));
    let nobody = ask(&forged, "call-2", "in-progress", true).await;
    assert!(nobody.status == 200 && nobody.text.contains("<Hangup"), "{}", nobody.text);
    // News in a provider's name changes nothing unless it is signed.
    let id = world.begin("plivo", "+15550002").await;
    let call = world.until(&id, "ringing").await["call"].as_str().unwrap().to_owned();
    assert_eq!(ask("/phone/plivo/status", &call, "completed", false).await.status, 403);
    assert_eq!(world.shown(&id).await["state"], "ringing");
    assert_eq!(ask("/phone/plivo/status", &call, "busy", true).await.status, 204);
    assert_eq!(world.shown(&id).await["reason"], "busy");
}

#[tokio::test]
async fn a_server_that_leaves_gives_up_what_rings() {
    let world = world(|_| {}, |_| {}).await;
    let id = world.begin("twilio", "+15550002").await;
    world.until(&id, "ringing").await;
    let World { rig: Rig { relay, sim }, .. } = world;
    relay.drain(std::future::pending()).await;
    until("the provider's end", || sim.carrier().calls[0].over).await;
    assert_eq!(sim.carrier().count("hang_up"), 1);
}
