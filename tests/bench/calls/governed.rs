//! What it costs an answer to ask the account's quota first, when nothing is scarce: at most 1 ms at p99.
//!
//! Relays that differ in `turns.govern` only stand in this process, each with a simulator of its own that answers at once, and a caller
//! of each has one turn after the other, in an order that changes; what is added is the median of [`PARTS`] differences. A turn is timed at its caller, from its end to `reply_started`: from
//! `commit` where the client says when it is over, from `speech_stopped` where the service finds it. A second relay with `never` shows
//! what differs between two that are the same. All limits are configured, and far away. Asked for by the relay, a turn that the service
//! finds costs a round trip to it, which is a short one here.
//!
//! And the quota alone: asked, granted and settled, with ever more tenants that it has seen.
use std::{fmt::Write as _, hint::black_box, net::SocketAddr, process::exit, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    runtime::Runtime,
    time::{self, Instant},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use voxrelay::{
    admit::{
        governor::{Class, Dimension, Heard},
        quota::{Answer, Quota, Turn},
    },
    config::{Config, Govern, LimitsConfig, Secret, TurnDetection},
    serve::Server,
    sim::{Faults, Sim, SimConfig},
};

use super::{
    line::{dial, first},
    median,
    survive::{at_share, promise},
};

/// Promised for an answer that is asked for, at p99.
const MOST: Duration = Duration::from_millis(1);
/// A limit of an account that is never reached.
const PLENTY: u64 = 1_000_000_000_000;
/// p99 is taken of so many parts of all turns, and the median of them counts: one pause of the machine breaks no promise.
const PARTS: usize = 5;
/// Turns of one call: its history stays short, and its audio within what may come at once (30 s).
const TURNS_OF_A_CALL: usize = 20;
/// A turn that the service finds: a tone and a silence.
const SPEECH_MS: u32 = 300;
const SILENCE_MS: u32 = 400;
/// Silence that ends a turn; less than what is sent.
const ENDS_AFTER_MS: u32 = 200;
/// An answer may take so long.
const PATIENCE: Duration = Duration::from_secs(30);

const CONTENDERS: [(&str, Govern); 4] = [
    ("never", Govern::Never),
    ("never (again)", Govern::Never),
    ("near_limit", Govern::NearLimit),
    ("always", Govern::Always),
];

/// Tenants that a quota has seen.
const TENANTS: [usize; 3] = [1, 100, 10_000];
/// Rounds of each of them, one after another, and the length of one.
const ROUNDS: usize = 101;
const ROUND: Duration = Duration::from_millis(4);
/// What a reply may use, and what it has used, tokens.
const ASKED: u64 = 4_500;
const USED: u64 = 500;

/// Measures so many turns of each; ends the process with 1 when the promise is broken.
pub(crate) fn run(turns: usize) {
    println!(
        "governed: {turns} turns of each at a time, nothing is scarce; from the turn's end to `reply_started` at the caller, ms\n"
    );
    let runtime = Runtime::new().unwrap();
    let mut kept = true;
    for kind in [Kind::Manual, Kind::Auto] {
        kept &= runtime.block_on(Box::pin(compare(kind, turns.div_ceil(PARTS * TURNS_OF_A_CALL).max(1))));
    }
    runtime.block_on(async { asked() });
    if !kept {
        println!("A PROMISE IS BROKEN");
        exit(1);
    }
}

/// Who ends turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manual,
    Auto,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Manual => "/v1/voice?turns=manual&pace=fast",
            Self::Auto => "/v1/voice?turns=auto&pace=fast",
        }
    }
}

/// A relay and its service.
struct Contender {
    name: &'static str,
    govern: Govern,
    relay: Server,
    sim: Sim,
}

impl Contender {
    async fn start((name, govern): (&'static str, Govern)) -> Self {
        let free: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut service = SimConfig::instant();
        (service.reply.speed, service.rate_limits.tokens) = (0.0, PLENTY);
        let sim = Sim::start(free, service, Faults::default()).await.unwrap();
        let mut config = Config::load(None, |_| None).unwrap();
        config.server.listen = free;
        config.upstream.url = Some(sim.base_url());
        config.upstream.api_key = Some(Secret::new("bench"));
        config.upstream.limits = vec![plenty()];
        config.turns.govern = govern;
        config.audio.gather = false; // a `commit` does not wait for a chunk to be full
        config.agents.entry("default".to_owned()).or_default().turn_detection =
            TurnDetection::ServerVad { threshold: 0.5, prefix_padding_ms: 300, silence_duration_ms: ENDS_AFTER_MS };
        Self { name, govern, relay: Server::start(config, None).await.unwrap(), sim }
    }

    async fn call(&self, kind: Kind) -> Call {
        let addr = self.relay.addr();
        let mut ws = dial(addr, &format!("ws://{addr}{}", kind.path())).await.unwrap();
        first(&mut ws, "ready").await.unwrap();
        Call { ws, kind }
    }
}

fn plenty() -> LimitsConfig {
    let much = Some(PLENTY);
    LimitsConfig { requests: much, tokens: much, requests_day: much, tokens_day: much, ..LimitsConfig::default() }
}

/// One caller.
struct Call {
    ws: WebSocketStream<TcpStream>,
    kind: Kind,
}

impl Call {
    /// One turn: the time from its end to its answer.
    async fn turn(&mut self, speech: &[u8]) -> Duration {
        self.ws.send(Message::binary(speech.to_vec())).await.unwrap();
        match self.kind {
            Kind::Manual => {}
            Kind::Auto => self.until("speech_stopped").await,
        }
        let ended = Instant::now();
        if self.kind == Kind::Manual {
            self.say(r#"{"type":"commit"}"#).await;
        }
        self.until("reply_started").await;
        let took = ended.elapsed();
        self.say(r#"{"type":"interrupt"}"#).await;
        self.until("reply_ended").await;
        took
    }

    async fn say(&mut self, text: &'static str) {
        self.ws.send(Message::text(text)).await.unwrap();
    }

    /// Reads to a message of this type. Nothing may have had to wait, and nothing may fail.
    async fn until(&mut self, kind: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            match time::timeout_at(end, self.ws.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    if message["type"] == kind {
                        return;
                    }
                    assert!(message["type"] != "error" && message["code"] != "throttled", "{message}");
                }
                Ok(Some(Ok(_))) => {}
                other => panic!("{other:?} before `{kind}`"),
            }
        }
    }
}

/// What a caller says: a tone, and where the service finds the turn a silence.
fn speech(kind: Kind) -> Vec<u8> {
    let sample = |n: u32| (f64::from(n) * std::f64::consts::TAU * 440.0 / 24_000.0).sin() * 12_000.0;
    #[expect(clippy::cast_possible_truncation, reason = "at most 12,000")]
    let tone = (0..SPEECH_MS * 24).flat_map(|n| (sample(n) as i16).to_le_bytes());
    let silence = if kind == Kind::Auto { SILENCE_MS as usize * 48 } else { 0 };
    tone.chain(std::iter::repeat_n(0, silence)).collect()
}

/// The four of them, turn by turn; whether the promise is kept.
async fn compare(kind: Kind, calls_of_a_part: usize) -> bool {
    let mut contenders = Vec::new();
    for one in CONTENDERS {
        contenders.push(Contender::start(one).await);
    }
    let speech = speech(kind);
    // By contender and part.
    let mut took = vec![vec![Vec::new(); PARTS]; contenders.len()];
    let mut number = 0;
    for part in 0..=PARTS {
        for _ in 0..calls_of_a_part {
            let mut calls = Vec::new();
            for contender in &contenders {
                calls.push(contender.call(kind).await);
            }
            for _ in 0..TURNS_OF_A_CALL {
                for step in 0..calls.len() {
                    let whose = (number + step) % calls.len();
                    let took_now = calls[whose].turn(&speech).await;
                    // The first part warms everything up.
                    if let Some(part) = part.checked_sub(1) {
                        took[whose][part].push(took_now);
                    }
                }
                number += 1;
            }
        }
    }
    print_turns(kind, &contenders, &took)
}

fn print_turns(kind: Kind, contenders: &[Contender], took: &[Vec<Vec<Duration>>]) -> bool {
    let what =
        if kind == Kind::Manual { "from `commit`" } else { "from `speech_stopped`, the service finds the turns" };
    println!(
        "{what}\n{:<16} {:>7} {:>8} {:>8} {:>10} {:>10}   asked for",
        "govern", "turns", "p50", "p99", "+p50", "+p99"
    );
    let ms = |of: Duration| of.as_secs_f64() * 1e3;
    let mut worst = f64::MIN;
    for (contender, parts) in contenders.iter().zip(took) {
        let all = parts.concat();
        let over = |share| {
            let each =
                parts.iter().zip(&took[0]).map(|(own, base)| ms(at_share(own, share)) - ms(at_share(base, share)));
            median(each.collect())
        };
        let (asked, answered) = (contender.sim.stats().responses_asked, contender.sim.stats().responses);
        println!(
            "{:<16} {:>7} {:>8.3} {:>8.3} {:>10.3} {:>10.3}   {asked} of {answered}",
            contender.name,
            all.len(),
            ms(at_share(&all, 0.5)),
            ms(at_share(&all, 0.99)),
            over(0.5),
            over(0.99)
        );
        // Each does what it is named for.
        let by_relay = kind == Kind::Manual || contender.govern == Govern::Always;
        assert_eq!(asked, if by_relay { answered } else { 0 }, "{}: replies that were asked for", contender.name);
        if contender.govern != Govern::Never {
            worst = worst.max(over(0.99));
        }
    }
    let promised = format!("<= {:.3}", ms(MOST));
    let kept = promise("added at p99, ms, the most", &promised, worst <= ms(MOST), &format!("{worst:.3}"));
    println!();
    kept
}

/// The quota alone.
fn asked() {
    let mut quotas: Vec<_> = TENANTS.into_iter().map(Known::new).collect();
    let mut times = vec![Vec::new(); quotas.len()];
    for round in 0..=ROUNDS {
        for (quota, times) in quotas.iter_mut().zip(&mut times) {
            let took = quota.round();
            if round > 0 {
                times.push(took);
            }
        }
    }
    let each: Vec<f64> = times.into_iter().map(median).collect();
    let mut line = String::new();
    for (tenants, ns) in TENANTS.into_iter().zip(&each) {
        let _ = write!(line, "  {ns:.0} with {tenants} tenants known ({:.2}x)", ns / each[0]);
    }
    println!("asked, granted and settled, ns a turn:{line}\n");
}

/// A quota that knows so many tenants.
struct Known {
    quota: std::sync::Arc<Quota>,
    tenants: Vec<String>,
    next: usize,
}

impl Known {
    fn new(tenants: usize) -> Self {
        let tenants = (0..tenants).map(|n| format!("tenant-{n:05}")).collect();
        let mut known = Self { quota: Quota::new(vec![plenty()]), tenants, next: 0 };
        (0..known.tenants.len()).for_each(|_| known.turn());
        // What the service says counts beside our own.
        let (limit, remaining, reset) = (Some(PLENTY), Some(PLENTY), Some(Duration::from_millis(1)));
        known.quota.heard("bench", Heard::Bucket { dimension: Dimension::Tokens, limit, remaining, reset });
        known
    }

    fn turn(&mut self) {
        // Not one after the other in the order of their names.
        self.next = (self.next + 7_919) % self.tenants.len();
        let tenant = &self.tenants[self.next];
        let patience = Duration::from_secs(3);
        let turn = Turn { model: "bench", tenant, weight: 1, class: Class::Interactive, tokens: ASKED, patience };
        let Answer::Granted(grant) = self.quota.ask(turn) else { panic!("nothing is scarce") };
        black_box(grant).settle(Some(USED));
    }

    /// Nanoseconds of a turn, over [`ROUND`].
    fn round(&mut self) -> f64 {
        let (began, mut done) = (Instant::now(), 0_u32);
        while began.elapsed() < ROUND {
            (0..16).for_each(|_| self.turn());
            done += 16;
        }
        began.elapsed().as_secs_f64() * 1e9 / f64::from(done)
    }
}
