//! Which model answers: by the caller's word, by rules, by rights, by quota; and the routes behind a tier.
use voxrelay::config::{LimitsConfig, Scope, TextConfig};

use super::*;
use crate::support::tenant_with;

const TEXT: &str = "best = \"gpt-5.6-terra\"\nexpert = \"gpt-6-deep\"\n\
    [[rules]]\ntier = \"expert\"\nmetadata = { difficulty = \"hardest\" }\n\
    [[rules]]\ntier = \"best\"\ntools = true\n[[rules]]\ntier = \"best\"\nmin_input_tokens = 500\n";

fn text() -> TextConfig {
    toml::from_str(TEXT).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_or_the_rules_say_who_answers() {
    let (mut plainly, mut narrow) = (String::new(), String::new());
    let desk = Desk::with(
        |config| {
            config.text = text();
            plainly = tenant_with(config, "plain", &[Scope::Text], |_| {});
            narrow =
                tenant_with(config, "narrow", &[Scope::Text], |t| t.models = vec![LUNA.to_owned(), "best".to_owned()]);
        },
        SimConfig::instant(),
        "",
    )
    .await;
    let tools = json!([{"type": "function", "name": "look_up", "parameters": {"type": "object"}}]);
    let hardest = json!({"difficulty": "hardest"});
    let all = &desk.key;
    for (key, model, more, want) in [
        (all, "auto", json!({}), Ok(("luna", "fast", "default"))),
        (all, "auto", json!({"tools": tools}), Ok(("terra", "best", "rule"))),
        (all, "auto", json!({"instructions": "long ".repeat(500)}), Ok(("terra", "best", "rule"))),
        (all, "auto", json!({"metadata": hardest}), Ok(("gpt-6-deep", "expert", "rule"))),
        (all, "fast", json!({"tools": tools}), Ok(("luna", "fast", "caller"))),
        (all, "best", json!({}), Ok(("terra", "best", "caller"))),
        (all, "expert", json!({}), Ok(("gpt-6-deep", "expert", "caller"))),
        (all, "gpt-5.5", json!({}), Ok(("gpt-5.5", "", ""))),
        (&plainly, "auto", json!({"metadata": hardest}), Ok(("terra", "best", "scope"))),
        (&plainly, "expert", json!({}), Err((403, "forbidden"))),
        (&narrow, "best", json!({}), Ok(("terra", "best", "caller"))),
        (&narrow, "auto", json!({}), Ok(("luna", "fast", "default"))),
        (&narrow, "gpt-5.6-terra", json!({}), Err((404, "model_not_found"))),
        (&narrow, "of-nobody", json!({}), Err((404, "model_not_found"))),
    ] {
        let mut body = more.clone();
        (body["model"], body["input"]) = (json!(model), json!("hello"));
        let got = desk.rig.post(RESPONSES, key, body).await;
        match want {
            Ok((name, tier, by)) => {
                let told = [got.header("x-voxrelay-tier"), got.header("x-voxrelay-tier-by")];
                assert_eq!((got.status, told), (200, [tier, by]), "{model} {more}: {}", got.text);
                assert!(got.json()["model"].as_str().unwrap().ends_with(name), "{model} {more}: {}", got.text);
                assert!(got.header("x-voxrelay-route").ends_with(name));
            }
            Err((status, code)) => {
                assert_eq!((got.status, got.code().as_str()), (status, code), "{model} {more}: {}", got.text);
                assert!(got.json()["error"]["type"].is_string(), "{}", got.text);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_goes_on_at_another_account_where_one_refuses_or_has_no_room() {
    for refusal in [
        "status = 503",
        "status = 500\nretry_after_s = 60",
        "status = 429\nretry_after_s = 60\nbody = '{\"error\":{\"message\":\"slow\",\"code\":\"rate_limit_exceeded\"}}'",
        "status = 401\nbody = '{\"error\":{\"message\":\"sk-no\",\"code\":\"invalid_api_key\"}}'",
        "status = 429\nbody = '{\"error\":{\"message\":\"pay\",\"code\":\"insufficient_quota\"}}'",
    ] {
        let second = service(SimConfig::instant(), "").await;
        let faults = format!("[[fault]]\nkind = \"refuse\"\ndoor = \"responses\"\n{refusal}\n");
        let change = |config: &mut Config| {
            let other = account(config, &second);
            config.upstreams.insert("second".to_owned(), other);
            config.tiers = toml::from_str(
                "[quick]\npolicy = \"ordered\"\nroutes = [{ model = \"gpt-5.6-luna\" }, { upstream = \"second\", model = \"gpt-5.6-luna\" }]\n",
            )
            .unwrap();
            config.text.fast = "quick".to_owned();
        };
        let desk = Desk::with(change, SimConfig::instant(), &faults).await;
        for n in 0..5 {
            let body = json!({"model": "auto", "input": "hello", "stream": n % 2 == 1});
            let got = desk.ask(body).await;
            assert_eq!(
                (got.status, got.header("x-voxrelay-route")),
                (200, "second/gpt-5.6-luna"),
                "{refusal}: {}",
                got.text
            );
            assert_eq!(got.header("x-voxrelay-tier"), "fast");
        }
        let refused = desk.bill().refused.values().sum::<u64>();
        assert!((1..=5).contains(&refused), "{refusal}: {refused} times");
        assert_eq!(desk.rig.sim.stats().faults.get("refuse"), Some(&refused));
        let (rows, bill) = (desk.rows(5).await, second.stats().text);
        assert!(rows.iter().all(|row| row.route == "second/gpt-5.6-luna" && !row.estimated), "{rows:#?}");
        assert_eq!(rows.iter().map(|row| row.output).sum::<u64>(), bill.output_tokens, "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rules_would_give_the_best_one_is_answered_by_the_fast_one_when_quota_is_short() {
    let change = |config: &mut Config| {
        config.text = text();
        let terra = LimitsConfig { model: "gpt-5.6-terra".to_owned(), requests: Some(10), ..LimitsConfig::default() };
        config.upstream.limits = vec![terra];
        config.turns.wait_ms = 100;
    };
    let desk = Desk::with(change, SimConfig::instant(), "").await;
    let tools = json!([{"type": "function", "name": "look_up", "parameters": {"type": "object"}}]);
    let mut ways = Vec::new();
    for _ in 0..2 {
        let got = desk.ask(json!({"model": "auto", "input": "hello", "tools": tools})).await;
        assert_eq!(got.status, 200, "{}", got.text);
        ways.push(format!("{} {}", got.header("x-voxrelay-tier"), got.header("x-voxrelay-tier-by")));
    }
    assert_eq!(ways, ["best rule", "fast quota"]);
    // Who asks for it by name is not given another one.
    let got = desk.ask(json!({"model": "best", "input": "hello"})).await;
    assert_eq!((got.status, got.code().as_str()), (429, "rate_limit_exceeded"), "{}", got.text);
    assert!(got.header("retry-after").parse::<u64>().unwrap() > 0 && got.text.contains("rpm"), "{}", got.text);
}
