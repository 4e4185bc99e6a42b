//! Calls that the agent takes elsewhere: what the provider is asked for, once, and what becomes of the call here.
use std::path::Path;

use futures_util::future::join_all;
use rusqlite::Connection;
use serde_json::{Value, json};
use voxrelay::{audio::Format, audio::decode::write_wav};

use super::{CALLER, KINDS, World, world};
use crate::{
    support::{PATIENCE, clip, until},
    tools::tool,
};

/// Who takes over.
const SUPPORT: &str = "+15550123";

/// A relay whose agent transfers whoever says something.
async fn transferring(folder: &Path) -> World {
    let (says, ledger) = (folder.join("says.wav"), folder.join("ledger.db"));
    write_wav(&says, Format::PCM_24K, &clip("assets/hello.wav")[4_800..52_800]).unwrap();
    let service = |sim: &mut voxrelay::sim::SimConfig| {
        (sim.record_audio, sim.reply.speaks_with_calls) = (true, true);
        sim.reply.call_tool = Some(r#"transfer {"to":"support"}"#.to_owned());
        (sim.carrier.says, sim.carrier.quiet_ms, sim.carrier.longest_s) = (Some(says), 0, 30);
    };
    let relay = |config: &mut voxrelay::config::Config| {
        config.ledger.file = Some(ledger);
        let agent = config.agents.get_mut("default").unwrap();
        agent.greeting = None;
        agent.tools = vec![tool(&format!("builtin = \"transfer\"\ntargets = {{ support = \"{SUPPORT}\" }}"))];
    };
    world(service, relay).await
}

/// Who has ended a call, and why, by the ledger.
fn line_of(file: &Path, call: &Value) -> (String, String) {
    let sql = Connection::open(file).unwrap();
    let row = "SELECT status, reason FROM usage WHERE kind = 'call' AND call = ?1";
    sql.query_row(row, [call.as_str().unwrap()], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_it_is_taken_elsewhere_once_at_every_provider() {
    let folder = tempfile::tempdir().unwrap();
    let world = &transferring(folder.path()).await;
    let file = &folder.path().join("ledger.db");
    // What answers there speaks at once.
    let calls = KINDS.map(async |kind| {
        let begun = world.dial(json!({"to": "+15550004", "account": kind, "ring_s": 5})).await;
        assert_eq!(begun.status, 201, "{kind}: {}", begun.text);
        let id = begun.json()["dial"].as_str().unwrap().to_owned();
        if kind == "asterisk" {
            // Its channel is none of a Stasis application's: the model is told, and the caller stays.
            until("Asterisk's refusal", || refused(world)).await;
            assert_eq!(world.rig.ask("DELETE", &format!("/v1/dial/{id}"), &world.acme).await.status, 200);
        }
        let shown = world.until(&id, "ended").await;
        (kind, world.over(&shown).await, shown)
    });
    let calls = join_all(calls).await;
    world.rig.relay.ledger().flush(PATIENCE).await;
    let seen = world.rig.sim.carrier().seen;
    for (kind, dialled, shown) in &calls {
        let asked: Vec<_> = seen.iter().filter(|one| one.act == "transfer" && one.what == dialled.call).collect();
        assert!(dialled.refused.is_empty() && dialled.violations.is_empty(), "{kind}: {dialled:?}");
        let (by, why) = line_of(file, &shown["voice_call"]);
        if *kind == "asterisk" {
            assert_eq!((asked.len(), &dialled.transferred), (0, &None), "{kind}: {dialled:?}");
            assert_eq!(why, "the call was ended by its tenant");
            continue;
        }
        assert_eq!(asked.len(), 1, "{kind}: it is asked for once: {seen:?}");
        assert!((200..300).contains(&asked[0].status) && asked[0].provider == *kind, "{:?}", asked[0]);
        let to = dialled.transferred.as_deref().unwrap_or_default();
        let said = leads(kind, to);
        assert_eq!(
            said,
            (SUPPORT.trim_start_matches('+').to_owned(), CALLER.trim_start_matches('+').to_owned()),
            "{to}"
        );
        assert_eq!((by.as_str(), why.as_str()), ("agent", "the call was transferred"), "{kind}: {shown}");
        assert!(dialled.heard_ms > 500, "{kind}: that it will be is heard: {dialled:?}");
    }
    // Nobody is hung up on whom the provider has taken elsewhere.
    let hung_up: Vec<_> = seen.iter().filter(|one| one.act == "hang_up").collect();
    assert!(hung_up.iter().all(|one| one.provider == "asterisk"), "{hung_up:?}");
    // Credentials are checked by whoever answers.
    let failed: Vec<_> = seen.iter().filter(|one| one.act == "refused").map(|one| (one.provider, one.status)).collect();
    assert_eq!(failed, [("asterisk", 409)], "{seen:?}");
}

/// Asterisk has said no, and the model knows.
fn refused(world: &World) -> bool {
    let told = |item: &Value| item["output"].as_str().is_some_and(|text| text.contains("could not be transferred"));
    world.rig.sim.stats().items.iter().any(|(_, item)| told(item))
}

/// Whom a transfer leads to, and who seems to call, as the provider reads it: digits.
fn leads(kind: &str, asked: &str) -> (String, String) {
    let digits = |text: Option<&str>| text.unwrap_or_default().trim_start_matches('+').to_owned();
    let xml = |number: &str| {
        let document = roxmltree::Document::parse(asked).unwrap_or_else(|error| panic!("{kind}: {error}: {asked}"));
        let dial = document.descendants().find(|node| node.has_tag_name("Dial")).unwrap();
        let target = dial.descendants().find(|node| node.has_tag_name(number));
        (digits(target.and_then(|node| node.text())), digits(dial.attribute("callerId")))
    };
    let json: Value = serde_json::from_str(asked).unwrap_or_default();
    let text = |path: &str| digits(json.pointer(path).and_then(Value::as_str));
    match kind {
        "telnyx" => (digits(Some(asked)), CALLER.trim_start_matches('+').to_owned()),
        "vonage" => (text("/ncco/0/endpoint/0/number"), text("/ncco/0/from")),
        "jambonz" => (text("/0/target/0/number"), text("/0/callerId")),
        _ => xml("Number"),
    }
}
