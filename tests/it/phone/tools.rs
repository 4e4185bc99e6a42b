//! What an agent does while it is on the telephone, at every door and all at once: it asks a tool of its own and says what came of it, hangs
//! up when its goodbye was heard, and takes the call elsewhere.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    rsa,
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use voxrelay::{
    audio::decode::decode_file,
    config::{AgentConfig, Config, ExpertConfig},
    provider::{Action, Media, Provider, What, When, Who, drive::Outcome},
    sim::{SimConfig, config::ReplyAudio},
};

use super::{
    ACCOUNT, API_KEY, doors, key, one_of_each, rsa_key,
    world::{ALONE, Asked, MS, at_all, caller, found, lasts, part, world},
};
use crate::{
    expert::{Does, MODEL, Service},
    support::PATIENCE,
    tools::{Tools, tool},
};

/// The agent; it does not speak first.
fn agent(config: &mut Config) -> &mut AgentConfig {
    let agent = config.agents.get_mut("default").unwrap();
    agent.greeting = None;
    agent
}

/// A question, and whatever follows it.
fn asks(media: Media, then: impl IntoIterator<Item = Action>) -> Vec<Action> {
    let question = What::Say(part(media.rate, 100, 1_100));
    [Action { when: When::At(300 * MS), what: question }].into_iter().chain(then).collect()
}

/// All that the caller has heard.
fn heard(outcome: &Outcome) -> Vec<i16> {
    outcome.line.ear().samples(outcome.summary.ended.at)
}

/// The simulated model's voice. At each rate it is read once.
fn voice(rate: u32) -> Vec<i16> {
    static VOICES: Mutex<BTreeMap<u32, Vec<i16>>> = Mutex::new(BTreeMap::new());
    let read = || decode_file(format!("{}/assets/reply.flac", env!("CARGO_MANIFEST_DIR")), rate).unwrap().samples;
    VOICES.lock().unwrap().entry(rate).or_insert_with(read).clone()
}

fn length_ms(samples: &[i16], rate: u32) -> f64 {
    samples.len() as f64 * 1_000.0 / f64::from(rate)
}

/// Some providers write numbers without their `+`.
fn digits(number: &str) -> &str {
    number.trim_start_matches('+')
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_door_a_tool_of_the_agents_is_asked_and_what_it_says_is_told_once() {
    let _alone = ALONE.lock().await;
    let tools = Tools::new(Duration::ZERO).await;
    let change = |config: &mut Config| {
        tools.configure(config, None);
        agent(config);
    };
    let calls = |sim: &mut SimConfig| sim.reply.call_tool = Some(r#"look_up {"order":7}"#.to_owned());
    let world = Arc::new(world(change, calls).await);
    let hangs_up = Action { when: When::Heard(1_600 * MS), what: What::HangUp };
    let outcomes = at_all(one_of_each(), &world, 0, move |media, _| asks(media, [hangs_up.clone()])).await;
    for (_, door, outcome) in &outcomes {
        let (summary, name) = (&outcome.summary, &door.name);
        assert_eq!((summary.ended.who, &summary.violations[..]), (Who::Caller, &[][..]), "{name}: {:?}", summary.ended);
        let (rate, heard) = (outcome.line.ear().rate(), heard(outcome));
        let (_, alike) = found(&voice(rate)[..rate as usize * 6 / 5], &heard, rate);
        println!("{name:<16} answer alike {alike:.4}");
        assert!(alike > 0.9, "{name}: the answer is what was heard: {alike}");
    }
    let count = outcomes.len();
    // Each was asked for once, in a request whose signature is right: nothing else comes so far.
    let came = tools.came();
    let who: BTreeSet<&str> =
        came.iter().map(|(_, body)| body["caller"]["user"].as_str().unwrap()).map(digits).collect();
    let ids: BTreeSet<&[u8]> = came.iter().map(|(headers, _)| headers["webhook-id"].as_bytes()).collect();
    assert_eq!((came.len(), ids.len()), (count, count));
    let callers: Vec<String> = (0..count as u64).map(caller).collect();
    assert_eq!(who, callers.iter().map(|caller| digits(caller)).collect());
    for (_, body) in &came {
        assert_eq!((&body["tool"], &body["arguments"]), (&json!("look_up"), &json!({"order": 7})));
        assert_eq!(body["agent"], "default");
    }
    // Each model has one result, and said something after it once: a call, an answer.
    let stats = world.rig.sim.stats();
    let results: Vec<u64> = stats
        .items
        .iter()
        .filter(|(_, item)| item["type"] == "function_call_output")
        .inspect(|(_, item)| assert_eq!(item["output"], r#"{"state":"it is on its way"}"#))
        .map(|(session, _)| *session)
        .collect();
    assert_eq!(
        (results.len(), BTreeSet::from_iter(&results).len()),
        (count, count),
        "one in each session: {results:?}"
    );
    assert_eq!((stats.function_calls, stats.responses), (count as u64, 2 * count as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_door_the_expert_is_asked_and_booked_to_the_call() {
    let _alone = ALONE.lock().await;
    let (service, folder) = (Service::new(Does::Answers(Duration::ZERO, 500)).await, tempfile::tempdir().unwrap());
    let file = folder.path().join("ledger.db");
    let change = |config: &mut Config| {
        config.ledger.file = Some(file.clone());
        service.configure(config, ExpertConfig { filler: String::new(), ..ExpertConfig::default() });
        agent(config);
    };
    let calls = |sim: &mut SimConfig| sim.reply.call_tool = Some(r#"ask_expert {"question":"Why?"}"#.to_owned());
    let world = Arc::new(world(change, calls).await);
    let hangs_up = Action { when: When::Heard(1_600 * MS), what: What::HangUp };
    let outcomes = at_all(one_of_each(), &world, 0, move |media, _| asks(media, [hangs_up.clone()])).await;
    for (_, door, outcome) in &outcomes {
        let summary = &outcome.summary;
        assert_eq!((summary.ended.who, &summary.violations[..]), (Who::Caller, &[][..]), "{}", door.name);
    }
    let told = world.rig.sim.stats().items;
    let told = told.iter().filter(|(_, item)| item["type"] == "function_call_output");
    let told: Vec<_> = told.map(|(_, item)| item["output"].as_str().unwrap()).collect();
    let answer = r#"{"answer":"The truck has broken down. It will come on Friday."}"#;
    assert_eq!((told.len(), service.count()), (outcomes.len(), outcomes.len()));
    assert!(told.iter().all(|told| *told == answer), "{told:?}");
    assert_eq!(world.rig.relay.ledger().flush(PATIENCE).await, 0);
    let sql = Connection::open(&file).unwrap();
    let rows = |which: &str| -> BTreeSet<(String, String)> {
        let mut rows = sql.prepare(&format!("SELECT call, door FROM usage WHERE {which}")).unwrap();
        rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    let asked = rows(&format!("kind = 'reply' AND model = '{MODEL}' AND status = 'completed' AND total_tokens = 500"));
    assert_eq!((asked.len(), &asked), (outcomes.len(), &rows("kind = 'call'")), "each to its call, at its door");
}

/// Who has ended each call and why, by the ledger: one line of each caller.
fn ends(file: &Path) -> BTreeMap<String, (String, String)> {
    let sql = Connection::open(file).unwrap();
    let mut rows = sql.prepare("SELECT user, status, reason FROM usage WHERE kind = 'call'").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
    let rows: Vec<(String, (String, String))> = rows.collect::<Result<_, _>>().unwrap();
    let ends: BTreeMap<_, _> = rows.iter().map(|(user, end)| (digits(user).to_owned(), end.clone())).collect();
    assert_eq!(ends.len(), rows.len(), "one line of each call: {rows:?}");
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_door_the_agent_hangs_up_when_its_goodbye_was_heard_whole() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.db");
    let change = |config: &mut Config| {
        config.ledger.file = Some(file.clone());
        agent(config).tools = vec![tool("builtin = \"hang_up\"")];
    };
    let service = |sim: &mut SimConfig| {
        sim.reply.audio = ReplyAudio::Voice;
        (sim.reply.call_tool, sim.reply.speaks_with_calls) = (Some("hang_up".to_owned()), true);
    };
    let world = Arc::new(world(change, service).await);
    let outcomes = at_all(doors(), &world, 0, |media, _| asks(media, [])).await;
    world.rig.relay.ledger().flush(PATIENCE).await;
    let ends = ends(&file);
    let mut short = Vec::new();
    for (number, door, outcome) in &outcomes {
        let (line, summary, name) = (&outcome.line, &outcome.summary, &door.name);
        // A provider that is asked to hang up may do so before the stream is closed.
        let told = lasts(door) && summary.ended.who == Who::Caller;
        assert!(told || summary.ended.who == Who::Relay, "{name}: {:?}", summary.ended);
        assert_eq!(summary.violations, [], "{name}");
        let (rate, heard) = (line.ear().rate(), heard(outcome));
        let goodbye = voice(rate);
        let (place, alike) = found(&goodbye, &heard, rate);
        let missing = place + length_ms(&goodbye, rate) - length_ms(&heard, rate);
        let last = line.ear().last_audible(summary.ended.at).unwrap();
        println!(
            "{name:<16} alike {alike:.4}, {missing:.1} ms missing, {:?} unheard, ended {:.0?} after the last sound",
            summary.ended.unheard,
            summary.ended.at - last
        );
        if alike < 0.9 || missing > 5.0 || summary.ended.unheard > 5 * MS {
            short.push(name);
        }
        let (who, why) = &ends[digits(&caller(*number as u64))];
        assert_eq!((who.as_str(), why.as_str()), ("agent", "the agent ended the call"), "{name}");
    }
    assert!(short.is_empty(), "the goodbye was not heard whole: {short:?}");
    assert_eq!(ends.len(), outcomes.len());
    // Where closing the stream does not end the call, the provider was asked to, once each.
    world.rest.until(doors().iter().filter(|door| lasts(door)).count()).await;
    assert_eq!(world.rig.sim.stats().function_calls, outcomes.len() as u64);
}

/// The request that takes a call to +15550123: method, where, and a part of what it says.
fn transfer_of(provider: Provider, call: &str) -> (&'static str, String, &'static str) {
    let (there, page) = ("%2B15550123", "%2Fphone%2F");
    match provider {
        Provider::Twilio => ("POST", format!("/2010-04-01/Accounts/{ACCOUNT}/Calls/{call}.json"), there),
        Provider::SignalWire => ("POST", format!("/api/laml/2010-04-01/Accounts/{ACCOUNT}/Calls/{call}.json"), page),
        Provider::Telnyx => ("POST", format!("/v2/calls/{call}/actions/transfer"), r#""to":"+15550123""#),
        Provider::Plivo => ("POST", format!("/v1/Account/{ACCOUNT}/Call/{call}/"), there),
        Provider::Vonage => ("PUT", format!("/v1/calls/{call}"), r#""number":"15550123""#),
        Provider::Jambonz => ("PUT", format!("/v1/Accounts/{ACCOUNT}/Calls/{call}"), there),
        Provider::AudioFork => ("GET", format!("/txtapi/uuid_transfer?{call}%20{there}%20XML%20voxrelay"), ""),
        Provider::ChanWebSocket | Provider::AudioSocket => {
            ("POST", format!("/channels/{call}/continue?context=voxrelay&extension={there}&priority=1"), "")
        }
    }
}

/// What the account shows.
fn credential(provider: Provider, shown: &str) -> bool {
    let basic = |word: &str| format!("Basic {}", STANDARD.encode(format!("{ACCOUNT}:{word}")));
    match provider {
        Provider::Twilio | Provider::SignalWire | Provider::Plivo => shown == basic(&key(provider)),
        Provider::Telnyx | Provider::Jambonz => shown == format!("Bearer {API_KEY}"),
        Provider::AudioFork | Provider::ChanWebSocket | Provider::AudioSocket => shown == basic(API_KEY),
        // A token of its own each time: the application's, by its key.
        Provider::Vonage => shown.strip_prefix("Bearer ").is_some_and(is_vonages),
    }
}

fn is_vonages(token: &str) -> bool {
    let pem = std::fs::read_to_string(rsa_key()).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let pair = rsa::KeyPair::from_pkcs8(&STANDARD.decode(der).unwrap()).unwrap();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref());
    let (signed, tag) = token.rsplit_once('.').unwrap();
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap()).unwrap();
    claims["application_id"] == ACCOUNT
        && public.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(tag).unwrap()).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_door_the_agent_takes_the_call_elsewhere_by_one_request() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.db");
    let change = |config: &mut Config| {
        config.ledger.file = Some(file.clone());
        agent(config).tools = vec![tool("builtin = \"transfer\"\ntargets = { support = \"+15550123\" }")];
    };
    let service = |sim: &mut SimConfig| {
        sim.reply.call_tool = Some(r#"transfer {"to":"support"}"#.to_owned());
        sim.reply.speaks_with_calls = true;
    };
    let world = Arc::new(world(change, service).await);
    let outcomes = at_all(one_of_each(), &world, 0, |media, _| asks(media, [])).await;
    world.rig.relay.ledger().flush(PATIENCE).await;
    let (ends, asked) = (ends(&file), world.rest.asked());
    for (number, door, outcome) in &outcomes {
        let (call, summary, name) = (&outcome.line.setup().ids.call, &outcome.summary, &door.name);
        let (method, target, says) = transfer_of(door.provider, call);
        let own: Vec<&Asked> = asked.iter().filter(|asked| asked.target.contains(call.as_str())).collect();
        let [one] = own[..] else { panic!("{name}: one request: {own:?}") };
        assert_eq!((one.method.as_str(), &one.target), (method, &target), "{name}");
        assert!(one.body.contains(says), "{name}: {}", one.body);
        assert!(credential(door.provider, &one.authorization), "{name}");
        // The provider has ended the stream, when the sentence before it was heard.
        assert_eq!((summary.ended.who, &summary.violations[..]), (Who::Caller, &[][..]), "{name}: {:?}", summary.ended);
        assert!(summary.heard > 500 * MS && summary.ended.unheard.is_zero(), "{name}: {summary:?}");
        let (who, why) = &ends[digits(&caller(*number as u64))];
        assert_eq!((who.as_str(), why.as_str()), ("agent", "the call was transferred"), "{name}");
    }
    assert_eq!(asked.len(), outcomes.len(), "nobody is told to hang up");
}
