//! How long a change of sessions keeps the caller's audio from every session (fault matrix U4: p99 <= 150 ms).
//!
//! Callers speak without a pause, so that a change falls into the middle of what they say, which is the worst moment. The
//! service notes when each append came. Of a change, this measures the time from the last append with something new in the old
//! session to the first one in the new session that holds what no session has heard, less the time from one append to the next
//! where nothing changes (`audio.chunk_ms`). What the new session is told again first is no news, and its time counts. Changes
//! between two utterances are left out: nobody spoke. Answers are not in it: none is played while a session changes, but at a
//! session's last moment.
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;
use voxrelay::{
    chaos::Script,
    sim::{SimConfig, stats::Recorded},
};

use super::{
    line::{Caller, Reader, TRIPLES},
    survive::{CAP_MS, Rig, SEED, all, at_share, fact, none, promise, times},
};

/// How long an utterance is, in frames; so much is told to the new session again at most.
const UTTERANCE: usize = 100;
/// Promised: fault-matrix U4.
const LONGEST: Duration = Duration::from_millis(150);

/// Whether the promise is kept by so many callers and changes.
pub(crate) async fn gaps(calls: usize, changes: usize) -> bool {
    println!("and {calls} callers who speak without a pause, in {changes} changes");
    let sim = SimConfig { session_cap_ms: CAP_MS, record_audio: true, ..SimConfig::default() };
    let rig = Rig::start(calls, sim, Script::new(SEED)).await;
    let (addr, each) = (rig.relay.addr(), changes.div_ceil(calls) as u64);
    let (tallies, failed) = all(calls, |number| async move {
        let mut caller = Caller::begin(addr, number, SEED).await?;
        while caller.tally.rotated < each {
            caller.talk(UTTERANCE).await?;
        }
        Ok(caller.tally)
    })
    .await;
    let changed: u64 = tallies.values().map(|tally| tally.rotated).sum();
    let (gaps, otherwise) = measure(&rig.sim.stats().recorded, rig.chunk);
    let wanted = changes as u64 * 3 / 4;
    let p99 = at_share(&gaps, 0.99);
    let kept = [
        promise("changes", &format!(">= {changes}"), changed >= changes as u64, &changed.to_string()),
        promise(
            "in the middle of an utterance",
            &format!(">= {wanted}"),
            gaps.len() as u64 >= wanted,
            &gaps.len().to_string(),
        ),
        none("calls that ended early", failed),
        promise(
            "the caller's audio reaches no session, p99, ms",
            &format!("<= {}", LONGEST.as_millis()),
            p99 <= LONGEST,
            &format!("{:.1}", p99.as_secs_f64() * 1e3),
        ),
    ];
    times("the caller's audio reaches no session", gaps);
    times("the same from one append to the next, where nothing changes", otherwise);
    fact("of an append, ms", rig.chunk.as_millis());
    println!();
    kept.into_iter().all(|kept| kept)
}

/// When each frame of a caller was heard first, and by which session; by utterance and place in it.
type Frames = BTreeMap<(usize, usize), (Instant, u64)>;

/// At changes, and otherwise: the time between two appends with something new in them, less a chunk's.
fn measure(recorded: &[Recorded], chunk: Duration) -> (Vec<Duration>, Vec<Duration>) {
    let mut heard: HashMap<usize, Frames> = HashMap::new();
    for session in recorded {
        let (mut reader, mut from) = (Reader::default(), 0);
        for (at, length) in &session.came {
            reader.read(&session.audio[from..*length], |who, turn, n| {
                if n % TRIPLES == 0 {
                    let first = heard.entry(who).or_default().entry((turn, n)).or_insert((*at, session.session));
                    *first = (*first).min((*at, session.session));
                }
            });
            from = *length;
        }
    }
    let (mut gaps, mut otherwise) = (Vec::new(), Vec::new());
    for frames in heard.into_values() {
        let frames: Vec<_> = frames.into_iter().collect();
        for pair in frames.windows(2) {
            let [((turn, _), (at, session)), ((next_turn, _), (next, next_session))] = pair else { continue };
            if turn != next_turn || at == next {
                continue;
            }
            let list = if session == next_session { &mut otherwise } else { &mut gaps };
            list.push(next.saturating_duration_since(*at).saturating_sub(chunk));
        }
    }
    (gaps, otherwise)
}
