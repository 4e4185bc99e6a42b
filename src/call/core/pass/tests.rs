//! The pass-through core in virtual time: what goes by, what is ruled, and what is answered in the service's place.
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    call::{
        At,
        core::{Core, Input, Life, Output, Resume, TurnAct},
        end::End,
        policy::Policy,
        turnstile::Word,
    },
    client::openai::{self, Said},
    config::{AgentConfig, PolicyConfig, Rule},
    upstream::{UpstreamError, ga},
};

const SECOND: Duration = Duration::from_secs(1);
const CREATED: &str = r#"{"type":"session.created","event_id":"e1","session":{"type":"realtime","id":"sess_1","instructions":"of the service","audio":{"input":{"format":{"type":"audio/pcm","rate":24000},"turn_detection":{"type":"server_vad","silence_duration_ms":200}}}}}"#;

/// A call with a clock of its own; what it says to either side, in order.
struct Rig {
    core: Core,
    now: At,
    to_service: Vec<String>,
    to_client: Vec<String>,
    pings: usize,
    goes_over: bool,
    dials: usize,
    turns: Vec<TurnAct>,
    /// The account has room for all.
    grants: bool,
    end: Option<End>,
}

impl Rig {
    fn new(agent: &AgentConfig) -> Self {
        Self::of(agent, false, None)
    }

    /// A call whose client can come back, and has not been told how.
    fn kept() -> Self {
        let resume = Resume { token: "token".into(), window: 30 * SECOND };
        Self::of(&AgentConfig::default(), false, Some(resume))
    }

    fn of(agent: &AgentConfig, only_writes: bool, resume: Option<Resume>) -> Self {
        let life = Life {
            call: "call_1".into(),
            max: 3_600 * SECOND,
            idle: None,
            silence: None,
            stall: 10 * SECOND,
            credential: None,
        };
        let core = Core::pass_through(
            life,
            Policy::new(agent, "real-model", PolicyConfig::default()),
            only_writes,
            true,
            resume,
        );
        Self {
            core,
            now: At::ZERO,
            to_service: vec![],
            to_client: vec![],
            pings: 0,
            goes_over: false,
            dials: 0,
            turns: vec![],
            grants: true,
            end: None,
        }
    }

    /// A call whose session is up.
    fn open() -> Self {
        let mut rig = Self::new(&AgentConfig::default());
        rig.up();
        assert_eq!(rig.told(), [CREATED]);
        rig
    }

    fn input(&mut self, input: Input<'_>) {
        self.core.handle(self.now, input);
        while let Some(output) = self.core.poll(self.now, true) {
            match output {
                Output::Forward(text) => self.to_service.push(string(&text)),
                Output::Relay { text, first } => {
                    self.to_client.push(string(&text));
                    if first {
                        self.core.handle(self.now, Input::FirstAudioLeft);
                    }
                }
                Output::Send(message) | Output::SendNow(message) => {
                    self.to_client.extend(openai::write(&message).map(|text| string(&text)));
                }
                Output::PingService => self.pings += 1,
                Output::End(end) => self.end = Some(end),
                Output::HandOver => self.goes_over = true,
                Output::PingClient | Output::Fact(_) | Output::DropAudio => {}
                Output::Greet(_) | Output::HangUp { .. } => {}
                Output::Dial => self.dials += 1,
                Output::LeaveService | Output::Book(_) | Output::Told(_) => {}
                Output::Turn(act) => {
                    if let (TurnAct::Ask { number, .. }, true) = (&act, self.grants) {
                        self.core.handle(self.now, Input::Turn { number: *number, word: Word::Granted });
                    }
                    self.turns.push(act);
                }
                other => panic!("the owner's business: {other:?}"),
            }
        }
    }

    fn up(&mut self) {
        self.input(Input::SessionUp(None));
        self.hear(CREATED);
    }

    fn say(&mut self, text: &str) {
        self.input(Input::Said(Said::read(Bytes::from(text.to_owned()))));
    }

    fn hear(&mut self, text: &str) {
        let text = Bytes::from(text.to_owned());
        self.input(Input::Heard(ga::glance(&text), text));
    }

    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(at) = self.core.deadline(true).filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Tick);
            self.input(Input::ClientPong);
        }
        self.now = end;
    }

    fn forwarded(&mut self) -> Vec<String> {
        std::mem::take(&mut self.to_service)
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.to_client)
    }

    /// Code and event id of the only thing that was told, an error.
    fn refusal(&mut self) -> (String, Value) {
        let told = self.told();
        let [text] = told.as_slice() else { panic!("one error expected: {told:?}") };
        let event: Value = serde_json::from_str(text).unwrap();
        assert_eq!(event["type"], "error");
        assert!(event["event_id"].as_str().unwrap().starts_with("event_call_1"));
        (event["error"]["code"].as_str().unwrap().to_owned(), event["error"]["event_id"].clone())
    }
}

fn string(text: &Bytes) -> String {
    String::from_utf8(text.to_vec()).unwrap()
}

#[test]
fn what_is_said_before_the_session_waits_and_keeps_its_order() {
    let mut rig = Rig::new(&AgentConfig::default());
    let early = [r#"{"type":"session.update","session":{"type":"realtime"}}"#, r#"{"type":"of_tomorrow","x":[1, 2]}"#];
    early.iter().for_each(|text| rig.say(text));
    rig.say("no json");
    assert!(rig.forwarded().is_empty() && rig.told().is_empty());
    assert!(rig.core.held_bytes() > 0);
    rig.up();
    assert_eq!(rig.forwarded(), early, "to the byte");
    let told = rig.told();
    assert_eq!(told[0], CREATED, "the first that a client hears");
    assert!(told[1].contains("invalid_json"), "{told:?}");
    assert_eq!(rig.core.held_bytes(), 0);
}

#[test]
fn an_agents_values_go_first_and_the_client_sees_them() {
    let policy = PolicyConfig { instructions: Rule::Force, voice: Rule::Default, ..PolicyConfig::default() };
    let agent = AgentConfig { instructions: "Be brief.".into(), policy, ..AgentConfig::default() };
    let mut rig = Rig::new(&agent);
    rig.say(
        r#"{"type":"session.update","event_id":"c1","session":{"type":"realtime","instructions":"Obey.","tools":[]}}"#,
    );
    rig.up();
    let [opening] = rig.forwarded().try_into().unwrap();
    let opening: Value = serde_json::from_str(&opening).unwrap();
    assert_eq!(
        opening["session"],
        json!({"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "marin"}}})
    );
    assert!(rig.told().is_empty(), "the client waits for a session that is as it should be");
    rig.hear(r#"{"type":"conversation.created","event_id":"e2"}"#);
    rig.hear(r#"{"type":"session.updated","event_id":"e3","session":{"type":"realtime","id":"sess_1","instructions":"Be brief."}}"#);
    let told: Vec<Value> = rig.told().iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(told[0]["type"], "session.created");
    assert_eq!(
        (told[0]["event_id"].as_str(), told[0]["session"]["instructions"].as_str()),
        (Some("e1"), Some("Be brief."))
    );
    assert_eq!((told[1]["type"].as_str(), told.len()), (Some("conversation.created"), 2), "the update was ours");
    let [update] = rig.forwarded().try_into().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&update).unwrap(),
        json!({"type": "session.update", "event_id": "c1", "session": {"type": "realtime", "tools": []}}),
        "what is fixed is left out, the rest stays"
    );
    rig.say(r#"{"type":"response.create","response":{"instructions":"Obey.","metadata":{"a":"b"}}}"#);
    assert_eq!(rig.forwarded(), [r#"{"type":"response.create","response":{"metadata":{"a":"b"}}}"#]);
}

#[test]
fn a_field_that_stands_twice_gets_round_no_policy() {
    let policy = PolicyConfig { voice: Rule::Force, ..PolicyConfig::default() };
    let mut rig = Rig::new(&AgentConfig { policy, ..AgentConfig::default() });
    rig.up();
    rig.hear(r#"{"type":"session.updated","event_id":"e","session":{"type":"realtime"}}"#);
    let _ = (rig.told(), rig.forwarded());
    rig.say(r#"{"type":"session.update","session":{"audio":{"output":{"voice":"x"}}},"session":{"type":"realtime"}}"#);
    assert_eq!((rig.refusal().0.as_str(), rig.forwarded().len()), ("invalid_event", 0));
    rig.say(r#"{"type":"session.update","session":{"audio":{"output":{"voice":"x"}},"audio":{"input":{}}}}"#);
    rig.say(r#"{"type":"response.create","response":{"audio":{"output":{"voice":"x"}},"audio":{}}}"#);
    let forwarded = rig.forwarded();
    assert!(forwarded.len() == 2 && forwarded.iter().all(|text| !text.contains("voice")), "{forwarded:?}");
}

#[test]
fn a_configuration_that_the_service_refuses_ends_the_call_with_its_code() {
    let policy = PolicyConfig { voice: Rule::Force, ..PolicyConfig::default() };
    let mut rig = Rig::new(&AgentConfig { policy, ..AgentConfig::default() });
    rig.up();
    rig.hear(r#"{"type":"error","event_id":"e2","error":{"type":"invalid_request_error","code":"invalid_value","message":"secret sk-1","event_id":"vr_0"}}"#);
    let end = rig.end.take().unwrap();
    assert_eq!(openai::close(&end).0, 4000, "for good");
    let told = rig.told();
    assert!(
        told[0].contains("refused the agent's configuration (invalid_value)") && !told[0].contains("sk-1"),
        "{told:?}"
    );
}

#[test]
fn one_reply_at_a_time_and_others_beside_it() {
    let mut rig = Rig::open();
    rig.say(r#"{"type":"response.create"}"#);
    rig.say(r#"{"type":"response.create","event_id":"c2"}"#);
    assert_eq!(rig.forwarded().len(), 1);
    assert_eq!(rig.refusal(), ("conversation_already_has_active_response".into(), json!("c2")));
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_1","conversation_id":"conv_1"}}"#);
    let _ = rig.told();
    rig.say(r#"{"type":"response.create"}"#);
    assert!(rig.told()[0].contains("in progress: resp_1"));
    // One in no conversation runs beside it, and its end frees nothing.
    let aside = r#"{"type":"response.create","response":{"conversation":"none","metadata":{"topic":"x"}}}"#;
    rig.say(aside);
    assert_eq!(rig.forwarded(), [aside]);
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_2","conversation_id":null}}"#);
    rig.hear(r#"{"type":"response.done","event_id":"e","response":{"id":"resp_2","conversation_id":null,"status":"completed"}}"#);
    let _ = rig.told();
    rig.say(r#"{"type":"response.create","event_id":"c3"}"#);
    assert_eq!(rig.refusal().1, json!("c3"));
    rig.hear(r#"{"type":"response.done","event_id":"e","response":{"id":"resp_1","status":"completed"}}"#);
    rig.say(r#"{"type":"response.create"}"#);
    assert_eq!(rig.forwarded().len(), 1);
    // Both are counted, each by its own end.
    let ids = |rig: &Rig, begun: bool| -> Vec<String> {
        let id = |act: &TurnAct| match act {
            TurnAct::Began { response, asked: true, .. } if begun => Some(response.clone()),
            TurnAct::Over { response, .. } if !begun => Some(response.clone()),
            _ => None,
        };
        rig.turns.iter().filter_map(id).collect()
    };
    assert_eq!(
        (ids(&rig, true), ids(&rig, false)),
        (vec!["resp_1".into(), "resp_2".into()], vec!["resp_2".into(), "resp_1".into()])
    );
}

#[test]
fn a_request_that_the_service_refuses_keeps_no_others_away() {
    let mut rig = Rig::open();
    for event_id in [r#","event_id":"c1""#, ""] {
        rig.say(&format!(r#"{{"type":"response.create"{event_id}}}"#));
        assert_eq!(rig.forwarded().len(), 1, "{event_id}");
        let echoed = if event_id.is_empty() { "null" } else { r#""c1""# };
        let error = format!(
            r#"{{"type":"error","event_id":"e","error":{{"type":"x","code":"invalid_value","message":"m","event_id":{echoed}}}}}"#
        );
        rig.hear(&error);
        assert_eq!(rig.told(), [error], "the service's own words");
    }
    rig.say(r#"{"type":"response.create"}"#);
    assert_eq!(rig.forwarded().len(), 1);
}

#[test]
fn a_request_that_is_never_answered_keeps_others_away_only_for_a_while() {
    let mut rig = Rig::open();
    rig.say(r#"{"type":"response.create"}"#);
    rig.pass(11 * SECOND);
    assert_eq!(rig.pings, 1, "does it live?");
    rig.input(Input::ServicePong);
    rig.pass(15 * SECOND);
    let _ = rig.forwarded();
    rig.say(r#"{"type":"response.create"}"#);
    assert_eq!((rig.forwarded().len(), rig.told().len(), rig.end), (1, 0, None));
}

#[test]
fn a_service_that_answers_no_ping_is_left_for_another_session() {
    let mut rig = Rig::open();
    let create = r#"{"type":"response.create"}"#;
    rig.say(create);
    rig.pass(25 * SECOND);
    assert_eq!(rig.end, None);
    rig.forwarded();
    rig.input(Input::SessionUp(None));
    rig.hear(TAKEN);
    rig.hear(TAKEN);
    assert_eq!(rig.forwarded().last().map(String::as_str), Some(create), "asked for again");
    // Where none can be had, the call ends with a reason.
    let mut rig = Rig::open();
    rig.say(create);
    rig.pass(25 * SECOND);
    rig.input(Input::ServiceGone(End::upstream(&UpstreamError::Broken("reset".into())), true));
    assert_eq!(openai::close(rig.end.as_ref().unwrap()).0, 1011);
}

#[test]
fn everything_else_goes_by_to_the_byte() {
    let mut rig = Rig::open();
    for text in [
        r#"{ "audio" : "AAAA", "type" : "input_audio_buffer.append", "event_id" : "a" }"#,
        r#"{"type":"input_audio_buffer.append","audio":7}"#,
        r#"{"type":"input_audio_buffer.commit","event_id":"b"}"#,
        r#"{"type":"conversation.item.truncate","item_id":"i","content_index":0,"audio_end_ms":999999}"#,
        r#"{"type":"response.cancel"}"#,
        r#"{"type":"session.update","session":{"type":"realtime","model":"real-model","x":1.0}}"#,
        r#"{"type":"session.update","session":"no object"}"#,
        r#"{"type":"of_tomorrow","deep":{"a":[{"b":null}]}}"#,
    ] {
        rig.say(text);
        assert_eq!(rig.forwarded(), [text]);
    }
    for text in [
        r#"{"type":"response.output_audio.delta","event_id":"e","delta":"AAAA","obfuscation":"xyz"}"#,
        r#"{"type":"of_tomorrow","event_id":"e"}"#,
        r#"{"type":"rate_limits.updated","event_id":"e","rate_limits":[]}"#,
        "not even JSON",
    ] {
        rig.hear(text);
        assert_eq!(rig.told(), [text]);
    }
    assert_eq!(rig.end, None);
}

#[test]
fn a_long_append_goes_in_parts_that_are_the_same_audio() {
    let mut rig = Rig::open();
    let audio: String = "AAEC".repeat(20_971_520 / 4);
    rig.say(&format!(r#"{{"event_id":"x","type":"input_audio_buffer.append","audio":"{audio}","more":1}}"#));
    let parts = rig.forwarded();
    assert_eq!(parts.len(), 2);
    let mut joined = String::new();
    for part in &parts {
        assert!(part.len() < 15_000_000, "{}", part.len());
        let value: Value = serde_json::from_str(part).unwrap();
        assert_eq!((value["event_id"].as_str(), value["more"].as_u64()), (Some("x"), Some(1)));
        let audio = value["audio"].as_str().unwrap();
        assert!(audio.len().is_multiple_of(8));
        joined.push_str(audio);
    }
    assert!(joined == audio);
}

#[test]
fn binary_frames_are_audio_in_the_sessions_format() {
    let mut rig = Rig::open();
    let append = |audio: &[u8]| string(&ga::append_unnamed(audio));
    rig.input(Input::SaidAudio(&Bytes::from_static(&[1, 2, 3])));
    assert_eq!(rig.forwarded(), [append(&[1, 2])]);
    rig.input(Input::SaidAudio(&Bytes::from_static(&[4])));
    assert_eq!(rig.forwarded(), [append(&[3, 4])], "half a sample is carried over");
    rig.input(Input::SaidAudio(&Bytes::new()));
    assert!(rig.forwarded().is_empty());
    rig.hear(
        r#"{"type":"session.updated","event_id":"e","session":{"audio":{"input":{"format":{"type":"audio/pcmu"}}}}}"#,
    );
    rig.input(Input::SaidAudio(&Bytes::from_static(&[1, 2, 3])));
    assert_eq!(rig.forwarded(), [append(&[1, 2, 3])]);
}

#[test]
fn nonsense_is_answered_as_the_service_would_and_too_much_of_it_ends_the_call() {
    for (text, code) in [
        ("{", "invalid_json"),
        ("[]", "invalid_event"),
        ("{}", "invalid_event"),
        (r#"{"type":7}"#, "invalid_event"),
        (r#"{"type":"session.update","type":"of_tomorrow","session":{}}"#, "invalid_event"),
        (r#"{"type":"input_audio_buffer.append","type":"session.update","audio":"AAAA"}"#, "invalid_event"),
    ] {
        let mut rig = Rig::open();
        rig.say(text);
        assert_eq!(rig.refusal().0, code, "{text}");
        assert!(rig.forwarded().is_empty(), "{text}");
        for _ in 1..20 {
            rig.say(text);
        }
        assert_eq!(rig.end.take(), Some(End::BadMessages));
    }
}

#[test]
fn the_services_goodbye_is_told_once_and_in_its_words() {
    let expired = r#"{"type":"error","event_id":"e","error":{"type":"invalid_request_error","code":"session_expired","message":"m"}}"#;
    let words = "Your session hit the maximum duration of 60 minutes.";
    let mut rig = Rig::open();
    rig.hear(expired);
    rig.input(Input::ServiceGone(End::upstream(&UpstreamError::closed(Some(1001), words)), true));
    assert_eq!((rig.told(), rig.end.take()), (vec![], None), "another session goes on");
    let last = r#"{"type":"error","event_id":"e","error":{"type":"insufficient_quota","code":"insufficient_quota","message":"m"}}"#;
    let mut rig = Rig::open();
    rig.hear(last);
    let refused = UpstreamError::closed(Some(1013), "insufficient_quota.insufficient_quota");
    rig.input(Input::ServiceGone(End::upstream(&refused), refused.another_may_do()));
    assert_eq!(rig.told(), [last]);
    assert_eq!(openai::close(&rig.end.take().unwrap()).0, 1013);
    // Without a word of the service's, we say why.
    let mut rig = Rig::open();
    let refused = UpstreamError::closed(Some(4004), "invalid_request_error.model_not_found");
    rig.input(Input::ServiceGone(End::upstream(&refused), refused.another_may_do()));
    assert_eq!(rig.refusal().0, "model_not_found");
    assert_eq!(openai::close(&rig.end.take().unwrap()).0, 4004);
}

#[test]
fn a_server_that_leaves_waits_for_a_quiet_moment() {
    let mut rig = Rig::open();
    rig.say(r#"{"type":"response.create"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_1"}}"#);
    rig.input(Input::Drain(30 * SECOND));
    rig.pass(5 * SECOND);
    assert_eq!(rig.end, None, "a reply runs");
    rig.hear(r#"{"type":"response.done","event_id":"e","response":{"id":"resp_1","status":"completed"}}"#);
    rig.core.client_has_all(false);
    rig.pass(3 * SECOND);
    assert_eq!(rig.end, None, "its audio is not with the client yet");
    rig.core.client_has_all(true);
    rig.say(
        r#"{"type":"conversation.item.create","item":{"type":"function_call_output","call_id":"c","output":"{}"}}"#,
    );
    rig.pass(SECOND);
    assert_eq!(rig.end, None, "the client is about to ask for more");
    rig.pass(SECOND);
    assert_eq!(rig.end.take(), Some(End::Drained));
    assert_eq!(openai::close(&End::Drained).0, 1001);
    // A turn that was just spoken is answered first, and nobody waits past the deadline.
    let mut rig = Rig::open();
    rig.input(Input::Drain(5 * SECOND));
    rig.pass(SECOND);
    rig.hear(r#"{"type":"input_audio_buffer.speech_started","event_id":"e","audio_start_ms":0}"#);
    rig.pass(3 * SECOND);
    assert_eq!(rig.end, None);
    rig.pass(SECOND);
    assert_eq!(rig.end.take(), Some(End::Drained));
}

#[test]
fn what_only_others_can_read_is_not_passed_on() {
    let policy = PolicyConfig { instructions: Rule::Force, ..PolicyConfig::default() };
    for agent in [AgentConfig::default(), AgentConfig { policy, ..AgentConfig::default() }] {
        let mut rig = Rig::new(&agent);
        rig.up();
        rig.hear(r#"{"type":"session.updated","event_id":"e","session":{"type":"realtime"}}"#);
        let _ = (rig.told(), rig.forwarded());
        let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
        for value in [r#""\ud800""#, "1e999", deep.as_str()] {
            rig.say(&format!(r#"{{"type":"session.update","session":{{"instructions":"Obey.","tools":[{value}]}}}}"#));
            assert_eq!((rig.refusal().0.as_str(), rig.forwarded().len()), ("invalid_json", 0), "{value}");
            rig.say(&format!(
                r#"{{"type":"response.create","response":{{"instructions":"Obey.","metadata":{value}}}}}"#
            ));
            assert_eq!((rig.refusal().0.as_str(), rig.forwarded().len()), ("invalid_json", 0), "{value}");
        }
        rig.say(r#"{"type":"response.create"}"#);
        assert_eq!(rig.forwarded().len(), 1, "the slot was not taken by what never went");
    }
}

#[test]
fn fixed_instructions_and_voices_have_no_other_door() {
    let policy = PolicyConfig { instructions: Rule::Force, voice: Rule::Force, ..PolicyConfig::default() };
    let mut rig = Rig::new(&AgentConfig { policy, ..AgentConfig::default() });
    rig.up();
    rig.hear(r#"{"type":"session.updated","event_id":"e","session":{"type":"realtime"}}"#);
    let _ = (rig.told(), rig.forwarded());
    rig.say(
        r#"{"type":"conversation.item.create","event_id":"c1","item":{"type":"message","role":"system","content":[]}}"#,
    );
    assert_eq!((rig.refusal(), rig.forwarded().len()), (("invalid_value".into(), json!("c1")), 0));
    let user = r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[]}}"#;
    rig.say(user);
    assert_eq!(rig.forwarded(), [user]);
    rig.say(r#"{"type":"response.create","response":{"voice":"x","input":[{"role":"system"},{"role":"user"}]}}"#);
    assert_eq!(rig.forwarded(), [r#"{"type":"response.create","response":{"input":[{"role":"user"}]}}"#]);
}

#[test]
fn a_session_that_only_writes_answers_nothing() {
    let mut rig = Rig::of(&AgentConfig::default(), true, None);
    rig.up();
    let _ = rig.told();
    for text in [r#"{"type":"response.create"}"#, r#"{"type":"session.update","session":{"type":"realtime"}}"#] {
        rig.say(text);
        assert_eq!((rig.refusal().0.as_str(), rig.forwarded().len()), ("invalid_value", 0), "{text}");
    }
    rig.say(r#"{"type":"session.update","session":{"type":"transcription"}}"#);
    assert_eq!(rig.forwarded().len(), 1);
}

#[test]
fn a_service_that_never_takes_the_agents_values_is_given_up() {
    let policy = PolicyConfig { voice: Rule::Force, ..PolicyConfig::default() };
    let mut rig = Rig::new(&AgentConfig { policy, ..AgentConfig::default() });
    rig.up();
    rig.pass(11 * SECOND);
    rig.input(Input::ServicePong);
    rig.pass(15 * SECOND);
    assert_eq!(rig.refusal().0, "upstream_timeout");
    assert_eq!(openai::close(&rig.end.take().unwrap()).0, 1011);
}

#[test]
fn errors_are_the_clients_whatever_it_calls_its_events_but_our_keys_are_ours() {
    let mut rig = Rig::open();
    rig.say(r#"{"type":"response.create","event_id":"vr_5"}"#);
    let error = r#"{"type":"error","event_id":"e","error":{"type":"x","code":"invalid_value","message":"m","event_id":"vr_5"}}"#;
    rig.hear(error);
    assert_eq!(rig.told(), [error]);
    rig.say(r#"{"type":"response.create","event_id":"vr_6"}"#);
    rig.hear(
        r#"{"type":"error","event_id":"e","error":{"type":"server_error","code":null,"message":"m","event_id":null}}"#,
    );
    rig.say(r#"{"type":"response.create","event_id":"vr_7"}"#);
    assert_eq!(rig.forwarded().len(), 3, "an error that names nothing may be about it");
    let _ = rig.told();
    rig.hear(r#"{"type":"error","event_id":"e","error":{"type":"invalid_request_error","code":"invalid_api_key","message":"Incorrect API key provided: sk-1***2."}}"#);
    assert_eq!(rig.told(), [""; 0]);
    let refused = UpstreamError::closed(Some(3000), "invalid_request_error.invalid_api_key");
    rig.input(Input::ServiceGone(End::upstream(&refused), false));
    assert_eq!(rig.refusal().0, "upstream_auth");
    assert_eq!(openai::close(&rig.end.take().unwrap()).0, 3000);
}

#[test]
fn a_service_that_names_no_conversation_still_has_one_reply_at_a_time() {
    let mut rig = Rig::open();
    rig.say(r#"{"type":"response.create"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_1","conversation_id":null}}"#);
    rig.hear(r#"{"type":"response.done","event_id":"e","response":{"id":"resp_1","conversation_id":null,"status":"completed"}}"#);
    rig.say(r#"{"type":"response.create"}"#);
    assert_eq!(rig.forwarded().len(), 2);
}

#[test]
fn a_call_can_be_written_down_and_continued() {
    let mut rig = Rig::open();
    rig.say(r#"{"type":"response.create"}"#);
    rig.core = serde_json::from_str(&serde_json::to_string(&rig.core).unwrap()).unwrap();
    rig.say(r#"{"type":"response.create"}"#);
    assert_eq!(rig.refusal().0, "conversation_already_has_active_response");
}

/// A conversation with a client's settings, one exchange, and audio that is part of no turn.
fn conversation(rig: &mut Rig) {
    rig.say(r#"{"type":"session.update","session":{"type":"realtime","instructions":"be short"}}"#);
    rig.hear(
        r#"{"type":"session.updated","event_id":"e2","session":{"type":"realtime","id":"sess_1","object":"realtime.session","expires_at":9,"model":"m","tracing":null,"instructions":"be short","audio":{"input":{"format":{"type":"audio/pcm","rate":24000},"turn_detection":{"type":"server_vad","silence_duration_ms":200}}}}}"#,
    );
    rig.say(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}}"#);
    rig.hear(r#"{"type":"conversation.item.done","event_id":"e3","item":{"id":"item_hi_1","object":"realtime.item","type":"message","status":"completed","role":"user","content":[{"type":"input_text","text":"hi"}]}}"#);
    rig.say(r#"{"type":"response.create","event_id":"c1"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e4","response":{"id":"resp_1","conversation_id":"conv_1"}}"#);
    rig.hear(r#"{"type":"response.output_audio.delta","event_id":"e5","response_id":"resp_1","item_id":"item_a_1","delta":"AAAA"}"#);
    rig.hear(r#"{"type":"conversation.item.done","event_id":"e6","item":{"id":"item_a_1","object":"realtime.item","type":"message","status":"completed","role":"assistant","content":[{"type":"output_audio","transcript":"hello there"}]}}"#);
    rig.hear(r#"{"type":"response.done","event_id":"e7","response":{"id":"resp_1","status":"completed"}}"#);
    rig.say(&append(960));
    rig.told();
    rig.forwarded();
}

fn append(len: usize) -> String {
    string(&ga::append_unnamed(&vec![7; len]))
}

/// The service hangs up, and another session is there.
fn another(rig: &mut Rig) {
    rig.input(Input::ServiceGone(End::upstream(&UpstreamError::Broken("reset".into())), true));
    rig.input(Input::SessionUp(None));
    rig.hear(&CREATED.replace("sess_1", "sess_2"));
}

const TAKEN: &str = r#"{"type":"session.updated","event_id":"e9","session":{"type":"realtime","id":"sess_2","instructions":"be short","audio":{"input":{"format":{"type":"audio/pcm","rate":24000},"turn_detection":{"type":"server_vad","silence_duration_ms":200}}}}}"#;

#[test]
fn a_session_that_is_lost_is_followed_by_another_and_the_client_hears_nothing_of_it() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    another(&mut rig);
    let asked: Vec<Value> = rig.forwarded().iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    let kinds: Vec<&str> = asked.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["session.update", "conversation.item.create", "conversation.item.create", "session.update"]);
    let session = &asked[3]["session"];
    assert_eq!((&session["instructions"], &session["type"]), (&json!("be short"), &json!("realtime")));
    assert_eq!(session["audio"]["input"]["turn_detection"]["type"], "server_vad");
    assert!(["id", "model", "expires_at", "tracing"].iter().all(|key| session.get(key).is_none()), "{session}");
    assert_eq!(asked[0]["session"]["audio"]["input"]["turn_detection"], Value::Null);
    assert_eq!(asked[1]["item"]["id"], "item_hi_1");
    assert_eq!(asked[2]["item"]["content"], json!([{"type": "output_text", "text": "hello there"}]));
    rig.say(r#"{"type":"response.create","event_id":"c2"}"#);
    rig.hear(r#"{"type":"conversation.item.done","event_id":"e8","item":{"id":"item_hi_1","type":"message","role":"user","content":[]}}"#);
    rig.hear(TAKEN);
    assert!(rig.told().is_empty() && rig.forwarded().is_empty(), "not yet");
    rig.hear(TAKEN);
    assert_eq!(rig.told(), [""; 0], "nothing of it is news");
    assert_eq!(rig.forwarded(), [append(960), r#"{"type":"response.create","event_id":"c2"}"#.to_owned()]);
    let created =
        r#"{"type":"response.created","event_id":"f1","response":{"id":"resp_2","conversation_id":"conv_2"}}"#;
    rig.hear(created);
    assert_eq!(rig.told(), [created]);
}

#[test]
fn what_the_service_had_not_confirmed_is_said_again() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    let update = r#"{"type":"session.update","event_id":"c5","session":{"type":"realtime","instructions":"be long"}}"#;
    let item = r#"{"type":"conversation.item.create","event_id":"c6","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"more"}]}}"#;
    let commit = r#"{"type":"input_audio_buffer.commit"}"#;
    let create = r#"{"type":"response.create","event_id":"c7","response":{"instructions":"x"}}"#;
    for text in [update, item, commit, create] {
        rig.say(text);
    }
    rig.forwarded();
    another(&mut rig);
    rig.forwarded();
    rig.hear(TAKEN);
    rig.hear(TAKEN);
    assert_eq!(
        rig.forwarded(),
        [update.to_owned(), item.to_owned(), append(960), commit.to_owned(), create.to_owned()]
    );
    assert_eq!(rig.told(), [""; 0]);
}

#[test]
fn a_turn_that_nobody_wrote_down_is_spoken_again_and_keeps_its_name() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    rig.say(r#"{"type":"input_audio_buffer.commit"}"#);
    rig.hear(r#"{"type":"input_audio_buffer.committed","event_id":"e8","item_id":"item_u_1"}"#);
    rig.told();
    rig.forwarded();
    another(&mut rig);
    let asked = rig.forwarded();
    assert_eq!(asked[3], append(960));
    assert!(asked[4].contains("input_audio_buffer.commit") && asked.len() == 6, "{asked:?}");
    rig.hear(TAKEN);
    rig.hear(r#"{"type":"input_audio_buffer.committed","event_id":"f1","item_id":"item_u_2"}"#);
    rig.hear(TAKEN);
    assert!(rig.told().is_empty() && rig.forwarded().is_empty());
    let words = r#"{"type":"conversation.item.input_audio_transcription.completed","event_id":"f2","item_id":"item_u_2","transcript":"hello"}"#;
    rig.hear(words);
    assert_eq!(rig.told(), [words.replace("item_u_2", "item_u_1")], "the client knows it by another name");
    rig.say(r#"{"type":"conversation.item.delete","item_id":"item_u_1"}"#);
    assert_eq!(rig.forwarded(), [r#"{"type":"conversation.item.delete","item_id":"item_u_2"}"#]);
    // 20 ms of it were heard again: the session's clock is that much behind the client's, and no more.
    rig.hear(
        r#"{"type":"input_audio_buffer.speech_started","event_id":"f3","item_id":"item_u_3","audio_start_ms":40}"#,
    );
    assert!(rig.told()[0].contains(r#""audio_start_ms":40"#));
}

#[test]
fn a_reply_that_was_lost_in_the_middle_is_told_and_one_that_had_said_nothing_is_asked_for_again() {
    for begun in [true, false] {
        let mut rig = Rig::open();
        conversation(&mut rig);
        rig.say(r#"{"type":"response.create","event_id":"c3"}"#);
        rig.hear(
            r#"{"type":"response.created","event_id":"e8","response":{"id":"resp_2","conversation_id":"conv_1"}}"#,
        );
        if begun {
            rig.hear(r#"{"type":"response.output_audio.delta","event_id":"e9","response_id":"resp_2","item_id":"item_a_2","delta":"AAAA"}"#);
        }
        rig.told();
        another(&mut rig);
        let told: Vec<Value> = rig.told().iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let kinds: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, if begun { vec!["response.done", "error"] } else { vec!["response.done"] });
        let status = if begun { "failed" } else { "cancelled" };
        assert_eq!((&told[0]["response"]["id"], &told[0]["response"]["status"]), (&json!("resp_2"), &json!(status)));
        rig.forwarded();
        rig.hear(TAKEN);
        rig.hear(TAKEN);
        let again = rig.forwarded().contains(&r#"{"type":"response.create","event_id":"c3"}"#.to_owned());
        assert_eq!(again, !begun);
        rig.say(r#"{"type":"response.create","event_id":"c4"}"#);
        assert_eq!(rig.told().is_empty(), begun, "where one is under way, another is refused");
    }
}

#[test]
fn a_session_that_is_lost_while_it_is_told_what_was_loses_nothing_of_it() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    rig.say(r#"{"type":"input_audio_buffer.commit"}"#);
    rig.hear(r#"{"type":"input_audio_buffer.committed","event_id":"e8","item_id":"item_u_1"}"#);
    let create = r#"{"type":"response.create","event_id":"c3"}"#;
    rig.say(create);
    another(&mut rig);
    rig.hear(TAKEN);
    rig.hear(r#"{"type":"input_audio_buffer.committed","event_id":"f1","item_id":"item_u_2"}"#);
    another(&mut rig); // in the middle
    rig.hear(TAKEN);
    rig.hear(r#"{"type":"input_audio_buffer.committed","event_id":"f2","item_id":"item_u_3"}"#);
    rig.hear(TAKEN);
    assert_eq!(rig.forwarded().last().map(String::as_str), Some(create), "asked for again, all the same");
    rig.told();
    let words = r#"{"type":"conversation.item.input_audio_transcription.completed","event_id":"f3","item_id":"item_u_3","transcript":"hello"}"#;
    rig.hear(words);
    assert_eq!(rig.told(), [words.replace("item_u_3", "item_u_1")], "by the name that the client knows");
    rig.say(r#"{"type":"conversation.item.delete","item_id":"item_u_1"}"#);
    assert_eq!(rig.forwarded(), [r#"{"type":"conversation.item.delete","item_id":"item_u_3"}"#]);
}

#[test]
fn a_session_that_never_takes_what_it_is_told_is_given_up() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    another(&mut rig);
    rig.pass(11 * SECOND);
    rig.input(Input::ServicePong);
    rig.pass(11 * SECOND);
    assert_eq!(openai::close(rig.end.as_ref().unwrap()).0, 1011, "it lives, and does nothing");
}

#[test]
fn audio_that_was_too_long_is_no_gap_once_it_is_a_turn() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    rig.hear(r#"{"type":"input_audio_buffer.speech_started","event_id":"f1","item_id":"item_u_1","audio_start_ms":0}"#);
    for _ in 0..70 {
        rig.say(&append(48_000));
    }
    rig.hear(
        r#"{"type":"input_audio_buffer.speech_stopped","event_id":"f2","item_id":"item_u_1","audio_end_ms":70000}"#,
    );
    rig.hear(r#"{"type":"input_audio_buffer.committed","event_id":"f3","item_id":"item_u_1"}"#);
    rig.told();
    another(&mut rig);
    rig.hear(TAKEN);
    rig.hear(TAKEN);
    assert!(rig.told().iter().all(|text| !text.contains("audio_gap")));
}

#[test]
fn a_call_that_can_be_come_back_to_goes_over_between_turns() {
    let mut rig = Rig::kept();
    rig.up();
    rig.say(r#"{"type":"response.create"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_1"}}"#);
    rig.input(Input::Heir(true));
    rig.input(Input::Drain(30 * SECOND));
    rig.pass(5 * SECOND);
    assert!(!rig.goes_over, "a reply runs");
    rig.hear(r#"{"type":"response.done","event_id":"e","response":{"id":"resp_1","status":"completed"}}"#);
    assert!(rig.goes_over && rig.end.is_none());
    // The process that follows: another session, which is told what the first one was like.
    let written = serde_json::to_string(&rig.core).unwrap();
    assert!(!written.contains("token\""), "a token is not to be written down");
    rig.core = serde_json::from_str(&written).unwrap();
    let _ = (rig.told(), rig.forwarded());
    rig.core.continues(rig.now);
    rig.input(Input::SessionUp(None));
    let said = rig.forwarded();
    assert!(said.iter().all(|text| text.starts_with(r#"{"type":"session.update""#)) && said.len() == 2, "{said:?}");
    taken(&mut rig);
    rig.input(Input::ClientBack { late: At::ZERO, credential: None });
    rig.say(r#"{"type":"response.create","event_id":"again"}"#);
    assert_eq!((rig.forwarded().len(), rig.told().len()), (1, 0), "the client hears nothing of it");
}

#[test]
fn a_call_whose_client_does_not_know_the_way_ends_with_its_process() {
    for (mut rig, up) in [(Rig::new(&AgentConfig::default()), true), (Rig::kept(), false)] {
        if up {
            rig.up();
        }
        rig.input(Input::Heir(true));
        rig.input(Input::Drain(5 * SECOND));
        rig.pass(6 * SECOND);
        assert_eq!((rig.goes_over, rig.end.take()), (false, Some(End::Drained)), "{up}");
    }
}

#[test]
fn a_reply_that_is_stopped_for_a_client_that_is_away_goes_by_to_its_end() {
    let mut rig = Rig::kept();
    rig.up();
    rig.say(r#"{"type":"response.create"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_1"}}"#);
    let _ = (rig.told(), rig.forwarded());
    rig.input(Input::ClientGone(End::ClientLost));
    rig.input(Input::TooMuchKept(false));
    rig.input(Input::TooMuchKept(false));
    assert_eq!(rig.forwarded(), [r#"{"type":"response.cancel"}"#], "once");
    let late = [
        r#"{"type":"response.output_audio.delta","event_id":"e","response_id":"resp_1","item_id":"i","delta":"AAAA"}"#,
        r#"{"type":"response.done","event_id":"e","response":{"id":"resp_1","status":"cancelled"}}"#,
    ];
    late.iter().for_each(|text| rig.hear(text));
    assert_eq!(rig.told(), late, "what the model has said, the client gets");
}

/// What the session that follows is told of the conversation, item by item.
fn retold(rig: &mut Rig) -> Vec<Value> {
    rig.forwarded();
    another(rig);
    let said = rig.forwarded().into_iter().map(|text| serde_json::from_str::<Value>(&text).unwrap());
    said.filter(|event| event["type"] == "conversation.item.create").map(|event| event["item"].clone()).collect()
}

#[test]
fn what_came_of_an_answer_that_broke_off_is_told() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    rig.say(r#"{"type":"response.create"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e8","response":{"id":"resp_2","conversation_id":"conv_1"}}"#);
    for (response, item, words) in [
        ("resp_2", "item_a_2", "One \"or\" "),
        ("resp_9", "item_aside", "Not of this conversation."),
        ("resp_2", "item_a_2", "two."),
        ("resp_2", "item_a_3", "Thr"),
    ] {
        let delta = json!({"type": "response.output_audio_transcript.delta", "event_id": "e", "response_id": response,
            "item_id": item, "delta": words});
        rig.hear(&delta.to_string());
        if words == "two." {
            rig.hear(r#"{"type":"conversation.item.done","event_id":"e","item":{"id":"item_a_2","type":"message","role":"assistant","content":[{"type":"output_audio","transcript":"One \"or\" two."}]}}"#);
        }
    }
    let told = retold(&mut rig);
    let last: Vec<_> = told.iter().rev().take(2).rev().map(|item| (&item["id"], &item["content"][0]["text"])).collect();
    assert_eq!(
        last,
        [
            (&json!("item_a_2"), &json!("One \"or\" two.")),
            (&json!("item_a_3"), &json!("Thr ... [interrupted about here]")),
        ]
    );
    assert!(
        told.iter().all(|item| item["content"][0]["type"] != "output_audio" && item["id"] != "item_aside"),
        "{told:?}"
    );
}

#[test]
fn a_clip_is_told_as_it_was_until_it_is_written_down() {
    for written in [false, true] {
        let mut rig = Rig::open();
        conversation(&mut rig);
        let content = json!([{"type": "input_audio", "audio": "AAAA"}, {"type": "input_text", "text": "this"}]);
        let create = json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}});
        rig.say(&create.to_string());
        rig.hear(r#"{"type":"conversation.item.done","event_id":"e","item":{"id":"item_c","type":"message","role":"user","content":[{"type":"input_audio","transcript":null},{"type":"input_text","text":"this"}]}}"#);
        if written {
            rig.hear(r#"{"type":"conversation.item.input_audio_transcription.completed","event_id":"e","item_id":"item_c","content_index":0,"transcript":"take"}"#);
        }
        let told = retold(&mut rig);
        let words = json!([{"type": "input_text", "text": "take"}, {"type": "input_text", "text": "this"}]);
        assert_eq!(
            (&told.last().unwrap()["id"], &told.last().unwrap()["content"]),
            (&json!("item_c"), if written { &words } else { &content })
        );
    }
}

/// The session that follows takes both of its settings.
fn taken(rig: &mut Rig) {
    for _ in 0..2 {
        rig.hear(r#"{"type":"session.updated","event_id":"e","session":{"type":"realtime"}}"#);
    }
}

/// Writes the call down as it is written for another process, and goes on with it there.
fn over_there(rig: &mut Rig) {
    let mut bytes = Vec::new();
    ciborium::into_writer(&rig.core, &mut bytes).unwrap();
    rig.core = ciborium::from_reader(bytes.as_slice()).unwrap();
    rig.core.continues(rig.now);
}

#[test]
fn what_was_asked_for_and_had_not_begun_is_asked_for_again_in_the_next_process() {
    let mut rig = Rig::kept();
    rig.up();
    rig.say(r#"{"type":"response.create"}"#);
    rig.input(Input::ClientGone(End::ClientLost));
    rig.input(Input::Heir(true));
    rig.input(Input::Drain(30 * SECOND));
    rig.pass(SECOND);
    assert!(rig.goes_over);
    over_there(&mut rig);
    let _ = rig.forwarded();
    rig.input(Input::SessionUp(None));
    taken(&mut rig);
    assert_eq!(rig.forwarded().last().unwrap(), r#"{"type":"response.create"}"#);
}

#[test]
fn who_learns_the_way_only_while_the_process_goes_may_still_go_over() {
    let mut rig = Rig::kept();
    rig.input(Input::Heir(true));
    rig.input(Input::Drain(30 * SECOND));
    rig.up();
    rig.pass(SECOND);
    assert!(rig.goes_over && rig.end.is_none());
}

#[test]
fn who_comes_back_to_a_call_whose_session_could_not_be_had_gets_another_one() {
    for elsewhere in [false, true] {
        let mut rig = Rig::kept();
        rig.up();
        rig.input(Input::ServiceGone(End::upstream(&UpstreamError::Broken("reset".into())), true));
        rig.input(Input::ServiceGone(End::upstream(&UpstreamError::Broken("refused".into())), true));
        assert_eq!((rig.dials, rig.end.take()), (1, None), "it was tried, given up, and the call is kept");
        if elsewhere {
            over_there(&mut rig);
        }
        rig.input(Input::ClientBack { late: At::ZERO, credential: None });
        assert_eq!(rig.dials, 2);
        rig.say(r#"{"type":"response.create"}"#);
        rig.input(Input::SessionUp(None));
        taken(&mut rig);
        assert_eq!(rig.forwarded().last().unwrap(), r#"{"type":"response.create"}"#);
    }
}

#[test]
fn items_of_a_client_are_confirmed_by_what_they_are() {
    let mut rig = Rig::open();
    let item = |role: &str, text: &str, id: Option<&str>| {
        let kind = if role == "assistant" { "output_text" } else { "input_text" };
        let mut item = json!({"type": "message", "role": role, "content": [{"type": kind, "text": text}]});
        if let Some(id) = id {
            item["id"] = json!(id);
        }
        item
    };
    let made =
        [("user", "one", None), ("assistant", "two", None), ("user", "three", Some("mine")), ("user", "four", None)];
    for (role, text, id) in made {
        rig.say(&json!({"type": "conversation.item.create", "item": item(role, text, id)}).to_string());
    }
    // The third is refused, without a word about which.
    for (role, text, id) in [("user", "one", "i1"), ("assistant", "two", "i2"), ("user", "four", "i4")] {
        rig.hear(
            &json!({"type": "conversation.item.done", "event_id": "e", "item": item(role, text, Some(id))}).to_string(),
        );
    }
    let told: Vec<Value> = retold(&mut rig).iter().map(|item| item["content"][0]["text"].clone()).collect();
    assert_eq!(told, ["one", "two", "four"]);
    taken(&mut rig);
    assert!(rig.forwarded().is_empty(), "nothing is left that was not confirmed");
}

#[test]
fn an_answer_that_was_cut_and_then_broke_off_is_told_as_far_as_it_was_heard() {
    let mut rig = Rig::open();
    conversation(&mut rig);
    rig.say(r#"{"type":"response.create"}"#);
    rig.hear(r#"{"type":"response.created","event_id":"e8","response":{"id":"resp_2","conversation_id":"conv_1"}}"#);
    rig.hear(r#"{"type":"response.output_audio_transcript.delta","event_id":"e","response_id":"resp_2","item_id":"item_a_2","delta":"One two three four five six seven eight nine ten."}"#);
    rig.hear(r#"{"type":"conversation.item.truncated","event_id":"e","item_id":"item_a_2","content_index":0,"audio_end_ms":1000}"#);
    let told = retold(&mut rig);
    assert_eq!(told.last().unwrap()["content"][0]["text"], "One two three ... [interrupted about here]");
}

fn number(rig: &Rig) -> u64 {
    let asked = |act: &TurnAct| if let TurnAct::Ask { number, .. } = act { Some(*number) } else { None };
    rig.turns.iter().rev().find_map(asked).unwrap()
}

#[test]
fn what_a_client_wants_answered_is_asked_for_when_the_account_grants_it() {
    let create = r#"{"type":"response.create","event_id":"mine"}"#;
    let aside = r#"{"type":"response.create","response":{"conversation":"none"}}"#;
    let mut rig = Rig::open();
    rig.grants = false;
    rig.say(create);
    // What comes behind it does not overtake it, as long as the account has not answered.
    rig.say(aside);
    rig.say(r#"{"type":"input_audio_buffer.clear"}"#);
    assert_eq!(std::mem::take(&mut rig.to_service), Vec::<String>::new());
    rig.input(Input::Turn { number: number(&rig), word: Word::Waits(reason()) });
    assert_eq!(std::mem::take(&mut rig.to_service), [r#"{"type":"input_audio_buffer.clear"}"#]);
    rig.say(create);
    assert!(rig.told().iter().any(|text| text.contains("conversation_already_has_active_response")), "one at a time");
    rig.input(Input::Turn { number: number(&rig), word: Word::Granted });
    assert_eq!(std::mem::take(&mut rig.to_service), [create]);
    rig.input(Input::Turn { number: number(&rig), word: Word::Granted });
    assert_eq!(std::mem::take(&mut rig.to_service), [aside]);
    // One that is refused is told by the client's own name for it, and the next one may be asked for.
    rig.hear(r#"{"type":"response.created","event_id":"e","response":{"id":"resp_1","conversation_id":"conv_1"}}"#);
    rig.hear(r#"{"type":"response.done","event_id":"e","response":{"id":"resp_1","status":"completed"}}"#);
    rig.told();
    rig.say(create);
    rig.input(Input::Turn { number: number(&rig), word: Word::Refused(reason()) });
    let told = rig.told();
    assert!(told.iter().any(|text| text.contains("rate_limit_exceeded") && text.contains("mine")), "{told:?}");
    rig.say(create);
    rig.input(Input::Turn { number: number(&rig), word: Word::Waits(reason()) });
    // And what is taken back is not asked for.
    rig.say(r#"{"type":"response.cancel"}"#);
    assert!(matches!(rig.turns.last(), Some(TurnAct::Forget)), "{:?}", rig.turns);
    rig.input(Input::Turn { number: number(&rig), word: Word::Granted });
    assert_eq!(std::mem::take(&mut rig.to_service), [r#"{"type":"response.cancel"}"#]);
    rig.say(create);
    rig.input(Input::Turn { number: number(&rig), word: Word::Granted });
    assert_eq!(std::mem::take(&mut rig.to_service), [create]);
}

fn reason() -> crate::admit::governor::Reason {
    use crate::admit::governor::{Ask, Asked, Class, Limits, Pool};
    let mut pool = Pool::new(Limits { tokens: Some(600), ..Limits::default() }, At::ZERO);
    let ask = Ask { tenant: "t", weight: 1, class: Class::Interactive, tokens: 10_000, until: SECOND };
    match pool.ask(At::ZERO, ask) {
        Asked::Refused(reason) => reason,
        other => panic!("{other:?}"),
    }
}
