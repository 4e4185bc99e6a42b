use super::{
    super::{
        Input, Output, Plan, TurnAct,
        tests::{MS, Rig, SECOND, plan, turn},
    },
    *,
};
use crate::{
    call::{end::End, turnstile::Word},
    client::wire::ClientMsg,
    config::Govern,
    upstream::{Ended, Event},
};

fn own(filler: bool, idempotent: bool) -> OwnTool {
    let filler = filler.then(|| "One moment.".to_owned());
    OwnTool { timeout: 10 * SECOND, idempotent, filler, filler_after: 500 * MS, yields: false }
}

fn planned(filler: bool, idempotent: bool) -> Plan {
    Plan { own_tools: [("look_up".to_owned(), own(filler, idempotent))].into(), ..plan() }
}

fn rig(filler: bool) -> Rig {
    Rig::new(planned(filler, false))
}

fn calls(rig: &mut Rig, response: &str, call_id: &str, name: &str) {
    rig.event(Event::ToolCall {
        response: response.into(),
        call_id: call_id.into(),
        name: name.into(),
        arguments: r#"{"n":1}"#.into(),
    });
}

/// The model calls one tool and says nothing.
fn called(rig: &mut Rig) {
    turn(rig);
    rig.created("resp_1");
    calls(rig, "resp_1", "c1", "look_up");
    rig.done("resp_1", Ended::Completed);
}

fn ran(rig: &mut Rig, call_id: &str) {
    rig.input(Input::ToolDone { call_id: call_id.into(), output: "42".into() });
}

fn asked(rig: &mut Rig) -> Vec<String> {
    let words = rig.said();
    words
        .into_iter()
        .filter(|w| ["ToolOutput", "CreateReply", "filler", "Cancel"].iter().any(|k| w.starts_with(k)))
        .collect()
}

fn outputs(rig: &Rig) -> Vec<String> {
    let outputs = rig.log.iter().filter_map(|(_, output)| match output {
        Output::Service { command: Command::ToolOutput { output, .. }, .. } => Some(output.clone()),
        _ => None,
    });
    outputs.collect()
}

#[test]
fn tools_of_both_kinds_in_one_turn_are_followed_by_one_answer() {
    let mut rig = rig(false);
    turn(&mut rig);
    rig.created("resp_1");
    calls(&mut rig, "resp_1", "c1", "look_up");
    calls(&mut rig, "resp_1", "c1", "look_up");
    calls(&mut rig, "resp_1", "c2", "other");
    calls(&mut rig, "resp_1", "c3", "look_up");
    let said = rig.said();
    let of_tools =
        ["reply_started r1", "notice tool_running", "run c1", "tool_call c2", "notice tool_running", "run c3"];
    assert_eq!(said, of_tools, "one that the relay runs is no client's");
    let notice = rig.log.iter().find_map(|(_, output)| match output {
        Output::Send(ServerMsg::Notice { code, more, .. }) if code == "tool_running" => Some(json!(more)),
        _ => None,
    });
    assert_eq!(notice, Some(json!({"tool": "look_up", "call_id": "c1"})));
    let run = Output::RunTool { call_id: "c1".into(), name: "look_up".into(), arguments: r#"{"n":1}"#.into() };
    assert!(rig.log.iter().any(|(_, output)| *output == run));
    ran(&mut rig, "c1");
    rig.done("resp_1", Ended::Completed);
    rig.message(ClientMsg::ToolResult { call_id: "c3".into(), output: "mine".into() });
    assert_eq!(asked(&mut rig), ["ToolOutput c1"], "a client answers nothing that the relay runs");
    rig.message(ClientMsg::ToolResult { call_id: "c2".into(), output: "1".into() });
    assert_eq!(asked(&mut rig), ["ToolOutput c2"]);
    ran(&mut rig, "c3");
    ran(&mut rig, "c3");
    ran(&mut rig, "unknown");
    assert_eq!(asked(&mut rig), ["ToolOutput c3", "CreateReply"]);
    rig.pass(60 * SECOND);
    assert_eq!(asked(&mut rig).iter().filter(|word| word.starts_with("ToolOutput")).count(), 0);
}

#[test]
fn the_runner_has_the_last_word_but_not_for_ever() {
    let mut rig = rig(false);
    called(&mut rig);
    rig.input(Input::ClientGone(End::ClientLost)); // whether anybody is there is nothing to it
    rig.pass(10_900 * MS);
    assert_eq!(outputs(&rig), [""; 0]);
    rig.pass(100 * MS);
    assert_eq!(outputs(&rig), [r#"{"error":"look_up gave no answer in time"}"#]);
    ran(&mut rig, "c1");
    assert_eq!(outputs(&rig).len(), 1, "too late");
    assert_eq!(asked(&mut rig).last().map(String::as_str), Some("CreateReply"));
}

#[test]
fn a_filler_is_said_when_it_takes_long_and_the_answer_waits_for_no_more_than_that() {
    let mut rig = rig(true);
    called(&mut rig);
    rig.pass(499 * MS);
    assert_eq!(asked(&mut rig), [""; 0]);
    rig.pass(MS);
    assert_eq!(asked(&mut rig), ["filler"]);
    let told = rig.log.iter().rev().find_map(|(_, output)| match output {
        Output::Service { command: Command::CreateReply { instructions, no_tools }, .. } => {
            Some((instructions.clone(), *no_tools))
        }
        _ => None,
    });
    assert_eq!(told, Some((Some("Say exactly this, and nothing else: One moment.".into()), true)));
    rig.created("resp_2");
    rig.reply_audio("resp_2", "filler", SECOND);
    ran(&mut rig, "c1");
    assert_eq!(asked(&mut rig), ["ToolOutput c1"], "it is heard to its end");
    rig.done("resp_2", Ended::Completed);
    assert_eq!(asked(&mut rig), ["CreateReply"], "not when it was heard, but when it was said");
    // Another tool in the same turn goes without.
    rig.created("resp_3");
    calls(&mut rig, "resp_3", "c2", "look_up");
    rig.done("resp_3", Ended::Completed);
    rig.pass(5 * SECOND);
    assert_eq!(asked(&mut rig), [""; 0]);
    ran(&mut rig, "c2");
    rig.created("resp_4");
    rig.done("resp_4", Ended::Completed);
    // And the next turn has its own.
    turn(&mut rig);
    rig.created("resp_5");
    calls(&mut rig, "resp_5", "c3", "look_up");
    rig.done("resp_5", Ended::Completed);
    rig.pass(SECOND);
    assert_eq!(asked(&mut rig), ["filler"]);
}

#[test]
fn no_filler_begins_once_the_result_is_there() {
    let mut early = rig(true);
    called(&mut early);
    early.pass(400 * MS);
    ran(&mut early, "c1");
    early.pass(5 * SECOND);
    assert_eq!(asked(&mut early), ["ToolOutput c1", "CreateReply"]);
    // Asked for, and not begun: it is called off, and never sounds.
    let mut rig = rig(true);
    called(&mut rig);
    rig.pass(SECOND);
    ran(&mut rig, "c1");
    assert_eq!(asked(&mut rig), ["filler", "Cancel any", "ToolOutput c1"]);
    rig.created("resp_2");
    rig.reply_audio("resp_2", "filler", SECOND);
    rig.done("resp_2", Ended::Cancelled);
    let said = rig.said();
    assert!(!said.iter().any(|word| word.contains("frames")) && said.contains(&"CreateReply".to_owned()), "{said:?}");
}

#[test]
fn a_caller_who_speaks_hears_no_filler_and_cuts_one_off() {
    let mut quiet = rig(true);
    called(&mut quiet);
    quiet.pass(300 * MS);
    quiet.event(Event::SpeechStarted { at_ms: 2_300 });
    quiet.pass(5 * SECOND);
    assert_eq!(asked(&mut quiet), [""; 0]);
    let mut rig = rig(true);
    called(&mut rig);
    rig.pass(SECOND);
    rig.created("resp_2");
    rig.reply_audio("resp_2", "filler", SECOND);
    rig.pass(200 * MS);
    rig.said();
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    let said = rig.said();
    assert!(said.contains(&"Cancel resp_2".to_owned()), "{said:?}");
    assert!(said.iter().any(|word| word.starts_with("clear")), "{said:?}");
    rig.done("resp_2", Ended::Cancelled);
    ran(&mut rig, "c1");
    assert_eq!(asked(&mut rig), ["ToolOutput c1", "CreateReply"]);
}

#[test]
fn a_model_that_speaks_itself_needs_no_filler_and_nor_does_a_short_account() {
    let mut speaks = rig(true);
    turn(&mut speaks);
    speaks.created("resp_1");
    speaks.reply_audio("resp_1", "a", 400 * MS);
    calls(&mut speaks, "resp_1", "c1", "look_up");
    speaks.done("resp_1", Ended::Completed);
    speaks.pass(5 * SECOND);
    assert_eq!(asked(&mut speaks), [""; 0]);
    let mut short = rig(true);
    short.input(Input::Scarce(true));
    called(&mut short);
    short.pass(5 * SECOND);
    assert_eq!(asked(&mut short), [""; 0]);
}

fn asks(rig: &Rig) -> Vec<u64> {
    let asks = rig.log.iter().filter_map(|(_, output)| match output {
        Output::Turn(TurnAct::Ask { number, .. }) => Some(*number),
        _ => None,
    });
    asks.collect()
}

#[test]
fn a_filler_is_admitted_like_any_reply_and_waits_for_nothing() {
    let governed = || Rig::new(Plan { govern: Govern::NearLimit, ..planned(true, false) });
    let mut rig = governed();
    called(&mut rig);
    rig.pass(SECOND);
    assert_eq!((asks(&rig).len(), asked(&mut rig).len()), (1, 0));
    let number = asks(&rig)[0];
    rig.input(Input::Turn { number, word: Word::Granted });
    assert_eq!(asked(&mut rig), ["filler"]);
    // What was granted for a filler is used for the answer, if that comes first.
    let mut overtaken = governed();
    called(&mut overtaken);
    overtaken.pass(SECOND);
    ran(&mut overtaken, "c1");
    let number = asks(&overtaken)[0];
    overtaken.input(Input::Turn { number, word: Word::Granted });
    assert_eq!(
        (asked(&mut overtaken).as_slice(), asks(&overtaken).len()),
        (&["ToolOutput c1".to_owned(), "CreateReply".to_owned()][..], 1)
    );
    // Refused, it is left out, and nobody hears of it.
    let mut refused = governed();
    called(&mut refused);
    refused.pass(SECOND);
    let number = asks(&refused)[0];
    refused.input(Input::Turn { number, word: Word::NotAgain });
    refused.pass(5 * SECOND);
    let said = refused.said();
    assert!(!said.iter().any(|word| word.starts_with("error")) && !said.contains(&"filler".to_owned()), "{said:?}");
    assert_eq!(asks(&refused).len(), 1);
}

#[test]
fn a_filler_that_fails_is_no_error_and_not_said_again() {
    let mut rig = rig(true);
    called(&mut rig);
    rig.pass(SECOND);
    rig.created("resp_2");
    rig.done("resp_2", Ended::Failed);
    rig.pass(5 * SECOND);
    let said = rig.said();
    assert!(!said.iter().any(|word| word.starts_with("error")), "{said:?}");
    assert_eq!(said.iter().filter(|word| *word == "filler").count(), 1);
    ran(&mut rig, "c1");
    assert_eq!(asked(&mut rig), ["ToolOutput c1", "CreateReply"]);
}

#[test]
fn a_session_that_is_lost_meanwhile_takes_neither_the_tool_nor_its_result() {
    // Behind the call, in the middle of the reply that called, and in the middle of the filler.
    for stage in 0..3 {
        let mut rig = rig(true);
        turn(&mut rig);
        rig.created("resp_1");
        calls(&mut rig, "resp_1", "c1", "look_up");
        if stage > 0 {
            rig.done("resp_1", Ended::Completed);
        }
        if stage > 1 {
            rig.pass(SECOND);
            rig.created("resp_2");
        }
        rig.input(Input::ServiceGone(End::Internal, true));
        rig.said();
        if stage == 1 {
            ran(&mut rig, "c1");
        }
        rig.input(Input::SessionUp(None));
        let said = rig.said();
        assert!(said.contains(&"call c1".to_owned()), "{stage}: {said:?}");
        if stage == 1 {
            assert!(said.contains(&"result c1".to_owned()), "{said:?}");
            assert_eq!(said.iter().filter(|word| *word == "CreateReply").count(), 1, "{said:?}");
            continue;
        }
        assert!(!said.contains(&"CreateReply".to_owned()), "{stage}: {said:?}");
        ran(&mut rig, "c1");
        assert_eq!(asked(&mut rig), ["ToolOutput c1", "CreateReply"], "{stage}");
    }
}

/// The other process reads the call and goes on with it.
fn over_there(rig: &mut Rig, own: BTreeMap<String, OwnTool>) -> Vec<String> {
    let written = serde_json::to_string(&rig.core).unwrap();
    rig.core = serde_json::from_str(&written).unwrap();
    rig.core.has_own_tools(own);
    rig.said();
    rig.core.continues(rig.now);
    rig.pass(100 * MS);
    rig.input(Input::SessionUp(None));
    rig.said()
}

#[test]
fn another_process_runs_again_only_what_may_be_run_twice() {
    for (idempotent, there) in [(true, true), (true, false), (false, true)] {
        let plan = planned(false, idempotent);
        let own = if there { plan.own_tools.clone() } else { BTreeMap::new() };
        let mut rig = Rig::new(plan);
        called(&mut rig);
        rig.input(Input::Heir(true));
        rig.input(Input::Drain(20 * SECOND));
        rig.pass(5 * SECOND);
        let went = |rig: &Rig| rig.log.iter().any(|(_, output)| *output == Output::HandOver);
        assert!(!went(&rig), "what runs here is waited for");
        rig.input(Input::ClientGone(End::Drained));
        assert!(went(&rig), "but not by a client who is at the other one's door already");
        let said = over_there(&mut rig, own);
        if idempotent && there {
            assert!(said.contains(&"run c1".to_owned()), "{said:?}");
            ran(&mut rig, "c1");
            assert_eq!(asked(&mut rig), ["ToolOutput c1", "CreateReply"]);
        } else {
            assert!(said.contains(&"result c1".to_owned()) && !said.contains(&"run c1".to_owned()), "{said:?}");
            assert!(said.contains(&"CreateReply".to_owned()), "{said:?}");
        }
    }
}

/// The tool gives way to the caller, as `ask_expert` does.
fn yielding() -> Rig {
    let own = OwnTool { yields: true, ..own(true, true) };
    Rig::new(Plan { own_tools: [("look_up".to_owned(), own)].into(), ..plan() })
}

const GAVE_WAY: &str = r#"{"error":"the caller went on before there was an answer: it was not waited for"}"#;

#[test]
fn what_gives_way_is_dropped_when_the_caller_goes_on_and_their_turn_is_what_is_answered() {
    type GoesOn = fn(&mut Rig);
    let ways: [(&str, GoesOn, &[&str]); 4] = [
        ("speaks", |rig| rig.event(Event::SpeechStarted { at_ms: 2_300 }), &["ToolOutput c1"]),
        (
            "types",
            |rig| rig.message(ClientMsg::Text { text: "never mind".into() }),
            &["ToolOutput c1", "UserText never mind", "CreateReply"],
        ),
        ("interrupts", |rig| rig.message(ClientMsg::Interrupt { reply: None, played_ms: None }), &["ToolOutput c1"]),
        ("presses", |rig| rig.input(Input::Key('1')), &["ToolOutput c1"]),
    ];
    for (name, goes_on, want) in ways {
        let mut rig = yielding();
        called(&mut rig);
        rig.pass(300 * MS);
        rig.said();
        goes_on(&mut rig);
        let said = rig.said();
        let at = |word: &str| said.iter().position(|said| said == word);
        assert!(at("drop c1").is_some() && at("drop c1") < at("ToolOutput c1"), "{name}: {said:?}");
        let kept = |word: &&String| ["ToolOutput", "UserText", "CreateReply"].iter().any(|k| word.starts_with(k));
        assert_eq!(said.iter().filter(kept).collect::<Vec<_>>(), want, "{name}");
        assert_eq!(outputs(&rig), [GAVE_WAY], "{name}");
        ran(&mut rig, "c1");
        rig.pass(400 * MS);
        assert_eq!(asked(&mut rig), [""; 0], "{name}: no filler, and no second result");
    }
    // What does not give way runs on.
    let mut rig = rig(false);
    called(&mut rig);
    rig.event(Event::SpeechStarted { at_ms: 2_300 });
    assert!(outputs(&rig).is_empty());
}

#[test]
fn a_filler_that_is_spoken_into_takes_what_it_was_said_for_with_it() {
    let mut rig = yielding();
    called(&mut rig);
    rig.pass(SECOND);
    rig.created("resp_2");
    rig.reply_audio("resp_2", "filler", SECOND);
    rig.pass(200 * MS);
    assert!(outputs(&rig).is_empty());
    rig.event(Event::SpeechStarted { at_ms: 3_000 });
    assert_eq!(outputs(&rig), [GAVE_WAY]);
}

#[test]
fn what_gives_way_is_not_begun_when_the_caller_has_gone_on_already() {
    let mut rig = yielding();
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.pass(400 * MS);
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    rig.said();
    calls(&mut rig, "resp_1", "c1", "look_up");
    let said = rig.said();
    assert!(!said.iter().any(|word| word.starts_with("run")), "{said:?}");
    assert_eq!(outputs(&rig), [GAVE_WAY]);
}
