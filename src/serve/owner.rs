//! Calls whose conversation is ours: at the thin door, and by telephone.
//!
//! Whom a caller meets, and what the call is begun with. Which messages it comes with is the doors' business.
use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;

use super::{Refusal, Shared};
use crate::{
    admit::{Denied, License, Principal, budget::Amount},
    audio::{
        Codec,
        lane::{upstream_format, upstream_input},
    },
    call::{
        books::Books,
        core::{Core, Guard, LineTool, Plan, Prompt},
        door::Door,
        driver::{Call, Client},
        tools::OwnTool,
        way::Way,
    },
    client::wire::AudioFormats,
    config::AgentConfig,
    net::ws::Socket,
    upstream::{SessionSetup, Wanted},
};

/// Tokens of a reply, where neither the agent nor the service says less (realtime-protocol section 5).
const LONGEST_REPLY: u64 = 4_096;

/// A telephone's ear may be so far behind: where there are no marks a provider's queue may have run dry meanwhile, Asterisk's marks are a
/// frame early, and what was played has not passed the telephone's own jitter buffer.
const BEHIND: Duration = Duration::from_millis(300);

/// Whom a caller meets, and how the call comes to its sessions: all checks that cost nothing and count nothing.
/// `codecs`: what is spoken, by the fields that say so.
///
/// # Errors
/// Why not.
pub(super) fn meet(
    shared: &Shared,
    who: &Principal,
    name: &str,
    codecs: [(&'static str, Codec); 2],
) -> Result<(Arc<AgentConfig>, Way), Refusal> {
    let forbidden =
        |field, message| Refusal { field: Some(field), ..Refusal::new(StatusCode::FORBIDDEN, "forbidden", message) };
    let shown: String = name.chars().take(64).collect();
    let Some(agent) = shared.agent(name) else {
        let message = format!("no agent `{shown}` is configured");
        return Err(Refusal { field: Some("agent"), ..Refusal::new(StatusCode::NOT_FOUND, "unknown_agent", message) });
    };
    if !who.may_call(name) {
        return Err(forbidden("agent", format!("agent `{shown}` is not one that this credential may call")));
    }
    for (field, codec) in codecs {
        if !who.may_speak(codec) {
            return Err(forbidden(field, format!("{field} `{codec}` is not one that this credential may use")));
        }
    }
    let upstream = shared.upstream(who).cloned().ok_or_else(|| {
        let message = "the tenant's service is not configured".to_owned();
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable", message)
    })?;
    let model = agent.model.as_ref().unwrap_or(&upstream.config().model).clone();
    if !shared.may_use(who, &model) {
        let message = format!("agent `{shown}` has a model that this credential may not use");
        return Err(forbidden("agent", message));
    }
    let way = shared.way(who, &upstream, &model);
    shared.accounts()?;
    let first =
        Amount::at_most(&shared.prices.load(), &way.home().route.model, agent.base_tokens(), reply_tokens(&agent));
    shared.budgets.may_begin(who, first).map_err(Denied::from)?;
    Ok((agent, way))
}

/// Tokens of the longest reply.
fn reply_tokens(agent: &AgentConfig) -> u64 {
    agent.max_output_tokens.map_or(LONGEST_REPLY, u64::from)
}

/// A call that begins.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) who: Principal,
    pub(super) license: License,
    pub(super) id: String,
    /// The agent's name, and the agent.
    pub(super) name: String,
    pub(super) agent: Arc<AgentConfig>,
    pub(super) way: Way,
    /// What the client sends and gets.
    pub(super) audio: AudioFormats,
    pub(super) auto_turns: bool,
    /// How far ahead of the loudspeaker to send; none: as fast as it comes.
    pub(super) lead: Option<Duration>,
    /// Its client may lose its socket and come back.
    pub(super) comes_back: bool,
}

impl Owner {
    /// Everything that it needs to run. `door`: made of how its sessions are set up.
    pub(super) fn call(self, shared: &Shared, socket: Socket, door: impl FnOnce(SessionSetup) -> Door) -> Call {
        let mut plan = self.plan(shared);
        let Self { who, license, id, agent, way, auto_turns, comes_back, .. } = self;
        let (writer, hold) = (agent.transcription.clone(), shared.hold(&agent));
        let persona = agent.clone();
        let setup = SessionSetup { input: plan.upstream_input, output: plan.upstream_output, auto_turns, agent };
        let door = door(setup);
        if door.is_phone() {
            plan.last_words = BEHIND;
        }
        let hooks = shared.hooks(&plan.agent, &persona, &who, (&id, door.name()));
        let (ticket, resume) = Some(()).filter(|()| comes_back).and_then(|()| shared.way_back(door.name())).unzip();
        let books = Books {
            ledger: shared.ledger.clone(),
            prices: shared.prices.clone(),
            call: id.clone(),
            agent: plan.agent.clone(),
            account: way.home().account().to_owned(),
            model: way.home().route.model.clone(),
            writer,
            door: door.name(),
        };
        Call {
            core: Core::owner(shared.life(&who, id.clone()), plan, resume),
            id,
            door,
            license,
            wanted: Wanted::voice(way.home().route.model.as_str()),
            way,
            client: Client::Here(Box::new(socket)),
            ticket,
            books,
            reconnect: shared.reconnect(),
            turns: shared.turns(&who),
            hold,
            hooks,
            budgets: shared.budgets.clone(),
            spent: Amount::default(),
            heir: shared.heir.clone(),
            goodbyes: shared.calls.clone(),
            drain: shared.drain.clone(),
            stop: shared.stop.clone(),
        }
    }

    fn plan(&self, shared: &Shared) -> Plan {
        let (config, agent, millis) = (&shared.config, &self.agent, Duration::from_millis);
        Plan {
            agent: self.name.clone(),
            audio: self.audio,
            upstream_input: upstream_input(self.audio.input, self.way.home().upstream.config().input_rate),
            upstream_output: upstream_format(self.audio.output),
            auto_turns: self.auto_turns,
            silence: agent.turn_detection.silence(),
            ends_speech: agent.turn_detection.longest_silence(),
            greeting: agent.greeting.clone(),
            chunk: millis(config.audio.chunk_ms),
            guard: agent.barge_in.is_guarded().then(|| Guard {
                min_speech: millis(agent.barge_in.min_speech_ms),
                protect: millis(agent.barge_in.protect_ms),
            }),
            prompt: (agent.silence.after_s > 0).then(|| Prompt {
                after: Duration::from_secs(agent.silence.after_s),
                say: agent.silence.say.clone(),
                times: agent.silence.times,
            }),
            keypad: millis(agent.keypad_ms),
            lead: self.lead,
            batch: millis(config.audio.out_batch_ms),
            tool_timeout: Duration::from_secs(config.call.tool_timeout_s),
            own_tools: OwnTool::of(agent),
            line_tools: LineTool::of(agent),
            last_words: Duration::ZERO,
            max_backlog: Duration::from_secs(config.call.max_backlog_s),
            max_message_bytes: config.server.max_message_bytes,
            transcribed: agent.transcription.is_some(),
            history_tokens: config.call.history_tokens,
            govern: config.turns.govern,
            base_tokens: agent.base_tokens(),
            reply_tokens: reply_tokens(agent),
        }
    }
}
