//! One call of a world: its core, its client, its connections, and its chances.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use voxrelay::{
    call::{
        core::{Core, Life, Plan, Resume},
        tools::OwnTool,
    },
    client::wire::AudioFormats,
    config::{AgentConfig, Govern, ToolConfig},
    net::outbox::Outbox,
    upstream::SessionSetup,
};

use super::{Config, MS, SECOND, line::Link, service::Leg};
use crate::{
    audio::FORMAT,
    check::{At, History},
    client::Client,
    faults::{self, Fault},
};

pub(super) struct Call {
    pub(super) core: Core,
    pub(super) outbox: Outbox,
    pub(super) client: Client,
    pub(super) setup: SessionSetup,
    pub(super) history: History,
    pub(super) links: Vec<Link>,
    pub(super) server_link: Option<usize>,
    pub(super) client_link: Option<usize>,
    pub(super) tokens: (Option<u64>, u64, At),
    pub(super) legs: Vec<Leg>,
    pub(super) running: Option<usize>,
    pub(super) next: Option<usize>,
    pub(super) dialling: bool,
    pub(super) dialling_next: bool,
    pub(super) no_dial_until: At,
    pub(super) twice: u32,
    pub(super) faults: Vec<Fault>,
    pub(super) auto: bool,
    pub(super) first_audio: bool,
    pub(super) over: bool,
    pub(super) state: (bool, bool),
    pub(super) utterance: Option<u64>,
    pub(super) stays_away: bool,
    pub(super) rng: StdRng,
    pub(super) spins: u32,
    pub(super) held: Held,
}

/// What the account has granted.
#[derive(Default)]
pub(super) struct Held {
    pub(super) number: u64,
    pub(super) asked: bool,
    pub(super) running: Vec<String>,
}

fn plan(auto: bool, transcribed: bool, rng: &mut StdRng) -> Plan {
    Plan {
        agent: "default".into(),
        audio: AudioFormats { input: FORMAT, output: FORMAT },
        upstream_input: FORMAT,
        upstream_output: FORMAT,
        auto_turns: auto,
        silence: 500 * MS,
        ends_speech: 500 * MS,
        greeting: rng.random_bool(0.2).then(|| "Hello.".to_owned()),
        chunk: 100 * MS,
        guard: None,
        prompt: None,
        keypad: Duration::from_millis(1_500),
        lead: rng.random_bool(0.8).then_some(400 * MS),
        batch: 100 * MS,
        tool_timeout: 30 * SECOND,
        line_tools: Default::default(),
        last_words: Duration::ZERO,
        own_tools: BTreeMap::new(),
        max_backlog: 300 * SECOND,
        max_message_bytes: 262_144,
        transcribed,
        history_tokens: 4_000,
        govern: [Govern::Never, Govern::NearLimit, Govern::Always][rng.random_range(0..3)],
        base_tokens: 10,
        reply_tokens: 0,
    }
}

fn own_tool(number: usize) -> BTreeMap<String, OwnTool> {
    let (timeout, filler_after) = (8 * SECOND, 500 * MS);
    let filler = Some("One moment.".to_owned());
    let own = OwnTool { timeout, idempotent: number % 8 == 7, filler, filler_after, yields: number % 8 == 3 };
    [("look".to_owned(), own)].into()
}

impl Call {
    pub(super) fn new(number: usize, config: &Config) -> Self {
        let mut rng = StdRng::seed_from_u64(config.seed.wrapping_mul(1_000).wrapping_add(number as u64));
        let auto = rng.random_bool(0.6);
        let transcribed = rng.random_bool(0.8);
        let calm = config.length.saturating_sub(60 * SECOND);
        let life = Life {
            silence: None,
            call: format!("call_{number}"),
            max: 400 * 24 * 3_600 * SECOND,
            idle: config.idle,
            stall: 10 * SECOND,
            credential: config.credential,
        };
        let resume = Resume { token: "1".into(), window: 30 * SECOND };
        let tool = ToolConfig {
            builtin: None,
            targets: Default::default(),
            expert: None,
            name: "look".into(),
            description: String::new(),
            parameters: serde_json::json!({"type": "object", "properties": {}}),
            http: None,
        };
        let transcription = transcribed.then(|| "gpt-transcribe".to_owned());
        let agent = AgentConfig { tools: vec![tool], transcription, ..AgentConfig::default() };
        // Of some calls the relay runs the tool itself. (By number: chances would make other days of all that were seen before.)
        let own_tools = if number % 4 == 3 { own_tool(number) } else { BTreeMap::new() };
        let plan = Plan { own_tools, ..plan(auto, transcribed, &mut rng) };
        Self {
            core: Core::owner(life, plan, Some(resume)),
            outbox: Outbox::with_journal(),
            client: Client::default(),
            setup: SessionSetup { agent: Arc::new(agent), input: FORMAT, output: FORMAT, auto_turns: auto },
            history: History::default(),
            links: vec![Link { whole: true, up_last: At::ZERO, down_last: At::ZERO, in_flight: 0 }],
            server_link: Some(0),
            client_link: Some(0),
            tokens: (None, 1, At::ZERO),
            legs: Vec::new(),
            running: None,
            next: None,
            dialling: true,
            dialling_next: false,
            no_dial_until: At::ZERO,
            twice: 0,
            faults: faults::draw(&mut rng, calm, config.kinds, config.faults.clone()),
            auto,
            first_audio: false,
            over: false,
            state: (true, true),
            utterance: None,
            stays_away: false,
            rng,
            spins: 0,
            held: Held::default(),
        }
    }

    pub(super) fn jitter(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }
}
