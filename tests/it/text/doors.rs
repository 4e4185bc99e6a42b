//! Who may ask, and from which pages.
use voxrelay::{admit::store::Store, config::Scope, wall::unix_now};

use super::*;
use crate::support::{new_key, tenant_with};

#[tokio::test(flavor = "multi_thread")]
async fn only_a_key_with_the_scope_asks_for_text() {
    let (mut text, mut call) = (String::new(), String::new());
    let desk = Desk::with(
        |config| {
            text = tenant_with(config, "text", &[Scope::Text], |_| {});
            call = tenant_with(config, "call", &[Scope::Call, Scope::Secret, Scope::Admin], |_| {});
        },
        SimConfig::instant(),
        "",
    )
    .await;
    let token = desk.rig.token(&desk.key, json!({})).await;
    let made = desk.rig.post("/v1/realtime/client_secrets", &desk.key, json!({})).await;
    let secret = made.json()["value"].as_str().unwrap_or_else(|| panic!("{}", made.text)).to_owned();
    let wrong = desk.key[..desk.key.len() - 1].to_owned();
    for (key, status, code) in [
        (&text, 200, ""),
        (&call, 403, "forbidden"),
        (&token, 403, "forbidden"),
        (&secret, 403, "forbidden"),
        (&wrong, 401, "invalid_api_key"),
        (&String::new(), 401, "invalid_api_key"),
    ] {
        for base in ["", "/openai"] {
            let path = format!("{base}{RESPONSES}");
            let got = desk.rig.post(&path, key, plain("hello")).await;
            assert_eq!((got.status, got.code().as_str()), (status, code), "{path}: {}", got.text);
            let path = format!("{base}{TRANSCRIPTIONS}");
            let upload = form(hello(), &[("model", "gpt-transcribe")]);
            let got = answer(desk.rig.request("POST", &path, key).multipart(upload)).await;
            assert_eq!((got.status, got.code().as_str()), (status, code), "{path}: {}", got.text);
            assert!(got.header("x-request-id").starts_with("text_"));
        }
    }
    assert_eq!(desk.asked(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_asks_no_more_and_what_it_asked_for_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.db");
    let store = Store::open(&file).unwrap();
    let (key, hashed) = new_key("one", &Scope::all(), None);
    store.put_key("late", &hashed, unix_now()).unwrap();
    store.put_tenant("late", &TenantConfig::default()).unwrap();
    let desk = Desk::with(|config| config.store.file = Some(file), slow(60), "").await;
    let ask = |input: &str| desk.rig.request("POST", RESPONSES, &key).json(&streamed(input)).send();
    let mut running = ask("Where is my parcel?").await.unwrap();
    read_until(&mut running, "response.created").await;
    store.remove_keys("late", &[hashed.hash]).unwrap();
    let status = async {
        loop {
            let got = ask("hello").await.unwrap();
            if got.status() != 200 {
                return got;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    let refused = time::timeout(Duration::from_secs(5), status).await.expect("a second is promised");
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "invalid_api_key");
    assert!(running.text().await.unwrap().contains("response.completed"), "it was paid for");
}

#[tokio::test(flavor = "multi_thread")]
async fn end_users_go_to_the_service_by_another_name() {
    let desk = Desk::new().await;
    let mut body = plain("hello");
    body["user"] = json!("ada@example.com");
    let got = desk.ask(body).await;
    let told = got.json();
    assert_eq!((got.status, &told["user"]), (200, &Value::Null), "{told}");
    let id = told["safety_identifier"].as_str().unwrap();
    assert!(!id.is_empty() && !id.contains("ada"), "{id}");
    let by_header = desk.request(&plain("hello")).header("openai-safety-identifier", "ada@example.com");
    assert_eq!(answer(by_header).await.json()["safety_identifier"], id);
    desk.rows(2).await;
    let usage = desk.rig.ask("GET", "/v1/usage?by=user", &desk.key).await;
    assert!(usage.text.contains("ada@example.com"), "{}", usage.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_known_origins_may_ask_and_read_all_that_is_told() {
    let origin = "https://app.example";
    let desk = Desk::of_tenant(|t| {
        t.origins = vec![origin.to_owned()];
        (t.text_requests_per_minute, t.text_tokens_per_minute) = (60, 100_000);
    })
    .await;
    let wanted = "authorization, content-type, idempotency-key, x-voxrelay-class";
    for path in [RESPONSES, TRANSCRIPTIONS] {
        for (from, status) in [(origin, 204), ("https://evil.example", 403)] {
            let asked = desk.rig.request("OPTIONS", path, "").header("origin", from);
            let asked = asked.header("access-control-request-method", "POST");
            let got = answer(asked.header("access-control-request-headers", wanted)).await;
            assert_eq!(got.status, status, "{path} from {from}");
            let allowed = if status == 204 { wanted } else { "" };
            assert_eq!(got.header("access-control-allow-headers"), allowed);
            assert_eq!(got.header("access-control-allow-methods").contains("POST"), status == 204);
        }
    }
    let got = answer(desk.rig.request("PUT", RESPONSES, &desk.key).header("origin", origin)).await;
    assert_eq!((got.status, got.header("access-control-allow-origin"), got.header("allow")), (405, origin, "POST"));
    assert!(got.text.contains("`/v1/responses` takes no PUT"), "{}", got.text);
    let ask = |from: &'static str| {
        answer(
            desk.request(&json!({"model": "auto", "input": "hello"}))
                .header("origin", from)
                .header("idempotency-key", "k"),
        )
    };
    let (_, got) = (ask(origin).await, ask(origin).await);
    assert_eq!((got.status, got.header("access-control-allow-origin")), (200, origin));
    let exposed = got.header("access-control-expose-headers").to_lowercase();
    let exposed: Vec<&str> = exposed.split(", ").collect();
    let told = got.headers.keys().map(reqwest::header::HeaderName::as_str);
    let told: Vec<&str> = told.filter(|name| name.starts_with("x-r") || name.starts_with("x-voxrelay")).collect();
    assert!(told.len() >= 12 && told.contains(&"x-voxrelay-repeated"), "{told:?}");
    for name in told.into_iter().chain(["retry-after"]) {
        assert!(exposed.contains(&name), "{name} cannot be read");
    }
    let got = ask("https://evil.example").await;
    assert_eq!((got.status, got.header("access-control-allow-origin")), (403, ""), "{}", got.text);
}
