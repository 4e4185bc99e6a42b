//! Every door holds a conversation, in real time and all at once: greeting, question, answer, interruption, keys, hang-up.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, http::StatusCode, http::Uri};
use tokio::{net::TcpListener, task::JoinSet};
use voxrelay::{
    audio::decode::decode_file,
    provider::{Action, Media, Person, Provider, What, When, Who, drive, drive::Outcome},
    sim::SimConfig,
    wall::unix_now,
};

use super::{DoorOf, account, doors, phones, reach, setup};
use crate::support::{PATIENCE, Rig, until};

const MS: Duration = Duration::from_millis(1);

/// A part of the clip, ms. At each rate it is read once: in real time there is none to spare.
fn part(rate: u32, from: u32, to: u32) -> Vec<i16> {
    static CLIPS: Mutex<BTreeMap<u32, Vec<i16>>> = Mutex::new(BTreeMap::new());
    let mut clips = CLIPS.lock().unwrap();
    let samples = clips.entry(rate).or_insert_with(|| {
        let path = format!("{}/assets/hello.wav", env!("CARGO_MANIFEST_DIR"));
        decode_file(path, rate).unwrap().samples
    });
    let at = |ms: u32| (ms * rate / 1_000) as usize;
    samples[at(from)..at(to)].to_vec()
}

/// Down to 8 kHz, well enough to compare two recordings that were treated alike.
fn narrow(samples: &[i16], rate: u32) -> Vec<f64> {
    let step = (rate / 8_000) as usize;
    samples.chunks(step).map(|chunk| chunk.iter().copied().map(f64::from).sum::<f64>() / step as f64).collect()
}

fn alike(said: &[f64], heard: &[f64]) -> f64 {
    let (both, a, b) = said
        .iter()
        .zip(heard)
        .fold((0.0, 0.0, 0.0), |(both, a, b), (said, heard)| (both + said * heard, a + said * said, b + heard * heard));
    if a * b == 0.0 { 0.0 } else { both / (a * b).sqrt() }
}

/// How alike some of what was heard is to what was said, where it is most: 1 is the same.
fn likeness(said: &[i16], heard: &[i16], rate: u32) -> f64 {
    let (said, heard) = (narrow(said, rate), narrow(heard, rate));
    let loudness = |samples: &[f64]| -> Vec<f64> {
        samples.chunks(80).map(|block| block.iter().map(|s| s * s).sum::<f64>().sqrt()).collect()
    };
    let (envelope, whole) = (loudness(&said), loudness(&heard));
    let fits = |at: &usize| alike(&envelope, whole.get(*at..).unwrap_or_default());
    let near = (0..whole.len()).max_by(|a, b| fits(a).total_cmp(&fits(b))).unwrap_or(0) * 80;
    let places = near.saturating_sub(160)..=near + 160;
    let rough = |at: &usize| {
        let window = said.len().min(3_000);
        alike(&said[..window], heard.get(*at..).unwrap_or_default())
    };
    let best = places.max_by(|a, b| rough(a).total_cmp(&rough(b))).unwrap_or(near);
    alike(&said, heard.get(best..).unwrap_or_default())
}

async fn call(rig: &Rig, door: &DoorOf, seed: u64, script: impl FnOnce(Media) -> Vec<Action>) -> Outcome {
    let mut setup = setup(door.provider, seed);
    setup.json_control = !door.plain;
    if let Some((media, _)) = door.leg {
        (setup.media, setup.reply) = (media, media);
    }
    let mut reach = reach(rig, door.provider, &door.name);
    if door.provider == Provider::AudioFork {
        // The dialplan names the stream.
        reach.stream_url = Some(format!("ws://{}/phone/{}/stream", rig.relay.addr(), door.name));
    }
    let reached = reach.reach(&mut setup, unix_now()).await.unwrap_or_else(|error| panic!("{}: {error}", door.name));
    if let Some((_, reply)) = door.leg {
        setup.reply = reply;
    }
    let person = Person::new(setup.media, script(setup.media));
    let called = drive(&reached.address, setup, person, 40_000 * MS, |_, _| {});
    Box::pin(called).await.unwrap_or_else(|error| panic!("{}: {error}", door.name))
}

async fn rig(change: impl FnOnce(&mut voxrelay::config::Config)) -> Rig {
    let mut sim = SimConfig::instant();
    sim.record_audio = true;
    let rig = Rig::with(
        |config| {
            phones(config, doors().into_iter().map(|door| (door.name.clone(), account(door.provider, door.audio))));
            config.agents.get_mut("default").unwrap().greeting = Some("Say hello.".to_owned());
            config.server.max_calls = doors().len();
            change(config);
        },
        sim,
        "",
    );
    rig.await
}

const ANSWERED: [u32; 2] = [100, 2_000];
const INTERRUPTED: [u32; 2] = [2_100, 4_700];
const INTERRUPTS: [u32; 2] = [2_100, 3_100];

fn conversation(media: Media, number: usize) -> Vec<Action> {
    let say = |[from, to]: [u32; 2]| What::Say(part(media.rate, from, to));
    vec![
        Action { when: When::Heard(400 * MS), what: say(ANSWERED) },
        Action { when: When::Quiet(800 * MS), what: say(INTERRUPTED) },
        Action { when: When::Heard(700 * MS), what: say(INTERRUPTS) },
        Action { when: When::Quiet(800 * MS), what: What::Press(format!("{number:02}#")) },
        Action { when: When::Quiet(1_200 * MS), what: What::HangUp },
    ]
}

/// What is worth telling of a conversation, and whether it went as it must.
fn judge(door: &DoorOf, outcome: &Outcome, cuts: &[u64]) {
    let (line, summary, name) = (&outcome.line, &outcome.summary, &door.name);
    let ear = line.ear();
    assert_eq!(summary.violations, [], "{name}");
    assert_eq!(summary.ended.who, Who::Caller, "{name}: {:?}", summary.ended);
    let greeted = ear.first_audible(Duration::ZERO).unwrap();
    assert!(greeted < 3_000 * MS, "{name}: greeted after {greeted:?}");
    // The answer stands between the first question and the second.
    let [first, second] = [0, 1].map(|at| summary_speech(outcome, at));
    let tape = ear.tape(second.0);
    let after = line.setup().reply.samples(first.1);
    let answer = likeness(&part(ear.rate(), ANSWERED[0], ANSWERED[1]), &tape[after..], ear.rate());
    // How much of the greeting and of the interrupted answer was heard, and what the service was told of it.
    let third = summary_speech(outcome, 2);
    let truths =
        [ear.heard(first.1), ear.heard(third.1) - ear.heard(second.1)].map(|heard| heard.as_secs_f64() * 1_000.0);
    assert_eq!(cuts.len(), 2, "{name}: {cuts:?}");
    let errors: Vec<f64> = cuts.iter().zip(truths).map(|(cut, truth)| *cut as f64 - truth).collect();
    // A clear is heard at once, but for what is on its way to the ear.
    let silences: Vec<f64> = line
        .clears()
        .iter()
        .map(|at| ear.sounds_until(*at, 200 * MS).map_or(0.0, |end| (end - *at).as_secs_f64() * 1_000.0))
        .collect();
    println!(
        "{name:<16} {} greeted {:.2} s, answer alike {answer:.4}, heard {:+.0} and {:+.0} ms, silent after {silences:.0?} ms",
        line.setup().reply,
        greeted.as_secs_f64(),
        errors[0],
        errors[1]
    );
    assert!(answer > 0.9, "{name}: the answer is what was said: {answer}");
    // The exact promises are kept in virtual time (call::phone's tests); here a busy machine has its say.
    let bound = 300.0;
    assert!(errors.iter().all(|error| (-bound..=bound).contains(error)), "{name}: {errors:?}");
    assert!(silences.iter().all(|ms| *ms <= 160.0), "{name}: {silences:?}");
}

/// From and until when the caller said the n-th thing.
fn summary_speech(outcome: &Outcome, at: usize) -> (Duration, Duration) {
    let speech = outcome.speeches[at];
    (speech.from, speech.until)
}

/// One of these tests at a time: nineteen calls in real time are enough for a small machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn every_door_holds_a_conversation() {
    let _alone = ALONE.lock().await;
    let rig = Arc::new(rig(|_| {}).await);
    for rate in [8_000, 16_000, 24_000] {
        part(rate, 0, 0);
    }
    let mut calls = JoinSet::new();
    for (number, door) in doors().into_iter().enumerate() {
        let rig = rig.clone();
        calls.spawn(async move {
            let outcome = call(&rig, &door, number as u64, |media| conversation(media, number)).await;
            (number, door, outcome)
        });
    }
    let outcomes = calls.join_all().await;
    until("the last session is closed", || rig.sim.stats().sessions_now == 0).await;
    let stats = rig.sim.stats();
    let count = doors().len() as u64;
    assert_eq!((stats.sessions_opened, stats.closed_by_client.values().sum::<u64>()), (count, count), "each once");
    // The keys tell which session is whose.
    let mut sessions = BTreeMap::new();
    for (session, item) in &stats.items {
        let text = item.to_string();
        if let Some((_, keys)) = text.split_once("[The caller pressed ") {
            sessions.insert(keys[..2].parse::<usize>().unwrap(), *session);
        }
    }
    assert_eq!(sessions.len(), doors().len(), "every key was told: {sessions:?}");
    for (number, door, outcome) in &outcomes {
        let own = stats.truncates.iter().filter(|cut| cut.session == sessions[number]);
        let cuts: Vec<u64> = own.map(|cut| cut.audio_end_ms).collect();
        judge(door, outcome, &cuts);
    }
}

/// Answers every request, and remembers it: the REST side of providers.
async fn rest() -> (String, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = asked.clone();
    let pages = Router::new().fallback(move |uri: Uri| {
        seen.lock().unwrap().push(uri.path().to_owned());
        std::future::ready(StatusCode::NO_CONTENT)
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, pages).await.unwrap() });
    (url, asked, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_we_end_ends_at_every_provider() {
    let _alone = ALONE.lock().await;
    let (url, asked, _rest) = rest().await;
    let rig = Arc::new(
        rig(|config| {
            config.call.max_s = 5;
            config.phone.accounts.values_mut().for_each(|account| account.api_url = Some(url.clone()));
        })
        .await,
    );
    // Twice: what the first calls held is free again.
    for round in 0..2_u64 {
        let mut calls = JoinSet::new();
        for (number, door) in doors().into_iter().enumerate() {
            let rig = rig.clone();
            calls.spawn(async move {
                let seed = round * 100 + number as u64;
                let outcome = call(&rig, &door, seed, |_| Vec::new()).await;
                assert_eq!(outcome.summary.ended.who, Who::Relay, "{}: {:?}", door.name, outcome.summary.ended);
                assert_eq!(outcome.summary.violations, [], "{}", door.name);
                assert!(outcome.summary.heard > 200 * MS, "{}: {:?}", door.name, outcome.summary.heard);
                assert!(outcome.summary.ended.at < PATIENCE, "{}", door.name);
            });
        }
        calls.join_all().await;
        until("the last session is closed", || rig.sim.stats().sessions_now == 0).await;
    }
    let stats = rig.sim.stats();
    let count = 2 * doors().len() as u64;
    assert_eq!((stats.sessions_opened, stats.closed_by_client.values().sum::<u64>()), (count, count), "each once");
    // Where closing the stream does not end the call, the provider was asked to, once each.
    let lasts = |door: &&DoorOf| matches!(door.provider, Provider::Telnyx | Provider::Plivo | Provider::Vonage);
    let wanted = 2 * doors().iter().filter(lasts).count();
    until("every provider was told", || asked.lock().unwrap().len() >= wanted).await;
    assert_eq!(asked.lock().unwrap().len(), wanted, "{:?}", asked.lock().unwrap());
}
