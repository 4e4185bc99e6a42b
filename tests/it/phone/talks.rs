//! Every door holds a conversation, in real time and all at once: greeting, question, answer, interruption, keys, hang-up.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use voxrelay::provider::{Action, Media, What, When, Who, drive::Outcome};

use super::{
    DoorOf, doors,
    world::{ALONE, MS, at_all, found, lasts, part, world},
};
use crate::support::PATIENCE;

/// How alike some of what was heard is to what was said, where it is most: 1 is the same.
fn likeness(said: &[i16], heard: &[i16], rate: u32) -> f64 {
    found(said, heard, rate).1
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
    let heard = &ear.samples(second.0)[line.setup().reply.samples(ear.heard(first.1))..];
    let answer = likeness(&part(ear.rate(), ANSWERED[0], ANSWERED[1]), heard, ear.rate());
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

#[tokio::test(flavor = "multi_thread")]
async fn every_door_holds_a_conversation() {
    let _alone = ALONE.lock().await;
    let world = Arc::new(world(|_| {}, |_| {}).await);
    let outcomes = at_all(doors(), &world, 0, conversation).await;
    let rig = &world.rig;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_we_end_ends_at_every_provider() {
    let _alone = ALONE.lock().await;
    let world = Arc::new(world(|config| config.call.max_s = 5, |_| {}).await);
    // Twice: what the first calls held is free again.
    for round in 0..2_u64 {
        for (_, door, outcome) in at_all(doors(), &world, round, |_, _| Vec::new()).await {
            let (summary, name) = (&outcome.summary, &door.name);
            // A provider that is asked to hang up may do so before the stream is closed.
            let told = lasts(&door) && summary.ended.who == Who::Caller;
            assert!(told || summary.ended.who == Who::Relay, "{name}: {:?}", summary.ended);
            assert_eq!(summary.violations, [], "{name}");
            assert!(summary.heard > 200 * MS, "{name}: {:?}", summary.heard);
            assert!(summary.ended.at < PATIENCE, "{name}");
        }
    }
    let rig = &world.rig;
    let stats = rig.sim.stats();
    let count = 2 * doors().len() as u64;
    assert_eq!((stats.sessions_opened, stats.closed_by_client.values().sum::<u64>()), (count, count), "each once");
    // Where closing the stream does not end the call, the provider was asked to, once each.
    world.rest.until(2 * doors().iter().filter(|door| lasts(door)).count()).await;
}
