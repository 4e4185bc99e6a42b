//! What a tenant may have done in batches, and that it is begun once.
use super::*;
use crate::support::new_key;

fn with(more: Value) -> String {
    let mut line: Value = serde_json::from_str(&line("b", MODEL, "two")).unwrap();
    line["body"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_account_keeps_is_no_tenants_to_name() {
    let mut key = String::new();
    let rig = Rig::with(|config| key = tenant(config, "acme", |_| {}), instant(), "").await;
    for (more, field) in [
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "item_reference"),
        (json!({"input": [{"id": "msg_1"}]}), "item_reference"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}), "file_id"),
        (json!({"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}), "vector_store_ids"),
        (json!({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}), "container"),
        (json!({"service_tier": "priority"}), "service_tier"),
    ] {
        let got = rig.upload(&key, &[line("a", MODEL, "one"), with(more)]).await;
        assert_eq!((got.status, got.code().as_str()), (400, "unsupported_parameter"), "{field}: {}", got.text);
        assert!(got.text.contains(&format!("Line 2: `{field}`")), "{field}: {}", got.text);
    }
    assert_eq!(rig.sim.stats().text.requests.get("files"), None);
    // Where there is nobody to keep it from, it is the account's own.
    let open = Rig::with(|_| {}, instant(), "").await;
    assert_eq!(open.upload("", &[with(json!({"conversation": "conv_1"}))]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_looked_at_when_a_batch_begins_too() {
    let (plain, config) = new_key("plain", &[Scope::Text], None);
    let (mut key, mut kept) = (String::new(), None);
    let rig = Rig::with(
        |all| {
            all.text.expert = Some("gpt-5.6-sol".to_owned());
            key = tenant(all, "acme", |tenant| tenant.keys.push(config));
            kept = Some(all.clone());
        },
        instant(),
        "",
    )
    .await;
    let hard = id(&rig.upload(&key, &[line("a", "expert", "one")]).await.json()).to_owned();
    let easy = id(&rig.upload(&key, &[line("a", "fast", "one")]).await.json()).to_owned();
    let got = rig.begin(&plain, &hard, json!({})).await;
    assert_eq!((got.status, got.code().as_str()), (403, "forbidden"), "{}", got.text);
    assert_eq!(rig.begin(&key, &hard, json!({})).await.status, 200);
    assert_eq!(rig.begin(&plain, &easy, json!({})).await.status, 200);
    let mut rig = rig;
    for (models, status) in [("fast", 200), (MODEL, 200), ("gpt-5.6-terra", 404)] {
        let mut config = kept.clone().unwrap();
        config.tenants.get_mut("acme").unwrap().models = vec![models.to_owned()];
        let Rig { relay, sim } = rig;
        relay.drain(std::future::ready(())).await;
        rig = Rig { relay: Server::start(config, None).await.unwrap(), sim };
        let got = rig.begin(&key, &easy, json!({})).await;
        assert_eq!(got.status, status, "{models}: {}", got.text);
        assert!(status == 200 || got.code() == "model_not_found", "{}", got.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_asked_for_again_is_begun_once() {
    // The first answer is lost on its way.
    let lost = "[[fault]]\nkind = \"answer\"\nas = \"garbage\"\ndoor = \"batches\"\nsession = 3\n";
    let (mut key, mut other, mut kept) = (String::new(), String::new(), None);
    let mut rig = Rig::with(
        |all| {
            key = tenant(all, "acme", |_| {});
            other = tenant(all, "other", |_| {});
            kept = Some(all.clone());
        },
        instant(),
        lost,
    )
    .await;
    let file = id(&rig.upload(&key, &[line("a", MODEL, "one")]).await.json()).to_owned();
    let asked = |mine: &str| json!({"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h", "metadata": {"mine": mine}});
    let begin = async |rig: &Rig, header: (&'static str, &str), body: Value| {
        answer(rig.request("POST", "/v1/batches", &key).header(header.0, header.1).json(&body)).await
    };
    let keyed = ("idempotency-key", "k");
    assert_eq!(begin(&rig, keyed, asked("one")).await.status, 503);
    let first = begin(&rig, keyed, asked("one")).await;
    assert_eq!((first.status, first.header("x-voxrelay-repeated")), (200, "true"), "{}", first.text);
    assert_eq!(first.json()["metadata"], json!({"mine": "one"}));
    for _ in 0..2 {
        let again = begin(&rig, keyed, asked("one")).await;
        assert_eq!((again.status, id(&again.json())), (200, id(&first.json())), "{}", again.text);
        let reused = begin(&rig, keyed, asked("two")).await;
        assert_eq!((reused.status, reused.code().as_str()), (409, "idempotency_key_reused"), "{}", reused.text);
        let Rig { relay, sim } = rig;
        relay.drain(std::future::ready(())).await;
        rig = Rig { relay: Server::start(kept.clone().unwrap(), None).await.unwrap(), sim };
    }
    // SDKs that have no key say that they come again.
    let retry = |count: &'static str| ("x-stainless-retry-count", count);
    let unkeyed = begin(&rig, retry("0"), asked("three")).await;
    let again = begin(&rig, retry("1"), asked("three")).await;
    assert_eq!((again.status, id(&again.json())), (200, id(&unkeyed.json())), "{}", again.text);
    let wanted = begin(&rig, retry("0"), asked("three")).await;
    assert_ne!(id(&wanted.json()), id(&unkeyed.json()), "asked for twice");
    let (one, two) = tokio::join!(
        begin(&rig, ("idempotency-key", "l"), asked("four")),
        begin(&rig, ("idempotency-key", "l"), asked("four"))
    );
    assert_eq!((one.status, id(&one.json())), (200, id(&two.json())), "at once");
    let list = rig.ask("GET", "/v1/batches", &key).await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 4, "{list}");
    let got = begin(&rig, ("idempotency-key", "x y"), asked("one")).await;
    assert_eq!((got.status, got.json()["error"]["param"].as_str()), (400, Some("Idempotency-Key")), "{}", got.text);
    let theirs =
        answer(rig.request("POST", "/v1/batches", &other).header("idempotency-key", "k").json(&asked("one"))).await;
    assert_eq!((theirs.status, theirs.code().as_str()), (400, "invalid_value"), "no such file: {}", theirs.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_long_one_at_once_and_wrong_addresses_are_told_as_json() {
    let mut key = String::new();
    let rig = Rig::with(|config| key = tenant(config, "acme", |_| {}), instant(), "").await;
    let file = id(&rig.upload(&key, &[line("a", MODEL, "one")]).await.json()).to_owned();
    // More than a megabyte of what is said of them.
    for _ in 0..25 {
        let begun = rig.begin(&key, &file, json!({"much": "x".repeat(50_000)})).await;
        assert_eq!(begun.status, 200, "{}", begun.text);
    }
    let list = rig.ask("GET", "/v1/batches?limit=100", &key).await;
    assert_eq!((list.status, list.json()["data"].as_array().map(Vec::len)), (200, Some(25)));
    let page = rig.ask("GET", "/v1/batches?limit=10", &key).await.json();
    assert_eq!((page["data"].as_array().map(Vec::len), &page["has_more"]), (Some(10), &json!(true)));
    let many: Vec<_> = (0..8).map(|_| rig.ask("GET", "/v1/batches", &key)).collect();
    let many = futures_util::future::join_all(many).await;
    assert!(many.iter().all(|got| got.status == 200 || got.code() == "rate_limit_exceeded"));
    for path in ["/v1/batches/%ff", "/v1/files/%ff", "/v1/files/%ff/content", "/v1/calls/%ff"] {
        let method = if path.contains("calls") { "DELETE" } else { "GET" };
        let got = rig.ask(method, path, &key).await;
        assert_eq!((got.status, got.code().as_str()), (400, "invalid_value"), "{path}: {}", got.text);
    }
}
