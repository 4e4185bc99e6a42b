//! Who may come in, from outside: every route with every kind of credential, tokens, limits, and the end of what was granted.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{self, Instant};
use voxrelay::{
    admit::{key, store::Store},
    audio::Codec,
    config::{KeyHash, Moment, Scope, TenantConfig},
    serve::Server,
    sim::SimConfig,
    wall::unix_now,
};

use crate::support::{Client, PATIENCE, Rig, answer, config, new_key, tenant, tenant_with, until};

/// Every route that is not for everybody, with the method that does something.
const ROUTES: [(&str, &str); 36] = [
    ("GET", "/v1/voice"),
    ("GET", "/v1/voice?resume=x&got=1"),
    ("GET", "/v1/realtime?model=gpt-realtime"),
    ("GET", "/v1/realtime?intent=transcription"),
    ("GET", "/v1/realtime?call_id=rtc_1"),
    ("GET", "/openai/v1/realtime?model=gpt-realtime"),
    ("GET", "/openai/realtime?deployment=gpt-realtime&api-version=1"),
    ("GET", "/v1/agents"),
    ("POST", "/v1/tokens"),
    ("GET", "/v1/calls"),
    ("DELETE", "/v1/calls/call_1"),
    ("POST", "/v1/calls/call_1/rotate"),
    ("GET", "/v1/limits"),
    ("GET", "/v1/usage"),
    ("POST", "/v1/dial"),
    ("GET", "/v1/dial/call_1"),
    ("DELETE", "/v1/dial/call_1"),
    ("POST", "/v1/realtime/client_secrets"),
    ("POST", "/v1/realtime/calls"),
    ("POST", "/v1/realtime/calls/rtc_1/hangup"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/rtc_1"),
    ("DELETE", "/v1/files/rtc_1"),
    ("GET", "/v1/files/rtc_1/content"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/rtc_1"),
    ("POST", "/v1/batches/rtc_1/cancel"),
    ("POST", "/openai/v1/batches"),
    ("POST", "/openai/v1/realtime/client_secrets"),
    ("POST", "/openai/v1/realtime/calls"),
    ("POST", "/openai/v1/realtime/calls/rtc_1/accept"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/openai/v1/responses"),
    ("POST", "/openai/v1/audio/transcriptions"),
];
/// What telephone providers ask for, and prove by their own signatures.
const PHONE: [&str; 4] =
    ["/phone/twilio/voice", "/phone/twilio/status", "/phone/twilio/transfer", "/phone/twilio/stream"];
/// What everybody may see.
const PUBLIC: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/"];

/// A route that nobody put into the table above would be a door that nobody tries.
#[test]
fn the_table_of_routes_is_whole() {
    let sources = [
        include_str!("../../src/serve.rs"),
        include_str!("../../src/http/batches.rs"),
        include_str!("../../src/http/broker.rs"),
        include_str!("../../src/http/calls.rs"),
        include_str!("../../src/http/dial.rs"),
        include_str!("../../src/http/tokens.rs"),
        include_str!("../../src/serve/phone.rs"),
        include_str!("../../src/http/usage.rs"),
        include_str!("../../src/http/text.rs"),
    ];
    let mut found = 0;
    for source in sources {
        for piece in source.split(".route(").skip(1) {
            let Some(path) = piece.split('"').nth(1).filter(|path| path.starts_with('/') || path.starts_with("{base}"))
            else {
                continue;
            };
            found += 1;
            let path = path.replace("{base}", "/v1").replace("{{id}}", "rtc_1").replace("/{id}", "/call_1");
            let path = path.replace("{{act}}", "hangup").replace("{account}", "twilio");
            let known = ROUTES.iter().any(|(_, known)| known.split('?').next() == Some(&path))
                || PHONE.contains(&path.as_str())
                || PUBLIC.contains(&path.as_str());
            assert!(known, "{path} is in no table");
        }
    }
    assert!(found >= 21, "{found}");
}

/// All that can be wrong with a credential, by name.
async fn wrong_credentials(
    rig: &Rig,
    good: &str,
    expired: &str,
    revoked: &str,
    other_relay: &Rig,
    other: &str,
) -> Vec<(&'static str, String)> {
    let token = rig.token(good, json!({"expires_in_s": 60})).await;
    let spent = rig.token(good, json!({"uses": 1})).await;
    drop(rig.dial("/v1/voice", &spent).await.unwrap());
    vec![
        ("none", String::new()),
        ("nonsense", "nonsense".to_owned()),
        ("another key", key::generate().expose().to_owned()),
        ("an expired key", expired.to_owned()),
        ("a revoked key", revoked.to_owned()),
        ("a key of another relay", other.to_owned()),
        ("a token of another relay", other_relay.token(other, json!({})).await),
        ("a key cut short", good[..good.len() - 1].to_owned()),
        ("a token cut short", token[..token.len() - 1].to_owned()),
        ("a client secret that nobody made", "ek_0123456789".to_owned()),
        ("a very long one", "x".repeat(6_000)),
    ]
}

#[tokio::test]
async fn every_route_is_shut_for_whoever_has_no_good_credential() {
    let (mut good, mut other) = (String::new(), String::new());
    let (expired, old) = new_key("old", &Scope::all(), Some(Moment(unix_now() - 1)));
    let rig = Rig::configured(|c| good = tenant(c, "acme", |t| t.keys.push(old))).await;
    let other_relay = Rig::configured(|c| other = tenant(c, "acme", |_| {})).await;
    let revoked = key::generate().expose().to_owned();
    let wrong = wrong_credentials(&rig, &good, &expired, &revoked, &other_relay, &other).await;
    until("the good call's session", || rig.sim.stats().sessions_opened == 1).await;
    let before = rig.sim.stats();
    let mut texts = std::collections::BTreeMap::<bool, String>::new();
    for (method, path) in ROUTES {
        for (name, credential) in &wrong {
            for upgrade in [false, true] {
                let mut request = rig.request(method, path, credential).body("v=0\r\nm=audio 9 X 0\r\n");
                if upgrade {
                    request = request
                        .header("connection", "upgrade")
                        .header("upgrade", "websocket")
                        .header("sec-websocket-version", "13")
                        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
                }
                let began = Instant::now();
                let got = answer(request).await;
                assert_eq!(got.status, 401, "{method} {path} with {name}: {}", got.text);
                assert!(began.elapsed() >= Duration::from_millis(2), "all of them take their time");
                // The text is the same for all, in either shape.
                let mut body: Value = got.json();
                let ours = body["error"].as_object_mut().unwrap().remove("request_id").is_some();
                let text = texts.entry(ours).or_insert_with(|| body.to_string());
                assert_eq!(*text, body.to_string(), "{method} {path} with {name}");
            }
        }
        // A key in a URL gets logged on its way: it is none there.
        let query = if path.contains('?') { '&' } else { '?' };
        assert_eq!(rig.ask(method, &format!("{path}{query}token={good}"), "").await.status, 401, "{path}");
    }
    let after = rig.sim.stats();
    assert_eq!(
        (after.attempts, after.mint_attempts, after.calls),
        (before.attempts, 0, 0),
        "nothing happened upstream"
    );
}

#[tokio::test]
async fn a_key_is_good_for_its_scopes_and_a_token_for_calls() {
    let mut keys = Vec::new();
    let rig = Rig::configured(|c| {
        for scope in Scope::all() {
            keys.push((scope, tenant_with(c, &format!("only-{}", scope.name()), &[scope], |_| {})));
        }
    })
    .await;
    for (scope, key) in &keys {
        for (needs, method, path) in [
            (Scope::Call, "GET", "/v1/voice"),
            (Scope::Token, "POST", "/v1/tokens"),
            (Scope::Secret, "POST", "/v1/realtime/client_secrets"),
            (Scope::Secret, "POST", "/v1/realtime/calls"),
            (Scope::Secret, "POST", "/v1/realtime/calls/rtc_1/hangup"),
            (Scope::Sip, "POST", "/v1/realtime/calls/rtc_1/accept"),
            (Scope::Sip, "POST", "/v1/realtime/calls/rtc_1/reject"),
            (Scope::Admin, "GET", "/v1/calls"),
            (Scope::Admin, "DELETE", "/v1/calls/call_1"),
            (Scope::Admin, "POST", "/v1/calls/call_1/rotate"),
            (Scope::Admin, "GET", "/v1/usage"),
            (Scope::Text, "POST", "/v1/files"),
            (Scope::Text, "GET", "/v1/files/file-1"),
            (Scope::Text, "DELETE", "/v1/files/file-1"),
            (Scope::Text, "GET", "/v1/files/file-1/content"),
            (Scope::Text, "POST", "/v1/batches"),
            (Scope::Text, "GET", "/v1/batches"),
            (Scope::Text, "GET", "/v1/batches/batch_1"),
            (Scope::Text, "POST", "/v1/batches/batch_1/cancel"),
            (Scope::Dial, "POST", "/v1/dial"),
            (Scope::Dial, "GET", "/v1/dial/dial_1"),
            (Scope::Dial, "DELETE", "/v1/dial/dial_1"),
            (Scope::Text, "POST", "/v1/responses"),
            (Scope::Text, "POST", "/v1/audio/transcriptions"),
        ] {
            let got = rig.ask(method, path, key).await;
            assert_eq!(
                got.status == 403,
                *scope != needs,
                "{method} {path} with {scope:?}: {} {}",
                got.status,
                got.text
            );
        }
    }
    let key = &keys.iter().find(|(scope, _)| *scope == Scope::Token).unwrap().1;
    let token = rig.token(key, json!({})).await;
    assert_eq!(rig.ask("GET", "/v1/voice", &token).await.status, 200, "what it was made for");
    for (method, path) in [
        ("POST", "/v1/tokens"),
        ("GET", "/v1/calls"),
        ("GET", "/v1/limits"),
        ("GET", "/v1/usage"),
        ("POST", "/v1/dial"),
        ("GET", "/v1/dial/dial_1"),
        ("POST", "/v1/realtime/client_secrets"),
        ("POST", "/v1/realtime/calls"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/audio/transcriptions"),
    ] {
        assert_eq!(rig.ask(method, path, &token).await.status, 403, "{path}");
    }
    let direct = rig.post("/v1/tokens", key, json!({"direct": true})).await;
    assert_eq!((direct.status, direct.json()["error"]["field"].as_str()), (403, Some("direct")), "the key could not");
}

#[tokio::test]
async fn pages_for_telephone_providers_are_shut_for_whoever_is_none() {
    let mut key = String::new();
    let rig = Rig::configured(|c| {
        key = tenant(c, "acme", |_| {});
        c.phone.public_url = Some("https://relay.example.com".into());
        let account = voxrelay::config::PhoneAccountConfig {
            account: Some("AC1".into()),
            auth_token: Some(voxrelay::config::Secret::new("tok_4f1e2d3c4b5a6978")),
            ..Default::default()
        };
        c.phone.accounts.insert("twilio".into(), account);
    })
    .await;
    for path in PHONE {
        for method in ["GET", "POST"] {
            for credential in ["", "nonsense", key.as_str()] {
                let mut request = rig.request(method, path, credential);
                request = request.header("x-twilio-signature", "bm9uc2Vuc2Vub25zZW5zZW5v");
                let got = answer(request.body("CallSid=CA1&To=%2B15550100")).await;
                let want = if path.ends_with("stream") && method == "POST" { 405 } else { 403 };
                assert_eq!(got.status, want, "{method} {path} with {credential:?}: {}", got.text);
                assert!(want != 405 || got.text.contains("takes no POST"), "{method} {path}: {}", got.text);
            }
        }
        let other = path.replace("twilio", "telnyx");
        assert_eq!(rig.ask("GET", &other, "").await.status, 404, "{other}: there is no such account");
    }
    assert_eq!(rig.sim.stats().attempts, 0, "nothing happened upstream");
}

#[tokio::test]
async fn a_credential_comes_by_header_subprotocol_or_query() {
    let mut key = String::new();
    let rig = Rig::configured(|c| key = tenant(c, "acme", |_| {})).await;
    let token = rig.token(&key, json!({})).await;
    let addr = rig.relay.addr();
    let bearer = format!("bearer {token}");
    for (path, headers) in [
        ("/v1/voice", vec![("authorization", bearer.clone())]),
        ("/v1/voice", vec![("sec-websocket-protocol", format!("voxrelay.v1, voxrelay.token.{token}"))]),
        ("/v1/voice", vec![("api-key", key.clone())]),
        ("/v1/realtime", vec![("sec-websocket-protocol", format!("realtime, openai-insecure-api-key.{token}"))]),
        ("/v1/realtime", vec![("authorization", format!("Bearer {key}"))]),
        ("/openai/realtime?deployment=gpt-realtime", vec![("api-key", key.clone())]),
    ] {
        let headers: Vec<(&'static str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert!(Client::dial(addr, path, &headers).await.is_ok(), "{path} {headers:?}");
    }
    for path in ["/v1/voice", "/v1/realtime"] {
        assert!(Client::dial(addr, &format!("{path}?token={token}"), &[]).await.is_ok(), "{path}");
        let wrong = [("authorization", "Bearer nonsense")];
        let first = Client::dial(addr, &format!("{path}?token={token}"), &wrong).await;
        assert_eq!(first.err().map(|(status, _)| status), Some(401), "the first one counts");
    }
}

#[tokio::test]
async fn a_token_grants_what_it_says_and_no_more() {
    let mut key = String::new();
    let rig = Rig::configured(|c| {
        c.agents.insert("support".into(), Default::default());
        key = tenant(c, "acme", |t| {
            t.formats = vec![Codec::Pcm16, Codec::Opus];
            t.max_call_s = Some(1_000);
            t.origins = vec!["https://app.example".into(), "https://b.example".into()];
        });
    })
    .await;
    // The agent.
    let token = rig.token(&key, json!({"agent": "support", "max_call_s": 77, "formats": ["pcm16"]})).await;
    let mut call = rig.dial("/v1/voice", &token).await.unwrap();
    let ready = call.json_next().await;
    assert_eq!((ready["agent"].as_str(), ready["limits"]["max_call_s"].as_u64()), (Some("support"), Some(77)));
    for (path, status, code) in [
        ("/v1/voice?agent=default", 403, "forbidden"),
        ("/v1/voice?agent=nobody", 404, "unknown_agent"),
        ("/v1/voice?format=opus", 403, "forbidden"),
        ("/v1/voice?out_format=mulaw", 403, "forbidden"),
        ("/v1/realtime?agent=default", 403, "forbidden"),
    ] {
        assert_eq!(rig.dial(path, &token).await.err(), Some((status, code.to_owned())), "{path}");
    }
    // A token cannot grant more than its tenant has.
    let long = rig.token(&key, json!({"max_call_s": 5_000, "formats": ["mulaw"]})).await;
    assert_eq!(rig.dial("/v1/voice?format=mulaw", &long).await.err(), Some((403, "forbidden".to_owned())));
    let long = rig.token(&key, json!({"max_call_s": 5_000})).await;
    assert_eq!(rig.dial("/v1/voice", &long).await.unwrap().json_next().await["limits"]["max_call_s"], 1_000);
    // The origin.
    let bound = rig.token(&key, json!({"origin": "https://app.example"})).await;
    let free = rig.token(&key, json!({})).await;
    let own = format!("http://{}", rig.relay.addr());
    for (token, origin, good) in [
        (&bound, "https://app.example", true),
        (&bound, "https://b.example", false),
        (&bound, own.as_str(), false),
        (&bound, "", false),
        (&free, "https://b.example", true),
        (&free, own.as_str(), true),
        (&free, "", true),
        (&free, "https://evil.example", false),
        (&free, "http://localhost:3000", false),
        (&free, "null", false),
    ] {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend((!origin.is_empty()).then_some(("origin", origin)));
        for path in ["/v1/voice", "/v1/realtime"] {
            let got = Client::dial(rig.relay.addr(), path, &headers).await;
            let want = if good { None } else { Some((403, "forbidden".to_owned())) };
            assert_eq!(got.err(), want, "{path} from {origin:?}");
        }
    }
}

#[tokio::test]
async fn a_token_is_used_as_often_as_it_may_be_also_by_many_at_once() {
    let mut key = String::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.db");
    for store in [None, Some(file)] {
        let rig = Rig::configured(|c| {
            c.store.file = store.clone();
            key = tenant(c, "acme", |_| {});
        })
        .await;
        let token = rig.token(&key, json!({"uses": 3})).await;
        for _ in 0..5 {
            assert_eq!(rig.ask("GET", "/v1/voice", &token).await.status, 200, "asking uses nothing");
        }
        let dials = (0..10).map(|n| {
            let (rig, token) = (&rig, &token);
            async move { rig.dial(if n % 2 == 0 { "/v1/voice" } else { "/v1/realtime" }, token).await }
        });
        let dialled = futures_util::future::join_all(dials).await;
        assert_eq!(dialled.iter().filter(|call| call.is_ok()).count(), 3, "{store:?}");
        assert!(dialled.iter().filter_map(|call| call.as_ref().err()).all(|(status, _)| *status == 401));
        let Some(store) = store else { continue };
        // A restart forgets nothing.
        let again = Rig::configured(|c| {
            c.tenants.insert("acme".into(), TenantConfig { keys: vec![key_config(&key)], ..TenantConfig::default() });
            c.store.file = Some(store);
        })
        .await;
        assert_eq!(again.dial("/v1/voice", &token).await.err().map(|(status, _)| status), Some(401));
        let fresh = rig.token(&key, json!({"uses": 1})).await;
        assert!(again.dial("/v1/voice", &fresh).await.is_ok(), "relays with one store take each other's tokens");
    }
}

fn key_config(text: &str) -> voxrelay::config::KeyConfig {
    voxrelay::config::KeyConfig {
        label: "k".into(),
        hash: key::hash(text),
        expires: None,
        scopes: Scope::all(),
        budget: None,
    }
}

#[tokio::test]
async fn a_call_ends_with_its_token_unless_it_is_renewed() {
    let (mut key, mut other) = (String::new(), String::new());
    let rig = Rig::configured(|c| {
        key = tenant(c, "acme", |_| {});
        other = tenant(c, "other", |_| {});
    })
    .await;
    let short = json!({"expires_in_s": 5, "user": "u1"});
    let token = rig.token(&key, short.clone()).await;
    let mut renewed = rig.dial("/v1/voice", &token).await.unwrap();
    let mut thin = rig.dial("/v1/voice", &token).await.unwrap();
    let mut openai = rig.dial("/v1/realtime", &token).await.unwrap();
    let notice = renewed.until("notice").await;
    assert_eq!((notice["code"].as_str(), notice["in_s"].as_u64()), (Some("token_expiring"), Some(1)));
    for wrong in [
        rig.token(&other, json!({})).await,
        rig.token(&key, json!({"user": "u2"})).await,
        rig.token(&key, json!({"agent": "default"})).await,
        "nonsense".to_owned(),
    ] {
        renewed.json(&json!({"type": "token", "token": wrong}).to_string()).await;
        assert_eq!(renewed.until("error").await["error"]["code"], "unauthorized");
    }
    let next = rig.token(&key, json!({"expires_in_s": 60, "user": "u1"})).await;
    renewed.json(&json!({"type": "token", "token": next}).to_string()).await;
    assert_eq!(thin.end().await, (Some("token_expired".to_owned()), 4401));
    assert_eq!(openai.end().await, (Some("token_expired".to_owned()), 3000));
    renewed.json(r#"{"type":"ping","t":1}"#).await;
    renewed.until("pong").await;
    time::sleep(Duration::from_millis(1_200)).await;
    renewed.json(r#"{"type":"ping","t":2}"#).await;
    assert_eq!(renewed.until("pong").await["t"], 2, "the renewed call goes on");
}

#[tokio::test]
async fn what_is_revoked_is_cut_within_a_second_and_the_door_stays_shut() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.db");
    let store = Store::open(&file).unwrap();
    let keys: Vec<(String, KeyHash)> = ["one", "two"]
        .into_iter()
        .map(|label| {
            let (text, key) = new_key(label, &Scope::all(), None);
            store.put_key("acme", &key, unix_now()).unwrap();
            (text, key.hash)
        })
        .collect();
    store.put_tenant("acme", &TenantConfig::default()).unwrap();
    let rig = Rig::configured(|c| c.store.file = Some(file.clone())).await;
    let token = rig.token(&keys[0].0, json!({})).await;
    let mut thin = rig.dial("/v1/voice", &keys[0].0).await.unwrap();
    let mut by_token = rig.dial("/v1/realtime", &token).await.unwrap();
    let mut other = rig.dial("/v1/voice", &keys[1].0).await.unwrap();
    other.until("ready").await;
    thin.until("ready").await;
    store.remove_keys("acme", &[keys[0].1]).unwrap();
    let began = Instant::now();
    assert_eq!(thin.end().await, (Some("unauthorized".to_owned()), 4401));
    assert_eq!(by_token.end().await, (Some("unauthorized".to_owned()), 3000), "and what was made with it");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "a second is promised, this machine may be busy: {:?}",
        began.elapsed()
    );
    assert_eq!(rig.ask("GET", "/v1/voice", &token).await.status, 401);
    other.json(r#"{"type":"ping","t":1}"#).await;
    other.until("pong").await;
    // A key that ends at a moment takes its calls along, too.
    store.expire_keys("acme", &[keys[1].1], Moment(unix_now() + 1)).unwrap();
    assert_eq!(other.end().await.1, 4401);
    // The last tenant is gone: nobody is let in instead.
    store.remove_tenant("acme").unwrap();
    time::sleep(Duration::from_millis(600)).await;
    assert_eq!(rig.ask("GET", "/v1/voice", "").await.status, 401);
}

#[tokio::test]
async fn tenants_in_the_file_are_read_again_and_a_broken_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.toml");
    let (key, hashed) = new_key("file", &Scope::all(), None);
    let good = |agents: &str| {
        format!(
            "[tenants.acme]\nagents = [{agents}]\n[[tenants.acme.keys]]\nlabel = \"file\"\nhash = \"{}\"\n[agents.support]\n",
            hashed.hash
        )
    };
    std::fs::write(&file, good("")).unwrap();
    let sim = voxrelay::sim::Sim::start("127.0.0.1:0".parse().unwrap(), SimConfig::default(), Default::default())
        .await
        .unwrap();
    let mut loaded = voxrelay::config::Config::load(Some(&file), |_| None).unwrap();
    let usual = config(&sim.base_url());
    (loaded.server, loaded.upstream) = (usual.server, usual.upstream);
    let rig = Rig { relay: Server::start(loaded, None).await.unwrap(), sim };
    let mut call = rig.dial("/v1/voice?agent=support", &key).await.unwrap();
    call.until("ready").await;
    std::fs::write(&file, "[tenants.acme\n").unwrap();
    time::sleep(Duration::from_millis(700)).await;
    assert_eq!(rig.ask("GET", "/v1/voice?agent=support", &key).await.status, 200, "the old one stays in force");
    std::fs::write(&file, good("\"default\"")).unwrap();
    let end = Instant::now() + PATIENCE;
    while rig.ask("GET", "/v1/voice?agent=support", &key).await.status != 403 {
        assert!(Instant::now() < end);
        time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rig.ask("GET", "/v1/agents", &key).await.json()["agents"], json!([{"name": "default"}]));
    std::fs::write(&file, "[log]\nlevel = \"info\"\n").unwrap();
    assert_eq!(call.end().await.1, 4401, "its tenant is gone");
}

#[tokio::test]
async fn a_tenant_has_as_many_calls_as_it_may_and_comes_as_often() {
    let (mut small, mut seldom, mut free) = Default::default();
    let rig = Rig::configured(|c| {
        small = tenant(c, "small", |t| t.max_calls = 2);
        seldom = tenant(c, "seldom", |t| t.connects_per_minute = 5);
        free = tenant(c, "free", |_| {});
    })
    .await;
    let mut first = rig.dial("/v1/voice", &small).await.unwrap();
    let _second = rig.dial("/v1/realtime", &small).await.unwrap();
    let refused = rig.request("GET", "/v1/voice", &small);
    let _ = refused;
    assert_eq!(rig.dial("/v1/voice", &small).await.err(), Some((429, "concurrency_limited".to_owned())));
    assert!(rig.dial("/v1/voice", &free).await.is_ok(), "others have their own");
    first.json(r#"{"type":"close"}"#).await;
    let end = Instant::now() + PATIENCE;
    while rig.dial("/v1/voice", &small).await.is_err() {
        assert!(Instant::now() < end, "its place is not given back");
        time::sleep(Duration::from_millis(20)).await;
    }
    let mut codes = Vec::new();
    for _ in 0..8 {
        codes.push(rig.ask("GET", "/v1/voice", &seldom).await);
    }
    assert_eq!(codes.iter().filter(|got| got.status == 200).count(), 5);
    let refused = codes.last().unwrap();
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
    assert!(
        (1..=12).contains(&refused.header("retry-after").parse::<u64>().unwrap()),
        "{}",
        refused.header("retry-after")
    );
}

#[tokio::test]
async fn an_address_that_floods_is_turned_away_and_others_are_not() {
    let (mut key, mut inside) = Default::default();
    let rig = Rig::configured(|c| {
        c.server.connects_per_minute = 20;
        c.server.trusted_proxies = vec!["127.0.0.1".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        key = tenant(c, "acme", |_| {});
        inside = tenant(c, "inside", |t| t.addresses = vec!["192.0.2.0/24".parse().unwrap()]);
    })
    .await;
    let from = |key: &str, address: &str| {
        answer(rig.request("GET", "/v1/voice", key).header("x-forwarded-for", address.to_owned()))
    };
    let (mut passed, began) = (0, Instant::now());
    for n in 0..40 {
        // What the client itself writes in front does not count, and wrong credentials count as well.
        let got = from(if n % 2 == 0 { &key } else { "wrong" }, &format!("198.51.100.{n}, 192.0.2.1, 10.0.0.9")).await;
        passed += u32::from(got.status != 429);
    }
    let more = u32::try_from(began.elapsed().as_secs() / 3).unwrap(); // one in three seconds comes back
    assert!((20..=20 + more).contains(&passed), "{passed}, in {:?}", began.elapsed());
    assert_eq!(from(&key, "192.0.2.2").await.status, 200);
    for (address, status) in
        [("192.0.2.7", 200), ("203.0.113.1", 403), ("nonsense", 403), ("192.0.2.7, 203.0.113.1", 403)]
    {
        assert_eq!(from(&inside, address).await.status, status, "{address}");
    }
    let refused = from(&key, "192.0.2.1").await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
    assert!(!refused.header("retry-after").is_empty());
}

#[tokio::test]
async fn a_call_is_ended_by_its_tenant_and_by_nobody_else() {
    let (mut key, mut other) = (String::new(), String::new());
    let rig = Rig::configured(|c| {
        key = tenant(c, "acme", |_| {});
        other = tenant(c, "other", |_| {});
    })
    .await;
    let mut call = rig.dial("/v1/voice", &key).await.unwrap();
    let id = call.until("ready").await["call"].as_str().unwrap().to_owned();
    let listed = rig.ask("GET", "/v1/calls", &key).await.json();
    assert_eq!(
        (listed["calls"][0]["id"].as_str(), listed["calls"][0]["door"].as_str()),
        (Some(id.as_str()), Some("thin"))
    );
    assert_eq!(rig.ask("GET", "/v1/calls", &other).await.json()["calls"], json!([]));
    let refused = rig.ask("DELETE", &format!("/v1/calls/{id}"), &other).await;
    let unknown = rig.ask("DELETE", "/v1/calls/call_none", &other).await;
    assert_eq!((refused.status, refused.code()), (404, unknown.code()), "as one that never was");
    let began = Instant::now();
    assert_eq!(rig.ask("DELETE", &format!("/v1/calls/{id}"), &key).await.status, 200);
    assert_eq!(call.end().await, (Some("forbidden".to_owned()), 4403));
    assert!(began.elapsed() < Duration::from_secs(3), "one second is promised: {:?}", began.elapsed());
    until("its place is given back", || rig.sim.stats().sessions_now == 0).await;
    assert_eq!(rig.ask("DELETE", &format!("/v1/calls/{id}"), &key).await.status, 404);
}

#[tokio::test]
async fn an_end_user_has_a_name_upstream_that_tells_nothing() {
    let (mut key, mut other) = (String::new(), String::new());
    let secret = "0123456789abcdef0123456789abcdef";
    let rig = Rig::configured(|c| {
        c.auth.safety_secret = Some(voxrelay::config::Secret::new(secret));
        key = tenant(c, "acme", |_| {});
        other = tenant(c, "other", |_| {});
    })
    .await;
    for (key, user) in
        [(&key, "ann@example.com"), (&key, "ann@example.com"), (&other, "ann@example.com"), (&key, "bob")]
    {
        let token = rig.token(key, json!({"user": user})).await;
        let before = rig.sim.stats().safety_ids.len();
        let _call = rig.dial("/v1/voice", &token).await.unwrap();
        until("a safety id", || rig.sim.stats().safety_ids.len() > before).await;
    }
    let headers =
        [("authorization", format!("Bearer {key}")), ("openai-safety-identifier", "ann@example.com".to_owned())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let _call = Client::dial(rig.relay.addr(), "/v1/realtime", &headers).await.unwrap();
    until("the fifth", || rig.sim.stats().safety_ids.len() == 5).await;
    let ids = rig.sim.stats().safety_ids;
    assert_eq!((&ids[0], &ids[0]), (&ids[1], &ids[4]), "the same user of the same tenant");
    assert!(ids[0] != ids[2] && ids[0] != ids[3]);
    assert!(ids.iter().all(|id| id.len() == 40 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{ids:?}");
}

#[tokio::test]
async fn a_tenant_uses_its_own_account_and_models() {
    let (mut key, mut stray) = (String::new(), String::new());
    let second = voxrelay::sim::Sim::start("127.0.0.1:0".parse().unwrap(), SimConfig::default(), Default::default())
        .await
        .unwrap();
    let rig = Rig::configured(|c| {
        let account = voxrelay::config::UpstreamConfig { url: Some(second.base_url()), ..c.upstream.clone() };
        c.upstreams.insert("second".into(), account);
        key = tenant(c, "acme", |t| {
            t.upstream = Some("second".into());
            t.models = vec!["gpt-realtime-2.1".into()];
        });
        stray = tenant(c, "stray", |t| t.upstream = Some("third".into()));
    })
    .await;
    let _call = rig.dial("/v1/voice", &key).await.unwrap();
    until("its session", || second.stats().sessions_opened == 1).await;
    assert_eq!(
        rig.dial("/v1/realtime?model=gpt-realtime", &key).await.err(),
        Some((404, "model_not_found".to_owned()))
    );
    assert!(rig.dial("/v1/realtime?model=gpt-realtime-2.1", &key).await.is_ok());
    assert_eq!(rig.dial("/v1/voice", &stray).await.err(), Some((503, "upstream_unavailable".to_owned())));
    assert_eq!(rig.sim.stats().attempts, 0);
}

#[tokio::test]
async fn tokens_that_make_no_sense_are_refused_by_field() {
    let mut key = String::new();
    let rig = Rig::configured(|c| key = tenant(c, "acme", |_| {})).await;
    for (body, status, field) in [
        (json!({"expires_in_s": 1}).to_string(), 400, "expires_in_s"),
        (json!({"agent": "nobody"}).to_string(), 400, "agent"),
        ("{".to_owned(), 400, ""),
        ("[]".to_owned(), 400, ""),
        (json!({"user": "x".repeat(20_000)}).to_string(), 413, ""),
    ] {
        let got = answer(rig.request("POST", "/v1/tokens", &key).body(body.clone())).await;
        let found = got.json()["error"]["field"].as_str().unwrap_or_default().to_owned();
        assert_eq!((got.status, found.as_str()), (status, field), "{body}: {}", got.text);
    }
    let made = rig.post("/v1/tokens", &key, json!({})).await;
    assert_eq!(made.header("cache-control"), "no-store");
}
