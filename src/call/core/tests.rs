//! The core in virtual time: a scripted client and a scripted service, and what it says to either.
use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::{Core, Input, Life, Output, Plan, Resume};
use crate::{
    audio::Format,
    call::{At, end::End},
    client::wire::{AudioFormats, ClientMsg, ReplyStatus, ServerMsg},
    config::Govern,
    upstream::{Command, Ended, Event, History, ServiceError, UpstreamError, event_id},
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn life() -> Life {
    Life { call: "call_1".into(), max: 3_600 * SECOND, idle: None, silence: None, stall: 10 * SECOND, credential: None }
}

pub(super) fn plan() -> Plan {
    Plan {
        agent: "default".into(),
        audio: AudioFormats { input: Format::PCM_24K, output: Format::PCM_24K },
        upstream_input: Format::PCM_24K,
        upstream_output: Format::PCM_24K,
        auto_turns: true,
        silence: 500 * MS,
        ends_speech: 500 * MS,
        greeting: None,
        chunk: 100 * MS,
        guard: None,
        prompt: None,
        keypad: 1_500 * MS,
        lead: Some(400 * MS),
        batch: 100 * MS,
        tool_timeout: 30 * SECOND,
        line_tools: Default::default(),
        last_words: Duration::ZERO,
        own_tools: BTreeMap::new(),
        max_backlog: 300 * SECOND,
        max_message_bytes: 262_144,
        transcribed: true,
        history_tokens: 16_000,
        govern: Govern::Never,
        base_tokens: 0,
        reply_tokens: 0,
    }
}

/// A call with a clock of its own, and everything that it said.
pub(super) struct Rig {
    pub(super) core: Core,
    pub(super) now: At,
    pub(super) log: Vec<(At, Output)>,
    read: usize,
}

impl Rig {
    pub(super) fn new(plan: Plan) -> Self {
        Self::living(life(), plan)
    }

    pub(super) fn living(life: Life, plan: Plan) -> Self {
        let core = Core::owner(life, plan, Some(Resume { token: "token".into(), window: 30 * SECOND }));
        let mut rig = Self { core, now: At::ZERO, log: Vec::new(), read: 0 };
        rig.input(Input::SessionUp(None));
        rig
    }

    pub(super) fn input(&mut self, input: Input<'_>) {
        self.core.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll(self.now, true) {
            if matches!(output, Output::Audio { first: true, .. }) {
                self.core.handle(self.now, Input::FirstAudioLeft);
            }
            self.log.push((self.now, output));
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        self.input(Input::Service(event));
    }

    pub(super) fn message(&mut self, message: ClientMsg) {
        self.input(Input::Message(message));
    }

    /// Lets time pass, waking the core exactly when it asked to be. The client is alive: it answers pings.
    pub(super) fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(at) = self.core.deadline(true).filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let before = self.log.len();
            self.input(Input::Tick);
            let said =
                |wanted: &str| self.log[before..].iter().any(|(_, o)| word(o).is_some_and(|word| word == wanted));
            let quiet = said("ping service") && !said("notice stalled");
            if self.log[before..].iter().any(|(_, o)| *o == Output::PingClient) {
                self.input(Input::ClientPong);
            }
            // One that owes nothing lives; what becomes of one that stalls is the test's.
            if quiet {
                self.input(Input::ServicePong);
            }
        }
        self.now = end;
    }

    /// A caller's microphone for so long.
    pub(super) fn speak(&mut self, length: Duration) {
        for _ in 0..length.as_millis() / 20 {
            self.input(Input::Audio { length: 20 * MS, upstream: &[1; 960] });
            self.pass(20 * MS);
        }
    }

    /// The service answers with so much audio, all at once, in deltas of 200 ms of one item.
    pub(super) fn reply_audio(&mut self, response: &str, item: &str, length: Duration) {
        for _ in 0..length.as_millis() / 200 {
            let audio = Bytes::from(vec![5; 9_600]);
            self.event(Event::Audio { response: response.into(), item: item.into(), content_index: 0, audio });
        }
    }

    pub(super) fn created(&mut self, response: &str) {
        self.event(Event::ReplyCreated { response: response.into(), aside: false });
    }

    pub(super) fn done(&mut self, response: &str, ended: Ended) {
        self.event(Event::ReplyDone {
            response: response.into(),
            ended,
            reason: None,
            retry_after: None,
            limit: None,
            usage: None,
        });
    }

    /// What was said since the last look: commands by name, messages by type, audio frames counted.
    pub(super) fn said(&mut self) -> Vec<String> {
        let news: Vec<String> = self.log[self.read..].iter().filter_map(|(_, o)| word(o)).collect();
        self.read = self.log.len();
        let mut said: Vec<String> = Vec::new();
        let mut frames = 0;
        // A service that is quiet is asked whether it lives, which is worth a word only where it stalls.
        let asked = |(at, word): (usize, &String)| {
            word == "ping service" && at.checked_sub(1).is_none_or(|at| news[at] != "notice stalled")
        };
        let worth: Vec<String> =
            news.iter().enumerate().filter(|entry| !asked(*entry)).map(|(_, word)| word.clone()).collect();
        for word in worth.into_iter().chain(["end of list".to_owned()]) {
            if word == "frame" {
                frames += 1;
                continue;
            }
            if frames > 0 {
                said.push(format!("{frames} frames"));
                frames = 0;
            }
            said.push(word);
        }
        said.pop();
        said
    }

    fn last_number(&self, wanted: &str) -> u64 {
        let found = self.log.iter().rev().find_map(|(_, o)| match o {
            Output::Service { number, .. } if word(o).is_some_and(|w| w.starts_with(wanted)) => Some(*number),
            _ => None,
        });
        found.unwrap()
    }

    pub(super) fn error(&mut self, number: u64, code: &str, message: &str) {
        let mut id = String::new();
        event_id::write(number, &mut id);
        let error =
            ServiceError { code: code.into(), message: message.into(), event_id: Some(id), ..ServiceError::default() };
        self.event(Event::Error(error));
    }
}

fn word(output: &Output) -> Option<String> {
    Some(match output {
        Output::Renew(credential) => format!("renew {}", credential.0),
        Output::Send(message) | Output::SendNow(message) => match message {
            ServerMsg::Ready { .. } | ServerMsg::Ack { .. } => return None,
            ServerMsg::Clear { reply } => format!("clear {reply}"),
            ServerMsg::ReplyStarted { reply } => format!("reply_started {reply}"),
            ServerMsg::ReplyEnded { reply, status, audio_ms, heard_ms, .. } => {
                format!("reply_ended {reply} {status:?} {heard_ms}/{audio_ms}")
            }
            ServerMsg::SpeechStarted { at_ms } => format!("speech_started {at_ms}"),
            ServerMsg::SpeechStopped { at_ms } => format!("speech_stopped {at_ms}"),
            ServerMsg::Error { error } => format!("error {}", error.code),
            ServerMsg::Notice { code, .. } => format!("notice {code}"),
            ServerMsg::ToolCall { call_id, .. } => format!("tool_call {call_id}"),
            ServerMsg::Transcript { text, delta, .. } => format!("transcript {text:?} {delta:?}"),
            ServerMsg::Draining { deadline_ms } => format!("draining {deadline_ms}"),
            ServerMsg::Pong { t } => format!("pong {t}"),
            ServerMsg::Resumed { .. } => "resumed".into(),
        },
        Output::Turn(_) | Output::Told(_) => return None,
        Output::Audio { .. } => "frame".into(),
        Output::AudioTail => "tail".into(),
        Output::DropAudio => "drop audio".into(),
        Output::DropInput => "drop input".into(),
        Output::Line { call_id, act } => format!("line {call_id} {act:?}"),
        Output::Hold(format) => format!("hold {format}"),
        Output::Service { command, .. } => match command {
            Command::Append(_) => return None,
            Command::Configure { .. } => return None,
            Command::Answers { answers } => format!("Answers {answers}"),
            Command::Retell { item, after, .. } => {
                let place = after.as_ref().map(|id| format!(" after {id}")).unwrap_or_default();
                match item {
                    History::User { text } => format!("user: {text}{place}"),
                    History::UserAudio { audio } => format!("user audio {}", audio.len()),
                    History::Assistant { text } => format!("assistant: {text}{place}"),
                    History::Call { call_id, .. } => format!("call {call_id}"),
                    History::Result { call_id, .. } => format!("result {call_id}"),
                    History::Note { text } => format!("note: {text}"),
                }
            }
            Command::Truncate { item, audio_end_ms, .. } => format!("Truncate {item} {audio_end_ms}"),
            Command::DeleteItem { item } => format!("Delete {item}"),
            Command::CreateReply { no_tools: true, .. } => "filler".into(),
            Command::CreateReply { instructions, .. } => {
                format!("CreateReply{}", instructions.as_ref().map(|_| " with instructions").unwrap_or_default())
            }
            Command::CancelReply { response } => format!("Cancel {}", response.as_deref().unwrap_or("any")),
            Command::UserText { text } => format!("UserText {text}"),
            Command::ToolOutput { call_id, .. } => format!("ToolOutput {call_id}"),
            Command::Commit => "Commit".into(),
            Command::ClearInput => "ClearInput".into(),
        },
        Output::RunTool { call_id, .. } => format!("run {call_id}"),
        Output::DropTool { call_id } => format!("drop {call_id}"),
        Output::Forward(_) => "forward".into(),
        Output::Relay { .. } => "relay".into(),
        Output::PingService => "ping service".into(),
        Output::End(end) => format!("end {}", end.report().close),
        Output::HangUp { why, word } => {
            format!("hang up {}{}", why.report().close, word.as_ref().map(|_| " with a word").unwrap_or_default())
        }
        Output::Dial => "dial".into(),
        Output::HandOver => "hand over".to_owned(),
        Output::DialNext => "dial next".into(),
        Output::Switch => "switch".into(),
        Output::LeaveService => "leave service".into(),
        Output::Book(booked) => match booked.estimated {
            true => format!("estimate {} {}", booked.id, booked.usage.output_tokens),
            false => return None,
        },
        Output::Greet(_) => "greet".into(),
        Output::PingClient | Output::Fact(_) | Output::Received(_) => return None,
    })
}

/// A spoken turn that the service hears end.
pub(super) fn turn(rig: &mut Rig) {
    let began = rig.core.intake.audio();
    rig.speak(SECOND);
    rig.event(Event::SpeechStarted { at_ms: u64::try_from(began.as_millis()).unwrap() });
    rig.speak(SECOND);
    rig.event(Event::SpeechStopped { at_ms: u64::try_from(rig.core.intake.audio().as_millis()).unwrap() });
    rig.event(Event::Committed { item: "u".into() });
    rig.said();
}

#[test]
fn keys_are_a_typed_turn_and_stop_what_sounds() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "item_1", SECOND);
    rig.pass(300 * MS);
    rig.input(Input::Key('4'));
    assert!(rig.said().iter().any(|said| said == "clear r1"), "a caller who presses a key wants to be heard");
    rig.done("resp_1", Ended::Cancelled);
    rig.pass(SECOND);
    rig.input(Input::Key('2'));
    let asked = |rig: &Rig| {
        let told = rig.log.iter().filter_map(|(at, output)| match output {
            Output::Service { command: Command::UserText { text }, .. } => Some((*at, text.clone())),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    rig.pass(1_400 * MS);
    assert_eq!(asked(&rig), []);
    rig.pass(SECOND);
    let number = "[The caller pressed 42 on the telephone's keypad.]".to_owned();
    assert_eq!(asked(&rig), [(2_800 * MS, number)]);
    rig.input(Input::Key('#'));
    assert_eq!(asked(&rig).len(), 2, "at once");
}

#[test]
fn a_turn_is_answered_paced_and_ended_when_it_was_heard() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.pass(50 * MS);
    rig.created("resp_1");
    rig.pass(30 * MS);
    rig.reply_audio("resp_1", "a", SECOND);
    rig.done("resp_1", Ended::Completed);
    assert_eq!(rig.said(), ["reply_started r1", "20 frames"], "the lead goes at once");
    rig.pass(100 * MS);
    assert_eq!(rig.said(), ["5 frames"]);
    rig.pass(600 * MS);
    assert_eq!(rig.said(), ["25 frames", "tail"]);
    rig.pass(299 * MS);
    assert_eq!(rig.said(), [""; 0], "generated and sent, but not yet heard");
    rig.pass(MS);
    assert_eq!(rig.said(), ["reply_ended r1 Completed 1000/1000"]);
    let Some((_, Output::Send(ServerMsg::ReplyEnded { latency, .. }))) =
        rig.log.iter().find(|(_, o)| matches!(o, Output::Send(ServerMsg::ReplyEnded { .. })))
    else {
        panic!("just seen")
    };
    // Speech ended 500 ms before the service said so.
    assert_eq!(latency.committed_ms, Some(500));
    assert_eq!(latency.reply_started_ms, Some(550));
    assert_eq!(latency.first_delta_ms, Some(580));
    assert_eq!(latency.first_audio_ms, Some(580));
    assert_eq!(latency.relay_added_ms, Some(0));
}

#[test]
fn barge_in_takes_the_steps_in_their_order_and_truncates_at_what_was_heard() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 400 * MS);
    rig.reply_audio("resp_1", "b", 400 * MS);
    rig.reply_audio("resp_1", "c", 400 * MS);
    rig.pass(500 * MS);
    rig.said();
    rig.event(Event::SpeechStarted { at_ms: 2_500 });
    assert_eq!(
        rig.said(),
        ["speech_started 2500", "drop audio", "clear r1", "Truncate b 100", "Delete c"],
        "a was heard to its end, the service cancels by itself"
    );
    rig.reply_audio("resp_1", "c", 400 * MS);
    assert_eq!(rig.said(), [""; 0], "late deltas are dropped");
    rig.done("resp_1", Ended::Cancelled);
    assert_eq!(rig.said(), ["reply_ended r1 Interrupted 500/1200"]);
}

#[test]
fn a_reply_that_is_generated_but_still_playing_is_cut_too() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.pass(300 * MS);
    rig.said();
    rig.event(Event::SpeechStarted { at_ms: 2_300 });
    assert_eq!(
        rig.said(),
        ["speech_started 2300", "drop audio", "clear r1", "Truncate a 300", "reply_ended r1 Interrupted 300/1000"]
    );
}

#[test]
fn the_clients_reports_are_better_witnesses_than_the_clock() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 2 * SECOND);
    rig.pass(400 * MS);
    rig.message(ClientMsg::Played { reply: "r1".into(), ms: 250 });
    rig.message(ClientMsg::Played { reply: "r9".into(), ms: 9_999 });
    rig.pass(100 * MS);
    rig.said();
    rig.message(ClientMsg::Interrupt { reply: Some("r9".into()), played_ms: None });
    assert_eq!(rig.said(), [""; 0], "another reply is ignored");
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    assert_eq!(rig.said(), ["drop audio", "clear r1", "Cancel resp_1", "Truncate a 350"], "250 and 100 since");
    rig.message(ClientMsg::Interrupt { reply: Some("r1".into()), played_ms: Some(300) });
    assert_eq!(rig.said(), [""; 0], "cut already");

    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 2 * SECOND);
    rig.pass(300 * MS);
    rig.said();
    rig.message(ClientMsg::Interrupt { reply: Some("r1".into()), played_ms: Some(60_000) });
    assert_eq!(rig.said()[3], "Truncate a 700", "never more than was sent: 300 ms and the lead");
}

#[test]
fn nothing_heard_is_deleted_and_all_heard_is_left_alone() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.said();
    rig.event(Event::SpeechStarted { at_ms: 0 });
    assert_eq!(rig.said(), ["speech_started 0", "drop audio", "clear r1", "Delete a"]);

    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.done("resp_1", Ended::Completed);
    rig.pass(199 * MS);
    rig.said();
    rig.message(ClientMsg::Played { reply: "r1".into(), ms: 200 });
    assert_eq!(rig.said(), ["reply_ended r1 Completed 200/200"], "the client's word comes before the clock's");
    rig.event(Event::SpeechStarted { at_ms: 0 });
    assert_eq!(rig.said(), ["speech_started 0"]);
}

#[test]
fn manual_turns_are_committed_padded_and_answered_once() {
    let mut rig = Rig::new(Plan { auto_turns: false, ..plan() });
    rig.message(ClientMsg::Commit);
    assert_eq!(rig.said(), ["error nothing_to_commit"]);
    rig.speak(40 * MS);
    rig.message(ClientMsg::Commit);
    assert_eq!(rig.said(), ["Commit", "CreateReply"]);
    let sent: usize = rig
        .log
        .iter()
        .filter_map(|(_, o)| match o {
            Output::Service { command: Command::Append(audio), .. } => Some(audio.len()),
            _ => None,
        })
        .sum();
    assert_eq!(sent, 4_800, "the service's least turn is 100 ms");
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 400 * MS);
    rig.pass(100 * MS);
    rig.speak(200 * MS);
    rig.said();
    rig.message(ClientMsg::Commit);
    assert_eq!(
        rig.said(),
        ["drop audio", "clear r1", "Cancel resp_1", "Truncate a 300", "Commit"],
        "the new reply waits for the end of the old one"
    );
    rig.done("resp_1", Ended::Cancelled);
    assert_eq!(rig.said(), ["CreateReply", "reply_ended r1 Interrupted 300/400"]);
    rig.message(ClientMsg::Discard);
    assert_eq!(rig.said(), ["drop input", "ClearInput"]);
}

#[test]
fn commit_and_discard_belong_to_manual_turns() {
    let mut rig = Rig::new(plan());
    rig.speak(200 * MS);
    rig.message(ClientMsg::Commit);
    rig.message(ClientMsg::Discard);
    assert_eq!(rig.said(), ["error wrong_mode", "error wrong_mode"]);
}

#[test]
fn a_reply_that_was_asked_for_and_is_not_wanted_any_more_is_never_heard() {
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "one".into() });
    assert_eq!(rig.said(), ["UserText one", "CreateReply"]);
    rig.message(ClientMsg::Text { text: "two".into() });
    assert_eq!(rig.said(), ["Cancel any", "UserText two"]);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.done("resp_1", Ended::Cancelled);
    assert_eq!(rig.said(), ["drop audio", "CreateReply", "reply_started r1", "reply_ended r1 Interrupted 0/0"]);
    rig.created("resp_2");
    rig.reply_audio("resp_2", "b", 200 * MS);
    assert_eq!(rig.said(), ["reply_started r2", "10 frames"]);
}

#[test]
fn text_during_speech_joins_the_spoken_turn() {
    let mut rig = Rig::new(plan());
    rig.speak(200 * MS);
    rig.event(Event::SpeechStarted { at_ms: 0 });
    rig.said();
    rig.message(ClientMsg::Text { text: "my number is 42".into() });
    assert_eq!(rig.said(), ["UserText my number is 42"]);
    rig.event(Event::SpeechStopped { at_ms: 200 });
    rig.created("resp_1");
    assert_eq!(rig.said(), ["speech_stopped 200", "reply_started r1"]);
}

#[test]
fn a_request_that_lost_the_race_is_made_again_and_benign_errors_are_swallowed() {
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "hi".into() });
    let number = rig.last_number("CreateReply");
    rig.said();
    rig.error(number, "conversation_already_has_active_response", "resp_x is running");
    assert_eq!(rig.said(), [""; 0]);
    rig.done("resp_x", Ended::Completed);
    assert_eq!(rig.said(), ["CreateReply"]);
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    let cancel = rig.last_number("Cancel");
    rig.said();
    rig.error(cancel, "response_cancel_not_active", "nothing to cancel");
    assert_eq!(rig.said(), [""; 0]);
}

#[test]
fn a_truncate_that_the_service_finds_too_long_is_made_once_more_with_its_own_length() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.pass(SECOND);
    rig.event(Event::SpeechStarted { at_ms: 0 });
    let number = rig.last_number("Truncate");
    rig.said();
    rig.error(number, "invalid_value", "Audio content of 915ms is already shorter than 1000ms");
    assert_eq!(rig.said(), ["Truncate a 915"]);
    let number = rig.last_number("Truncate");
    rig.error(number, "invalid_value", "Audio content of 905ms is already shorter than 915ms");
    assert_eq!(rig.said(), [""; 0], "once is enough");
}

#[test]
fn tools_go_out_once_and_the_model_goes_on_after_the_last_result() {
    let mut rig = Rig::new(plan());
    let call = |id: &str| Event::ToolCall {
        response: "resp_1".into(),
        call_id: id.into(),
        name: "look_up".into(),
        arguments: "{}".into(),
    };
    rig.created("resp_1");
    rig.event(call("c1"));
    rig.event(call("c1"));
    rig.event(call("c2"));
    rig.done("resp_1", Ended::Completed);
    assert_eq!(rig.said(), ["reply_started r1", "tool_call c1", "tool_call c2", "reply_ended r1 Completed 0/0"]);
    rig.message(ClientMsg::ToolResult { call_id: "c1".into(), output: "1".into() });
    rig.message(ClientMsg::ToolResult { call_id: "c1".into(), output: "1".into() });
    rig.message(ClientMsg::ToolResult { call_id: "c3".into(), output: "1".into() });
    assert_eq!(rig.said(), ["ToolOutput c1", "error unknown_call", "error unknown_call"]);
    rig.pass(30 * SECOND);
    assert_eq!(rig.said(), ["ToolOutput c2", "CreateReply"], "the model is told that the client gave no result");
}

#[test]
fn a_failed_reply_is_told_with_its_reason() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.event(Event::ReplyDone {
        response: "resp_1".into(),
        ended: Ended::Failed,
        reason: Some("rate_limit_exceeded".into()),
        retry_after: Some(1_500 * MS),
        limit: None,
        usage: None,
    });
    assert_eq!(rig.said(), ["reply_started r1", "error rate_limited", "reply_ended r1 Failed 0/0"]);
    let told = rig.log.iter().any(|(_, o)| {
        matches!(o, Output::Send(ServerMsg::Error { error }) if error.retry_after_ms == Some(1_500) && error.retryable)
    });
    assert!(told);
}

#[test]
fn a_silent_service_is_asked_and_then_given_up() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.said();
    rig.pass(10 * SECOND);
    assert_eq!(rig.said(), ["notice stalled", "ping service"]);
    rig.pass(10 * SECOND);
    assert_eq!(
        rig.said(),
        ["estimate resp_1 0", "notice upstream_reconnecting", "dial", "reply_ended r1 Interrupted 0/0"],
        "as if it had hung up"
    );
    rig.input(Input::SessionUp(None));
    assert_eq!(
        rig.said(),
        ["notice upstream_resumed", "CreateReply"],
        "nothing of it was heard: it is asked for again"
    );

    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.pass(10 * SECOND);
    rig.input(Input::ServicePong);
    rig.said();
    rig.pass(10 * SECOND);
    assert_eq!(rig.said(), ["estimate resp_1 0", "Cancel resp_1", "error reply_failed", "reply_ended r1 Failed 0/0"]);
    rig.message(ClientMsg::Text { text: "still there?".into() });
    assert_eq!(rig.said(), ["UserText still there?", "CreateReply"]);
}

#[test]
fn the_calls_own_limits_end_it() {
    let mut rig = Rig::living(Life { max: 60 * SECOND, ..life() }, plan());
    rig.said();
    rig.pass(60 * SECOND);
    assert_eq!(rig.said(), ["drop audio", "error max_call_time", "end 4440"]);

    let mut rig = Rig::living(Life { idle: Some(20 * SECOND), ..life() }, plan());
    rig.said();
    rig.pass(20 * SECOND);
    assert_eq!(rig.said(), ["hang up 4408 with a word"], "pongs are no messages");
    rig.pass(30 * SECOND);
    assert_eq!(rig.said(), ["end 1000"], "and nobody came back");

    // Silence is streamed and nothing is said; speech, words and answers are no silence.
    let mut rig = Rig::living(Life { silence: Some(20 * SECOND), ..life() }, Plan { auto_turns: false, ..plan() });
    rig.speak(15 * SECOND);
    rig.message(ClientMsg::Commit);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 30 * SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.pass(29 * SECOND);
    assert!(!rig.said().iter().any(|word| word.starts_with("hang up")), "the answer sounds");
    rig.speak(25 * SECOND);
    assert!(rig.said().contains(&"hang up 4408 with a word".to_owned()));

    let mut rig = Rig::new(plan());
    rig.said();
    while rig.core.is_connected() {
        rig.now = rig.core.deadline(true).unwrap();
        rig.input(Input::Tick);
    }
    assert_eq!(rig.said(), ["hang up 4408 with a word"]);
    assert!(rig.now <= 35 * SECOND, "two pings without an answer");

    let mut rig = Rig::new(plan());
    rig.said();
    rig.input(Input::Drain(3 * SECOND));
    rig.pass(3 * SECOND);
    assert_eq!(rig.said(), ["draining 3000", "end 1001"]);
}

#[test]
fn a_call_whose_server_stays_after_all_goes_on() {
    for heir in [false, true] {
        let mut rig = Rig::new(plan());
        rig.said();
        rig.input(Input::Heir(heir));
        rig.speak(300 * MS);
        rig.input(Input::Drain(3 * SECOND));
        rig.input(Input::Stay);
        rig.pass(4 * SECOND);
        let ends = |rig: &Rig| rig.log.iter().any(|(_, output)| matches!(output, Output::End(_)));
        assert!(!ends(&rig), "also if it was on its way already");
        // The next time counts anew.
        rig.input(Input::Drain(2 * SECOND));
        rig.pass(3 * SECOND);
        assert!(ends(&rig));
    }
}

#[test]
fn what_is_said_before_the_session_is_up_is_kept_in_order() {
    let mut rig = Rig {
        core: Core::owner(life(), Plan { auto_turns: false, greeting: Some("Hello!".into()), ..plan() }, None),
        now: At::ZERO,
        log: Vec::new(),
        read: 0,
    };
    rig.drain();
    rig.speak(300 * MS);
    rig.message(ClientMsg::Commit);
    assert_eq!(rig.said(), [""; 0]);
    rig.input(Input::SessionUp(None));
    let commands: Vec<&Command> = rig
        .log
        .iter()
        .filter_map(|(_, o)| if let Output::Service { command, .. } = o { Some(command) } else { None })
        .collect();
    assert!(matches!(commands[0], Command::Configure { .. }));
    assert!(
        matches!(commands[1], Command::CreateReply { .. }),
        "the caller's turn waits for its answer, the greeting is first or dropped"
    );
    let audio: usize =
        commands.iter().filter_map(|c| if let Command::Append(a) = c { Some(a.len()) } else { None }).sum();
    assert_eq!(audio, 300 * 48);
    assert!(matches!(commands.last(), Some(Command::Commit)));
}

#[test]
fn a_greeting_is_an_ordinary_reply_once_per_call() {
    let mut rig = Rig::new(Plan { greeting: Some("Hello!".into()), ..plan() });
    assert_eq!(rig.said(), ["CreateReply with instructions"]);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.done("resp_1", Ended::Completed);
    rig.pass(SECOND);
    assert_eq!(rig.said(), ["reply_started r1", "10 frames", "tail", "reply_ended r1 Completed 200/200"]);
}

#[test]
fn a_backlog_that_nobody_can_hear_in_time_stops_the_reply() {
    let mut rig = Rig::new(Plan { max_backlog: 5 * SECOND, ..plan() });
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 7 * SECOND);
    assert_eq!(rig.said(), ["reply_started r1", "20 frames", "Cancel resp_1", "Truncate a 5800"], "asked once");
}

#[test]
fn a_service_that_is_gone_for_good_ends_the_call_with_a_reason() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 400 * MS);
    rig.pass(100 * MS);
    rig.said();
    let refused = UpstreamError::closed(Some(3000), "invalid_request_error.invalid_api_key");
    rig.input(Input::ServiceGone(End::upstream(&refused), refused.another_may_do()));
    assert_eq!(
        rig.said(),
        ["estimate resp_1 8", "leave service", "hang up 4502 with a word"],
        "who comes back may have better luck"
    );
    rig.pass(SECOND);
    rig.input(Input::ClientBack { late: Duration::ZERO, credential: None });
    assert_eq!(rig.said(), ["dial", "tail"]);
    let error = UpstreamError::Broken("reset".into());
    rig.input(Input::ServiceGone(End::upstream(&error), error.another_may_do()));
    assert_eq!(rig.said(), ["hang up 4502 with a word"], "it was tried long enough");
    rig.pass(30 * SECOND);
    assert_eq!(rig.said(), ["end 1000"]);
    rig.message(ClientMsg::Text { text: "hello?".into() });
    assert_eq!(rig.said(), [""; 0], "over is over");
}

#[test]
fn a_server_that_leaves_says_how_the_open_reply_ended() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 400 * MS);
    rig.pass(100 * MS);
    rig.said();
    rig.input(Input::Drain(100 * MS));
    rig.pass(100 * MS);
    assert_eq!(rig.said(), ["draining 100", "reply_ended r1 Failed 200/400", "Cancel resp_1", "end 1001"]);
}

#[test]
fn twenty_bad_messages_end_the_call() {
    let mut rig = Rig::new(plan());
    rig.said();
    for _ in 0..20 {
        rig.input(Input::Invalid { field: None, message: "not JSON".into() });
    }
    let said = rig.said();
    assert_eq!(said.iter().filter(|w| *w == "error invalid_message").count(), 20);
    assert_eq!(said[20..], ["drop audio", "error policy_violation", "end 1008"]);
}

#[test]
fn a_call_can_be_written_down_and_continued() {
    let script = |pause: bool| {
        let mut rig = Rig::new(plan());
        turn(&mut rig);
        rig.created("resp_1");
        rig.reply_audio("resp_1", "a", 2 * SECOND);
        rig.pass(500 * MS);
        if pause {
            let written = serde_json::to_string(&rig.core).unwrap();
            rig.core = serde_json::from_str(&written).unwrap();
        }
        rig.pass(300 * MS);
        rig.event(Event::SpeechStarted { at_ms: 3_000 });
        rig.done("resp_1", Ended::Cancelled);
        rig.pass(2 * SECOND);
        rig.log.into_iter().filter(|(_, o)| word(o).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(script(false), script(true));
}

#[test]
fn a_reply_with_a_status_of_its_own_keeps_it() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.done("resp_1", Ended::Incomplete);
    let status = rig.log.iter().find_map(|(_, o)| match o {
        Output::Send(ServerMsg::ReplyEnded { status, .. }) => Some(*status),
        _ => None,
    });
    assert_eq!(status, Some(ReplyStatus::Incomplete));
}

#[test]
fn giving_up_a_request_never_silences_a_later_reply() {
    // The request lost the race against a reply that we do not know, and then the caller typed something else.
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "one".into() });
    let number = rig.last_number("CreateReply");
    rig.error(number, "conversation_already_has_active_response", "resp_x is running");
    rig.message(ClientMsg::Text { text: "two".into() });
    rig.done("resp_x", Ended::Cancelled);
    assert_eq!(rig.said(), ["UserText one", "CreateReply", "Cancel any", "UserText two", "CreateReply"]);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    assert_eq!(rig.said(), ["reply_started r1", "10 frames"]);

    // The request was interrupted and never answered.
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "one".into() });
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    rig.pass(10 * SECOND);
    rig.input(Input::ServicePong);
    rig.pass(10 * SECOND);
    rig.message(ClientMsg::Text { text: "two".into() });
    rig.said();
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    assert_eq!(rig.said(), ["reply_started r1", "10 frames"]);
}

#[test]
fn an_interrupted_request_that_lost_the_race_is_not_made_again() {
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "one".into() });
    let number = rig.last_number("CreateReply");
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    assert_eq!(rig.said(), ["UserText one", "CreateReply", "Cancel any"], "cancelled once");
    rig.error(number, "conversation_already_has_active_response", "resp_x is running");
    rig.done("resp_x", Ended::Cancelled);
    assert_eq!(rig.said(), [""; 0]);
}

#[test]
fn the_moments_of_a_turn_belong_to_the_reply_that_answers_it() {
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "one".into() });
    rig.message(ClientMsg::Text { text: "two".into() });
    rig.created("resp_1");
    rig.done("resp_1", Ended::Cancelled);
    rig.pass(40 * MS);
    rig.created("resp_2");
    rig.done("resp_2", Ended::Completed);
    let ended = rig.log.iter().rev().find_map(|(_, o)| match o {
        Output::Send(ServerMsg::ReplyEnded { reply, latency, .. }) => Some((reply.as_str(), latency.reply_started_ms)),
        _ => None,
    });
    assert_eq!(ended, Some(("r2", Some(40))));
}

#[test]
fn a_reply_that_begins_while_the_caller_speaks_is_stopped() {
    let mut rig = Rig::new(Plan { greeting: Some("Hello!".into()), ..plan() });
    rig.speak(200 * MS);
    rig.event(Event::SpeechStarted { at_ms: 0 }); // on its way while the request was on its own
    rig.said();
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.done("resp_1", Ended::Cancelled);
    assert_eq!(
        rig.said(),
        ["drop audio", "Cancel resp_1", "reply_started r1", "reply_ended r1 Interrupted 0/0"],
        "the service stops only what runs when speech begins"
    );
    rig.event(Event::SpeechStopped { at_ms: 700 });
    rig.created("resp_2");
    rig.done("resp_2", Ended::Completed);
    rig.pass(4 * SECOND);
    assert_eq!(
        rig.said(),
        ["speech_stopped 700", "reply_started r2", "reply_ended r2 Completed 0/0"],
        "the greeting was said, as far as the caller wanted to hear it"
    );
}

#[test]
fn text_behind_the_end_of_speech_gets_its_own_answer() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.message(ClientMsg::Text { text: "and this".into() });
    rig.created("resp_1"); // begun before the text came to the service
    assert_eq!(rig.said(), ["UserText and this", "reply_started r1"]);
    rig.done("resp_1", Ended::Completed);
    assert_eq!(rig.said(), ["CreateReply", "reply_ended r1 Completed 0/0"]);
}

#[test]
fn a_request_that_lost_against_the_services_own_reply_is_made_after_it() {
    let mut rig = Rig::new(plan());
    rig.message(ClientMsg::Text { text: "hi".into() });
    let number = rig.last_number("CreateReply");
    rig.created("resp_vad");
    rig.said();
    rig.error(number, "conversation_already_has_active_response", "resp_vad is running");
    assert_eq!(rig.said(), [""; 0]);
    rig.done("resp_vad", Ended::Completed);
    assert_eq!(rig.said(), ["CreateReply", "reply_ended r1 Completed 0/0"]);
}

#[test]
fn events_that_come_twice_or_never_leave_no_reply_behind() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.done("resp_1", Ended::Completed);
    rig.done("resp_1", Ended::Completed);
    rig.pass(SECOND);
    assert_eq!(rig.said(), ["reply_started r1", "10 frames", "tail", "reply_ended r1 Completed 200/200"]);
    // The end of this one is lost: the next one must not wait for it.
    rig.created("resp_2");
    rig.reply_audio("resp_2", "b", 200 * MS);
    rig.pass(SECOND);
    rig.created("resp_3");
    rig.reply_audio("resp_3", "c", 200 * MS);
    rig.done("resp_3", Ended::Completed);
    rig.pass(SECOND);
    assert_eq!(
        rig.said(),
        [
            "reply_started r2",
            "10 frames",
            "tail",
            "reply_started r3",
            "reply_ended r2 Incomplete 200/200",
            "10 frames",
            "tail",
            "reply_ended r3 Completed 200/200"
        ]
    );
}

#[test]
fn a_greeting_comes_before_the_answer_to_what_was_said_too_early() {
    let mut rig = Rig {
        core: Core::owner(life(), Plan { auto_turns: false, greeting: Some("Hello!".into()), ..plan() }, None),
        now: At::ZERO,
        log: Vec::new(),
        read: 0,
    };
    rig.speak(300 * MS);
    rig.message(ClientMsg::Commit);
    rig.input(Input::SessionUp(None));
    assert_eq!(rig.said(), ["CreateReply with instructions", "Commit"]);
    rig.created("resp_1");
    rig.done("resp_1", Ended::Completed);
    assert_eq!(rig.said(), ["reply_started r1", "CreateReply", "reply_ended r1 Completed 0/0"]);
}

#[test]
fn a_reply_that_we_stopped_keeps_our_reason_and_takes_no_more_audio() {
    let mut rig = Rig::new(Plan { max_backlog: 5 * SECOND, ..plan() });
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 7 * SECOND);
    assert_eq!(rig.said(), ["reply_started r1", "20 frames", "Cancel resp_1", "Truncate a 5800"]);
    rig.done("resp_1", Ended::Cancelled);
    rig.pass(7 * SECOND);
    assert_eq!(rig.said(), ["270 frames", "tail", "reply_ended r1 Incomplete 5800/5800"]);
    let reason = rig.log.iter().find_map(|(_, o)| match o {
        Output::Send(ServerMsg::ReplyEnded { reason, .. }) => reason.as_deref(),
        _ => None,
    });
    assert_eq!(reason, Some("max_backlog"));
}

#[test]
fn a_reply_is_over_when_the_client_says_that_it_was_heard() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.pass(900 * MS);
    rig.message(ClientMsg::Played { reply: "r1".into(), ms: 600 });
    rig.said();
    rig.pass(399 * MS);
    assert_eq!(rig.said(), [""; 0], "the loudspeaker is 300 ms behind the clock");
    rig.pass(MS);
    assert_eq!(rig.said(), ["reply_ended r1 Completed 1000/1000"]);

    // It stopped the loudspeaker and says nothing more.
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 2 * SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.pass(500 * MS);
    rig.message(ClientMsg::Played { reply: "r1".into(), ms: 400 });
    rig.pass(10 * SECOND);
    assert_eq!(rig.said().last().map(String::as_str), Some("reply_ended r1 Completed 1400/2000"));
}

#[test]
fn a_rate_limit_in_the_middle_of_a_call_is_told_with_its_wait() {
    let mut rig = Rig::new(plan());
    rig.event(Event::Error(ServiceError {
        code: "rate_limit_exceeded".into(),
        retry_after: Some(1_500 * MS),
        ..ServiceError::default()
    }));
    assert_eq!(rig.said(), ["error rate_limited"]);
    let told = rig.log.iter().any(|(_, o)| {
        matches!(o, Output::Send(ServerMsg::Error { error }) if error.retry_after_ms == Some(1_500) && error.retryable)
    });
    assert!(told);
}

#[test]
fn what_is_kept_for_a_session_that_does_not_come_is_bounded() {
    let mut rig = Rig { core: Core::owner(life(), plan(), None), now: At::ZERO, log: Vec::new(), read: 0 };
    for _ in 0..1_000 {
        rig.message(ClientMsg::Text { text: "x".repeat(64 << 10) });
    }
    assert_eq!(rig.said(), ["drop audio", "error policy_violation", "end 1008"]);
}

#[test]
fn a_credential_ends_the_call_unless_it_is_renewed() {
    let token = |text: &str| ClientMsg::Token { token: text.into() };
    let mut rig = Rig::living(Life { credential: Some(600 * SECOND), ..life() }, plan());
    let live = |rig: &mut Rig, until: u32| {
        rig.pass((SECOND * until).saturating_sub(rig.now));
        rig.said()
    };
    assert!(!live(&mut rig, 530).iter().any(|word| word.starts_with("notice")));
    assert!(live(&mut rig, 550).contains(&"notice token_expiring".to_owned()), "a minute before");
    rig.input(Input::Message(token("bad")));
    rig.input(Input::NotRenewed);
    assert_eq!(rig.said(), ["renew bad", "error unauthorized"]);
    rig.input(Input::Message(token("good")));
    rig.input(Input::Renewed(Some(100 * SECOND)));
    let words = live(&mut rig, 640);
    assert!(words.contains(&"notice token_expiring".to_owned()), "a fifth of a short life before its end: {words:?}");
    rig.input(Input::Renewed(None));
    let words = live(&mut rig, 2_000);
    assert!(!words.iter().any(|word| word.starts_with("end") || word.starts_with("notice")), "{words:?}");
    rig.input(Input::Renewed(Some(SECOND)));
    rig.pass(2 * SECOND);
    let words = rig.said();
    assert!(words.contains(&"hang up 4401 with a word".to_owned()), "{words:?}");
}

#[test]
fn a_reply_without_audio_does_not_begin_in_the_middle_of_the_one_before() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.message(ClientMsg::Ping { t: serde_json::Value::Null });
    rig.said();
    rig.created("resp_2");
    rig.done("resp_2", Ended::Completed);
    assert_eq!(rig.said(), [""; 0], "audio of the first is still to come");
    rig.created("resp_3");
    rig.reply_audio("resp_3", "b", 200 * MS);
    rig.done("resp_3", Ended::Completed);
    rig.pass(2 * SECOND);
    let said = rig.said();
    let at = |what: &str| said.iter().position(|word| word.starts_with(what)).unwrap();
    let order = ["tail", "reply_started r2", "reply_started r3", "reply_ended r3"].map(at);
    assert!(order.is_sorted() && at("reply_started r2") < at("reply_ended r2"), "{said:?}");
}

#[test]
fn what_has_not_left_us_is_not_heard_and_is_no_reason_to_send_more() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    rig.reply_audio("resp_1", "item_1", 2 * SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.said();
    // 300 ms reach the client; what is sent after that stays in its queue for a minute.
    let sent = |rig: &Rig| rig.log.iter().filter(|(_, output)| matches!(output, Output::Audio { .. })).count();
    for _ in 0..60_000 / 20 {
        rig.pass(20 * MS);
        let waits = 20 * MS * u32::try_from(sent(&rig)).unwrap();
        rig.core.client_lacks(rig.now, waits.saturating_sub(300 * MS));
    }
    let said = rig.said();
    assert!(!said.iter().any(|word| word.starts_with("reply_ended")), "{said:?}");
    assert!(matches!(sent(&rig), 35 | 36), "what was heard and the lead: {}", sent(&rig));
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    assert!(rig.said().contains(&"reply_ended r1 Interrupted 300/2000".to_owned()), "{:?}", rig.log.last());
}
