//! Calls under which something breaks, thousands of times: what is lost, what is doubled, and how long it takes.
//!
//! Relay, simulator, fault proxy and callers share this process, so that the records of both ends can be compared sample by
//! sample. Chances are seeded; which moments they meet depends on the machine. Prints each promise beside what was
//! measured, and ends the process with 1 when one is broken.
use std::{collections::HashMap, fs, net::SocketAddr, process::exit, time::Duration};

use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use voxrelay::{
    chaos::{Direction, Fault, Kind, Proxy, Script, When},
    config::{Config, Secret},
    serve::Server,
    sim::{Faults, Sim, SimConfig, config::Delay},
};

use super::{
    gap::gaps,
    line::{Caller, FRAME, MOST_CALLS, Reader, TRIPLES, Tally},
    restarts::restarts,
};

pub(crate) const SEED: u64 = 20_261_128;
/// Of one call: both ends of two sockets, and of a third one where the proxy stands between.
const FILES_PER_CALL: usize = 6;
/// Calls begin one after another at this distance: 200 a second.
const APART: Duration = Duration::from_millis(5);
/// What a turn of a caller is long, in frames.
const LONG_TURN: usize = 50;
const SHORT_TURN: usize = 25;
/// Sessions lost by each call in one round; the simulator keeps all audio of a round. More than 8 in a minute end a call,
/// as they should.
const DROPS_PER_ROUND: usize = 3;
/// Age at which a session may be lost, first and last, ms, and the moments between.
const AGES_MS: (u64, u64) = (8_000, 20_000);
const MOMENTS: u64 = 24;
/// A session ends at this age, ms; a call leaves it before.
pub(crate) const CAP_MS: u64 = 6_000;
/// How long the service is away in a storm, and how long all may take to be back.
const DOWN: Duration = Duration::from_secs(3);
const STORM_PATIENCE: Duration = Duration::from_secs(120);
/// Promised: docs/survival.md, `upstream::redial`.
const MOST_TRIES: f64 = 2.5;
const MOST_PER_SECOND: u64 = 150;
/// Complaints that are printed; the others are counted.
pub(crate) const COMPLAINTS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Callers lose their sockets.
    Clients,
    /// The relay loses its sessions.
    Sessions,
    /// Sessions reach their cap.
    Rotations,
    /// All sessions are lost at once, and the service is away.
    Storm,
    /// Processes follow one another: RESTARTS, RATE of new connections.
    Restarts,
    All,
}

/// Runs these parts; ends the process with 1 when a promise is broken.
pub(crate) fn run(part: Part, calls: Option<usize>, drops: Option<usize>) {
    let wanted = |this| part == this || part == Part::All;
    let (many, most) = (calls.unwrap_or(1_000), drops.unwrap_or(10_000));
    let storm_calls = calls.unwrap_or(2_000);
    enough_files(if wanted(Part::Storm) { many.max(storm_calls) } else { many });
    let runtime = Runtime::new().unwrap();
    let mut kept = true;
    if wanted(Part::Clients) {
        kept &= runtime.block_on(Box::pin(clients(many, most)));
    }
    if wanted(Part::Sessions) {
        kept &= runtime.block_on(Box::pin(sessions(many, most)));
    }
    if wanted(Part::Rotations) {
        let (calls, changes) = (calls.unwrap_or(200), drops.unwrap_or(1_000));
        kept &= runtime.block_on(Box::pin(rotations(calls, changes)));
        kept &= runtime.block_on(Box::pin(gaps(calls.div_ceil(2), changes.div_ceil(2))));
    }
    if wanted(Part::Storm) {
        kept &= runtime.block_on(Box::pin(storm(storm_calls)));
    }
    if wanted(Part::Restarts) {
        // Its numbers are none of the others'.
        let (count, rate) = if part == Part::All { (None, None) } else { (calls, drops) };
        kept &= runtime.block_on(Box::pin(restarts(count.unwrap_or(100), rate.unwrap_or(200) as u64)));
    }
    if !kept {
        println!("A PROMISE IS BROKEN");
        exit(1);
    }
}

/// Ends the process where so many calls cannot be had.
fn enough_files(calls: usize) {
    if calls > MOST_CALLS {
        println!("at most {MOST_CALLS} calls can be told apart, and {calls} were asked for");
        exit(2);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit: Option<usize> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let needed = calls * FILES_PER_CALL + 200;
    if limit.is_some_and(|limit| limit < needed) {
        println!(
            "{calls} calls need {needed} open files in one process, and {} are allowed (ulimit -Hn): raise it, or take \
             fewer calls",
            limit.unwrap_or_default()
        );
        exit(2);
    }
}

/// The service, a network that may break, and the relay.
pub(crate) struct Rig {
    pub(crate) relay: Server,
    proxy: Proxy,
    pub(crate) sim: Sim,
    /// From one append to the next.
    pub(crate) chunk: Duration,
}

impl Rig {
    pub(crate) async fn start(calls: usize, sim: SimConfig, script: Script) -> Self {
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let sim =
            Sim::start(free, SimConfig { max_sessions: calls * 4 + 100, ..sim }, Faults::default()).await.unwrap();
        let proxy = Proxy::start(free, sim.addr(), script).await.unwrap();
        let mut config = Config::load(None, |_| None).unwrap();
        config.server.listen = free;
        config.server.max_calls = calls + 10;
        config.upstream.url = Some(format!("http://{}/v1", proxy.addr()));
        config.upstream.api_key = Some(Secret::new("bench"));
        let chunk = Duration::from_millis(config.audio.chunk_ms);
        Self { relay: Server::start(config, None).await.unwrap(), proxy, sim, chunk }
    }
}

/// Lets so many callers do this, one after another begun; what they found out, and how many calls ended early.
pub(crate) async fn all<F>(calls: usize, caller: impl Fn(usize) -> F) -> (HashMap<usize, Tally>, u64)
where
    F: Future<Output = Result<Tally, String>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for number in 0..calls {
        let caller = Box::pin(caller(number));
        tasks.spawn(async move { (number, caller.await) });
        time::sleep(APART).await;
    }
    let (mut tallies, mut failed) = (HashMap::new(), 0);
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            (number, Ok(tally)) => drop(tallies.insert(number, tally)),
            (_, Err(why)) => {
                failed += 1;
                if failed <= COMPLAINTS as u64 {
                    println!("  {why}");
                }
            }
        }
    }
    (tallies, failed)
}

/// A line of the table; whether it is as promised.
pub(crate) fn promise(what: &str, promised: &str, kept: bool, measured: &str) -> bool {
    println!("  {what:<52} {promised:>12} {measured:>16}{}", if kept { "" } else { "   BROKEN" });
    kept
}

/// Something that must not happen.
pub(crate) fn none(what: &str, found: u64) -> bool {
    promise(what, "0", found == 0, &found.to_string())
}

pub(crate) fn fact(what: &str, found: impl ToString) {
    println!("  {what}: {}", found.to_string());
}

/// The longest of this share of them, the shortest first.
pub(crate) fn at_share(of: &[Duration], share: f64) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort();
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(Duration::MAX)
}

pub(crate) fn times(what: &str, of: Vec<Duration>) {
    let at = |share: f64| if of.is_empty() { f64::NAN } else { at_share(&of, share).as_secs_f64() * 1e3 };
    fact(
        &format!("{what} ({}), ms, p50 / p99 / max", of.len()),
        format!("{:.1} / {:.1} / {:.1}", at(0.5), at(0.99), at(1.0)),
    );
}

/// Of all turns: samples that were not heard back, and that were heard again.
pub(crate) fn lost_and_doubled(tallies: &HashMap<usize, Tally>) -> (u64, u64) {
    let (mut lost, mut doubled) = (0, 0);
    for heard in tallies.values().flat_map(|tally| tally.turns.iter().flatten()) {
        lost += 3 * u64::from(*heard == 0);
        doubled += 3 * u64::from(heard.saturating_sub(1));
    }
    (lost, doubled)
}

pub(crate) fn collect(
    tallies: &mut HashMap<usize, Tally>,
    which: impl Fn(&mut Tally) -> &mut Vec<Duration>,
) -> Vec<Duration> {
    tallies.values_mut().flat_map(|tally| std::mem::take(which(tally))).collect()
}

async fn clients(calls: usize, drops: usize) -> bool {
    println!("clients: {calls} calls lose their sockets {drops} times by a reset, in utterances and in answers");
    let rig = Rig::start(calls, SimConfig::default(), Script::new(SEED)).await;
    let (addr, turns) = (rig.relay.addr(), drops.div_ceil(calls * 2).max(1));
    let (mut tallies, failed) = all(calls, |number| async move {
        let mut caller = Caller::begin(addr, number, SEED).await?;
        for _ in 0..turns {
            caller.speak(LONG_TURN, true).await?;
            let after = caller.throw(0, 1_200);
            caller.answer(Some(Duration::from_millis(after))).await?;
        }
        Ok(caller.tally)
    })
    .await;
    let (lost, doubled) = lost_and_doubled(&tallies);
    let dropped: u64 = tallies.values().map(|tally| tally.drops).sum();
    let opened = rig.sim.stats().sessions_opened;
    let kept = [
        promise("sockets lost", &format!(">= {drops}"), dropped >= drops as u64, &dropped.to_string()),
        none("calls that ended early", failed),
        none("samples lost", lost),
        none("samples doubled", doubled),
        none("messages doubled", tallies.values().map(|tally| tally.messages_twice).sum()),
        promise("sessions opened", &calls.to_string(), opened == calls as u64, &opened.to_string()),
    ];
    times("from the dial to `resumed`", collect(&mut tallies, |tally| &mut tally.back));
    println!();
    kept.into_iter().all(|kept| kept)
}

/// Each session is lost at an age that is thrown for it.
fn mortal(seed: u64) -> Script {
    let (first, last) = AGES_MS;
    (0..=MOMENTS).fold(Script::new(seed), |script, n| {
        let at = When::At(first + (last - first) / MOMENTS * n);
        let dies = Fault::new(Kind::Reset).to(Direction::ToClient).when(at);
        // The n-th of those that are left, so that all ages are as likely; the last one is certain.
        script.with(Fault { chance: 1.0 / (MOMENTS + 1 - n) as f64, ..dies })
    })
}

async fn sessions(calls: usize, drops: usize) -> bool {
    println!(
        "sessions: {calls} calls lose their sessions {drops} times by a reset, whatever they do; connects take 100 ms"
    );
    let (mut done, mut round, mut kept) = (0, 0, true);
    let (mut failed, mut silent, mut told, mut doubled, mut twice, mut resets) = (0, 0, 0, 0, 0, 0);
    let (mut anew, mut audible) = (Vec::new(), Vec::new());
    while done < drops as u64 && kept {
        let mut sim = SimConfig { record_audio: true, ..SimConfig::default() };
        sim.delays.connect = Delay { ms: 100, ..Delay::default() };
        let rig = Rig::start(calls, sim, mortal(SEED + round)).await;
        round += 1;
        let wanted = (drops as u64 - done).min((DROPS_PER_ROUND * calls) as u64);
        let addr = rig.relay.addr();
        let (enough, ended) = (CancellationToken::new(), CancellationToken::new());
        let callers = all(calls, |number| {
            let enough = enough.clone();
            async move {
                let mut caller = Caller::begin(addr, number, SEED + round).await?;
                while !enough.is_cancelled() {
                    caller.speak(SHORT_TURN, false).await?;
                    caller.answer(None).await?;
                    let idle = caller.throw(500, 4_000);
                    caller.listen(Instant::now() + Duration::from_millis(idle)).await?;
                }
                Ok(caller.tally)
            }
        });
        let watch = async {
            while rig.proxy.stats().count("reset") < wanted && !ended.is_cancelled() {
                time::sleep(Duration::from_millis(100)).await;
            }
            rig.proxy.set(Script::new(SEED)); // the last turns end in peace
            enough.cancel();
        };
        let callers = async {
            let all = callers.await;
            ended.cancel(); // all of them, too early perhaps
            all
        };
        let ((mut tallies, early), ()) = tokio::join!(callers, watch);
        failed += early;
        kept = early == 0;
        resets += rig.proxy.stats().count("reset");
        done += wanted;
        let (unheard, announced) = unheard(&rig, &tallies);
        (silent, told) = (silent + unheard, told + announced);
        doubled += lost_and_doubled(&tallies).1;
        twice += tallies.values().map(|tally| tally.messages_twice).sum::<u64>();
        anew.extend(collect(&mut tallies, |tally| &mut tally.anew));
        audible.extend(collect(&mut tallies, |tally| &mut tally.audible));
    }
    fact("samples lost and named by `audio_gap`", told);
    let kept = [
        promise("sessions lost", &format!(">= {done}"), resets >= drops as u64, &resets.to_string()),
        none("calls that ended early", failed),
        none("samples that no session heard, in silence", silent),
        none("samples of answers said twice", doubled),
        none("replies begun or ended twice", twice),
    ];
    times("from `upstream_reconnecting` to `upstream_resumed`", anew);
    times("and to the audio of the answer that was waited for", audible);
    println!();
    kept.into_iter().all(|kept| kept)
}

/// Samples that callers have said and no session has heard: those that nobody told of, and those that `audio_gap` named.
fn unheard(rig: &Rig, tallies: &HashMap<usize, Tally>) -> (u64, u64) {
    let said = tallies.iter().map(|(who, tally)| {
        let turns: Vec<Vec<bool>> = tally.turns.iter().map(|turn| vec![false; turn.len()]).collect();
        (*who, turns)
    });
    let mut heard: HashMap<usize, Vec<Vec<bool>>> = said.collect();
    for recorded in rig.sim.stats().recorded {
        Reader::default().read(&recorded.audio, |who, turn, n| {
            let place = heard.get_mut(&who).and_then(|turns| turns.get_mut(turn)?.get_mut(n));
            if let Some(place) = place {
                *place = true;
            }
        });
    }
    let (mut silent, mut told) = (0, 0);
    for (who, turns) in heard {
        let (gaps, mut before) = (&tallies[&who].gaps, 0);
        for turn in turns {
            for (n, _) in turn.iter().enumerate().filter(|(_, heard)| !**heard) {
                let ms = ((before + n) / (TRIPLES / FRAME.as_millis() as usize)) as u64;
                let named = gaps.iter().any(|(from, to)| (*from..=*to).contains(&ms));
                *(if named { &mut told } else { &mut silent }) += 3;
            }
            before += turn.len();
        }
    }
    (silent, told)
}

async fn rotations(calls: usize, rotations: usize) -> bool {
    println!("rotations: {calls} calls whose sessions may live for {} s change over {rotations} times", CAP_MS / 1_000);
    let sim = SimConfig { session_cap_ms: CAP_MS, ..SimConfig::default() };
    let rig = Rig::start(calls, sim, Script::new(SEED)).await;
    let (addr, each) = (rig.relay.addr(), rotations.div_ceil(calls) as u64);
    let (mut tallies, failed) = all(calls, |number| async move {
        let mut caller = Caller::begin(addr, number, SEED).await?;
        while caller.tally.rotated < each {
            caller.speak(SHORT_TURN, false).await?;
            caller.answer(None).await?;
        }
        Ok(caller.tally)
    })
    .await;
    let (lost, doubled) = lost_and_doubled(&tallies);
    let rotated: u64 = tallies.values().map(|tally| tally.rotated).sum();
    let capped = rig.sim.stats().errors.get("session_expired").copied().unwrap_or_default();
    let kept = [
        promise(
            "sessions left for another",
            &format!(">= {rotations}"),
            rotated >= rotations as u64,
            &rotated.to_string(),
        ),
        none("calls that ended early", failed),
        none("sessions that reached their cap", capped),
        none("samples lost", lost),
        none("samples doubled", doubled),
        none("messages doubled", tallies.values().map(|tally| tally.messages_twice).sum()),
    ];
    times(
        "`commit` to `reply_started`, the session changed since the turn began",
        collect(&mut tallies, |tally| &mut tally.begun_rotating),
    );
    times("and without", collect(&mut tallies, |tally| &mut tally.begun));
    println!();
    kept.into_iter().all(|kept| kept)
}

async fn storm(calls: usize) -> bool {
    println!("storm: {calls} idle calls lose their sessions at once, and the service is away for {} s", DOWN.as_secs());
    let rig = Rig::start(calls, SimConfig::default(), Script::new(SEED)).await;
    let addr = rig.relay.addr();
    let over = CancellationToken::new();
    let callers = all(calls, |number| {
        let over = over.clone();
        async move {
            let mut caller = Caller::begin(addr, number, SEED).await?;
            while !over.is_cancelled() {
                caller.listen(Instant::now() + Duration::from_millis(250)).await?;
            }
            Ok(caller.tally)
        }
    });
    let weather = async {
        let deadline = Instant::now() + STORM_PATIENCE + APART * u32::try_from(calls).unwrap();
        while rig.sim.stats().sessions_opened < calls as u64 && Instant::now() < deadline {
            time::sleep(Duration::from_millis(100)).await;
        }
        let measured = blow(&rig, calls as u64).await;
        over.cancel();
        measured
    };
    let ((mut tallies, failed), (tries, peak, back)) = tokio::join!(callers, weather);
    let lost: u64 = tallies.values().map(|tally| tally.drops).sum();
    let each = tries as f64 / calls as f64;
    let kept = [
        promise("calls that lost their session", &calls.to_string(), lost >= calls as u64, &lost.to_string()),
        none("calls that ended early", failed),
        promise("tries per call", &format!("<= {MOST_TRIES}"), each <= MOST_TRIES, &format!("{each:.2}")),
        promise(
            "tries in the worst second",
            &format!("<= {MOST_PER_SECOND}"),
            peak <= MOST_PER_SECOND,
            &peak.to_string(),
        ),
        promise(
            "all are back, s after the service is",
            "sometime",
            back.is_some(),
            &back.map_or("never".to_owned(), |back| format!("{:.1}", back.as_secs_f64())),
        ),
    ];
    times("from `upstream_reconnecting` to `upstream_resumed`", collect(&mut tallies, |tally| &mut tally.anew));
    println!();
    kept.into_iter().all(|kept| kept)
}

/// Takes the service away from all, and gives it back: tries, the most within a second, and when all were back.
async fn blow(rig: &Rig, calls: u64) -> (u64, u64, Option<Duration>) {
    let before = rig.proxy.stats().connections;
    rig.proxy.set(Script::new(SEED).with(Fault::new(Kind::Refuse)));
    rig.proxy.reset_all();
    let began = Instant::now();
    let (mut seen, mut back, mut is_down) = (Vec::new(), None, true);
    let opened = rig.sim.stats().sessions_opened;
    while back.is_none() && began.elapsed() < STORM_PATIENCE {
        if is_down && began.elapsed() >= DOWN {
            rig.proxy.set(Script::new(SEED));
            is_down = false;
        }
        seen.push((began.elapsed(), rig.proxy.stats().connections - before));
        if rig.sim.stats().sessions_opened >= opened + calls {
            back = Some(began.elapsed().saturating_sub(DOWN));
        }
        time::sleep(Duration::from_millis(20)).await;
    }
    let peak = seen.iter().map(|(at, tries)| {
        let earlier = seen.iter().take_while(|(then, _)| *then + Duration::from_secs(1) < *at).last();
        tries - earlier.map_or(0, |(_, tries)| *tries)
    });
    (seen.last().map_or(0, |(_, tries)| *tries), peak.max().unwrap_or(0), back)
}
