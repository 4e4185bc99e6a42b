//! What the stories of calls at every door stand on: a relay with an account for each, providers' REST APIs that remember what they are
//! asked, callers that speak, and an ear that finds in what it heard what was said.
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderMap, Method, Uri},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use voxrelay::{
    audio::decode::decode_file,
    config::Config,
    provider::{Action, Media, Person, Provider, drive::Outcome, drive_until},
    sim::SimConfig,
    wall::unix_now,
};

use super::{DoorOf, account, doors, phones, reach, setup};
use crate::{
    dial::address,
    support::{Rig, until},
};

pub(super) const MS: Duration = Duration::from_millis(1);

/// A relay with an account for every door, the providers' REST side, and where AudioSockets come in.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) rest: Rest,
    audiosocket: SocketAddr,
}

/// A request to a provider's REST API.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path and query.
    pub(super) target: String,
    pub(super) authorization: String,
    pub(super) body: String,
}

/// What ends the streams of calls at their providers, by the calls' ids.
type Live = Arc<Mutex<BTreeMap<String, CancellationToken>>>;

/// Does what it is asked for, which for the call that the address names is the end of its stream, and remembers it.
pub(super) struct Rest {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    live: Live,
    _tasks: JoinSet<()>,
}

impl Rest {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, live) = (Arc::<Mutex<Vec<Asked>>>::default(), Live::default());
        let (seen, calls) = (asked.clone(), live.clone());
        let pages = Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: String| {
            let authorization = headers["authorization"].to_str().unwrap().to_owned();
            for (_, over) in calls.lock().unwrap().iter().filter(|(call, _)| uri.to_string().contains(*call)) {
                over.cancel();
            }
            seen.lock().unwrap().push(Asked { method, target: uri.to_string(), authorization, body });
            // Nobody but FreeSWITCH reads more than the status.
            std::future::ready("+OK")
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, pages).await.unwrap() });
        Self { url, asked, live, _tasks: tasks }
    }

    /// Every request so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// So many requests come, and not more by then.
    pub(super) async fn until(&self, wanted: usize) {
        until("every provider was told", || self.asked().len() >= wanted).await;
        assert_eq!(self.asked().len(), wanted, "{:?}", self.asked());
    }
}

/// Where closing a stream does not end its call.
pub(super) fn lasts(door: &DoorOf) -> bool {
    matches!(door.provider, Provider::Telnyx | Provider::Plivo | Provider::Vonage | Provider::AudioFork)
}

/// A part of the clip, ms. At each rate it is read once: in real time there is none to spare.
pub(super) fn part(rate: u32, from: u32, to: u32) -> Vec<i16> {
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

/// What is said and was not heard is unlike.
fn alike(said: &[f64], heard: &[f64]) -> f64 {
    let (both, a, b) = said
        .iter()
        .zip(heard.iter().chain(std::iter::repeat(&0.0)))
        .fold((0.0, 0.0, 0.0), |(both, a, b), (said, heard)| (both + said * heard, a + said * said, b + heard * heard));
    if a * b == 0.0 { 0.0 } else { both / (a * b).sqrt() }
}

/// Where in what was heard something is most like what was said, ms, and how alike it is there.
pub(super) fn found(said: &[i16], heard: &[i16], rate: u32) -> (f64, f64) {
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
    (best as f64 / 8.0, alike(&said, heard.get(best..).unwrap_or_default()))
}

/// The caller's number in the call of this seed.
pub(super) fn caller(seed: u64) -> String {
    format!("+1500555{seed:04}")
}

pub(super) async fn call(
    world: &World,
    door: &DoorOf,
    seed: u64,
    script: impl FnOnce(Media) -> Vec<Action>,
) -> Outcome {
    let mut setup = setup(door.provider, seed);
    setup.json_control = !door.plain;
    if let Some((media, _)) = door.leg {
        (setup.media, setup.reply) = (media, media);
    }
    setup.from = caller(seed);
    let World { rig, audiosocket, rest } = world;
    let over = CancellationToken::new();
    rest.live.lock().unwrap().insert(setup.ids.call.clone(), over.clone());
    let mut reach = reach(rig, door.provider, &door.name);
    reach.tcp = Some(audiosocket.to_string());
    if door.provider == Provider::AudioFork {
        // The dialplan names the stream.
        reach.stream_url = Some(format!("ws://{}/phone/{}/stream", rig.relay.addr(), door.name));
    }
    let reached = reach.reach(&mut setup, unix_now()).await.unwrap_or_else(|error| panic!("{}: {error}", door.name));
    if let Some((_, reply)) = door.leg {
        setup.reply = reply;
    }
    let person = Person::new(setup.media, script(setup.media));
    let called = drive_until(&reached.address, setup, person, 40_000 * MS, over, |_, _| {});
    Box::pin(called).await.unwrap_or_else(|error| panic!("{}: {error}", door.name))
}

pub(super) async fn world(change: impl FnOnce(&mut Config), service: impl FnOnce(&mut SimConfig)) -> World {
    let mut sim = SimConfig::instant();
    sim.record_audio = true;
    service(&mut sim);
    let (audiosocket, rest) = (address(), Rest::new().await);
    let rig = Rig::with(
        |config| {
            phones(config, doors().into_iter().map(|door| (door.name.clone(), account(door.provider, door.audio))));
            config.agents.get_mut("default").unwrap().greeting = Some("Say hello.".to_owned());
            config.server.max_calls = doors().len();
            config.phone.audiosocket.listen = Some(audiosocket);
            config.phone.accounts.values_mut().for_each(|account| account.api_url = Some(rest.url.clone()));
            change(config);
        },
        sim,
        "",
    );
    World { rig: rig.await, rest, audiosocket }
}

/// Calls at all these doors at once; each with its place among them.
pub(super) async fn at_all(
    doors: Vec<DoorOf>,
    world: &Arc<World>,
    round: u64,
    script: impl Fn(Media, usize) -> Vec<Action> + Clone + Send + Sync + 'static,
) -> Vec<(usize, DoorOf, Outcome)> {
    for rate in [8_000, 16_000, 24_000] {
        part(rate, 0, 0);
    }
    let mut calls = JoinSet::new();
    for (number, door) in doors.into_iter().enumerate() {
        let (world, script) = (world.clone(), script.clone());
        calls.spawn(async move {
            let seed = round * 100 + number as u64;
            let outcome = call(&world, &door, seed, |media| script(media, number)).await;
            (number, door, outcome)
        });
    }
    let outcomes = calls.join_all().await;
    until("the last session is closed", || world.rig.sim.stats().sessions_now == 0).await;
    outcomes
}

/// One of these tests at a time: all these calls in real time are enough for a small machine.
pub(super) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
