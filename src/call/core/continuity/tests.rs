//! Sessions that are lost, left and followed, and clients that are away, in virtual time.
use std::time::Duration;

use super::super::{
    Input, Life, Output, Plan,
    tests::{MS, Rig, SECOND, life, plan, turn},
};
use crate::{
    call::end::End,
    client::wire::{ClientMsg, ServerMsg},
    upstream::{Command, Ended, Event, UpstreamError},
};

fn manual() -> Plan {
    Plan { auto_turns: false, ..plan() }
}

/// The service hangs up, and another session comes up after 100 ms.
fn drop_session(rig: &mut Rig) {
    lose(rig);
    rig.pass(100 * MS);
    rig.input(Input::SessionUp(None));
}

fn lose(rig: &mut Rig) {
    let error = UpstreamError::Broken("reset".into());
    rig.input(Input::ServiceGone(End::upstream(&error), error.another_may_do()));
}

/// Audio that the sessions were given since the log was this long, bytes.
fn appended(rig: &Rig, since: usize) -> usize {
    let appended = rig.log[since..].iter().filter_map(|(_, output)| match output {
        Output::Service { command: Command::Append(audio), .. } => Some(audio.len()),
        _ => None,
    });
    appended.sum()
}

fn words(rig: &mut Rig, item: &str, text: &str) {
    rig.event(Event::UserText { item: item.into(), text: text.into(), last: true, spent: None });
}

fn says(rig: &mut Rig, response: &str, item: &str, text: &str) {
    rig.event(Event::ReplyText { response: response.into(), item: item.into(), text: text.into(), last: true });
}

/// A whole exchange: question and answer, heard to its end.
fn exchange(rig: &mut Rig) {
    turn(rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    says(rig, "resp_1", "a", "fine, thanks");
    words(rig, "u", "how are you?");
    rig.done("resp_1", Ended::Completed);
    rig.pass(3 * SECOND);
    rig.said();
}

#[test]
fn a_session_that_is_lost_while_nothing_happens_is_followed_by_one_that_knows_everything() {
    let mut rig = Rig::new(plan());
    exchange(&mut rig);
    rig.message(ClientMsg::Text { text: "and now?".into() });
    rig.created("resp_2");
    rig.event(Event::ToolCall {
        response: "resp_2".into(),
        call_id: "c1".into(),
        name: "look".into(),
        arguments: "{}".into(),
    });
    rig.done("resp_2", Ended::Completed);
    rig.said();
    drop_session(&mut rig);
    assert_eq!(
        rig.said(),
        [
            "notice upstream_reconnecting",
            "dial",
            "user: how are you?",
            "assistant: fine, thanks",
            "user: and now?",
            "call c1",
            "notice upstream_resumed"
        ]
    );
    rig.message(ClientMsg::ToolResult { call_id: "c1".into(), output: "42".into() });
    assert_eq!(rig.said(), ["ToolOutput c1", "CreateReply"], "a tool in flight is answered in the new session");
}

#[test]
fn what_is_said_while_there_is_no_session_is_told_to_the_next() {
    let mut rig = Rig::new(manual());
    lose(&mut rig);
    rig.speak(300 * MS);
    rig.message(ClientMsg::Commit);
    rig.message(ClientMsg::Text { text: "hello?".into() });
    assert_eq!(rig.said(), ["notice upstream_reconnecting", "dial"]);
    let since = rig.log.len();
    rig.input(Input::SessionUp(None));
    assert_eq!(rig.said(), ["Commit", "user: hello?", "notice upstream_resumed", "CreateReply"]);
    assert_eq!(appended(&rig, since), 300 * 48);
}

#[test]
fn an_utterance_is_heard_again_from_its_beginning_and_once() {
    let mut rig = Rig::new(plan());
    rig.speak(5 * SECOND);
    rig.event(Event::SpeechStarted { at_ms: 4_000 });
    rig.speak(SECOND);
    rig.said();
    lose(&mut rig);
    rig.speak(SECOND);
    let since = rig.log.len();
    rig.input(Input::SessionUp(None));
    assert_eq!(rig.said(), ["notice upstream_reconnecting", "dial", "notice upstream_resumed"]);
    let heard = appended(&rig, since);
    assert!((2_900 * 48..=3_100 * 48).contains(&heard), "from 4,000 ms on, all that is not being gathered: {heard}");
    // The new session hears it begin after 0 ms of its own, and end.
    rig.event(Event::SpeechStarted { at_ms: 0 });
    assert_eq!(rig.said(), [""; 0], "the client knows");
    rig.speak(SECOND);
    rig.event(Event::SpeechStopped { at_ms: 3_500 });
    assert_eq!(rig.said(), ["speech_stopped 7500"]);
    rig.event(Event::Committed { item: "u2".into() });
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    assert_eq!(rig.said(), ["reply_started r1", "10 frames"]);
}

#[test]
fn what_a_deaf_service_was_told_is_a_gap_where_it_is_not_kept() {
    let mut rig = Rig::new(plan());
    rig.speak(5 * SECOND);
    rig.event(Event::RateLimits(Vec::new()));
    for _ in 0..2_100 {
        rig.input(Input::Audio { length: 20 * MS, upstream: &[1; 960] });
        rig.now += 20 * MS; // and no answer to a ping
    }
    let since = rig.log.len();
    rig.input(Input::SessionUp(None));
    let gap = rig.log[since..].iter().find_map(|(_, output)| match output {
        Output::Send(ServerMsg::Notice { code, more, .. }) if code == "audio_gap" => Some(more.clone()),
        _ => None,
    });
    let gap = gap.expect("a notice");
    assert_eq!(gap["from_ms"].as_u64().map(|ms| ms / 100), Some(49));
    assert!(gap["to_ms"].as_u64().is_some_and(|ms| (40_000..46_000).contains(&ms)), "{gap:?}");
}

#[test]
fn silence_is_heard_again_for_two_seconds_since_speech_may_begin_in_it() {
    let mut rig = Rig::new(plan());
    rig.speak(10 * SECOND);
    let since = rig.log.len();
    drop_session(&mut rig);
    let heard = appended(&rig, since);
    assert!((1_800 * 48..=2_100 * 48).contains(&heard), "{heard}");
}

#[test]
fn speech_that_the_next_session_does_not_hear_holds_nobody_up() {
    let mut rig = Rig::new(plan());
    rig.speak(SECOND);
    rig.event(Event::SpeechStarted { at_ms: 500 });
    drop_session(&mut rig);
    rig.said();
    rig.message(ClientMsg::Text { text: "hello?".into() });
    assert_eq!(rig.said(), ["UserText hello?"], "it joins the turn that is spoken");
    rig.pass(6 * SECOND);
    rig.message(ClientMsg::Text { text: "hello??".into() });
    assert_eq!(rig.said(), ["UserText hello??", "CreateReply"]);
}

#[test]
fn a_turn_that_was_not_answered_is_spoken_again_and_answered_by_request() {
    let mut rig = Rig::new(plan());
    rig.speak(SECOND);
    rig.event(Event::SpeechStarted { at_ms: 0 });
    rig.speak(SECOND);
    rig.event(Event::SpeechStopped { at_ms: 2_000 });
    rig.said();
    let since = rig.log.len();
    drop_session(&mut rig);
    assert_eq!(
        rig.said(),
        ["notice upstream_reconnecting", "dial", "Commit", "notice upstream_resumed", "CreateReply"],
        "heard to its end, but not committed"
    );
    let listens: Vec<bool> = rig.log[since..]
        .iter()
        .filter_map(|(_, output)| match output {
            Output::Service { command: Command::Configure { listens, .. }, .. } => Some(*listens),
            _ => None,
        })
        .collect();
    assert_eq!(listens, [false, true], "nobody finds turns in what is only told again");
    rig.event(Event::Committed { item: "u_new".into() });
    words(&mut rig, "u_new", "hi");
    assert_eq!(rig.said(), ["transcript Some(\"hi\") None"]);
    rig.created("resp_1");
    lose(&mut rig);
    rig.said();
    rig.input(Input::SessionUp(None));
    assert_eq!(rig.said(), ["Commit", "notice upstream_resumed", "CreateReply"], "still not answered");
    rig.event(Event::Committed { item: "u_newer".into() });
    words(&mut rig, "u_newer", "hi");
    assert_eq!(rig.said(), [""; 0], "its words were told");
}

#[test]
fn a_reply_of_which_nothing_was_heard_is_asked_for_again() {
    let mut rig = Rig::new(manual());
    rig.speak(SECOND);
    rig.message(ClientMsg::Commit);
    rig.event(Event::Committed { item: "u".into() });
    words(&mut rig, "u", "hi");
    rig.created("resp_1");
    rig.event(Event::ReplyText { response: "resp_1".into(), item: "a".into(), text: "Hel".into(), last: false });
    rig.said();
    drop_session(&mut rig);
    assert_eq!(
        rig.said(),
        [
            "estimate resp_1 0",
            "transcript Some(\"\") None",
            "notice upstream_reconnecting",
            "dial",
            "reply_ended r1 Interrupted 0/0",
            "Commit",
            "notice upstream_resumed",
            "CreateReply"
        ]
    );
    rig.created("resp_2");
    rig.reply_audio("resp_2", "b", 200 * MS);
    rig.done("resp_2", Ended::Completed);
    rig.pass(SECOND);
    assert_eq!(rig.said(), ["reply_started r2", "10 frames", "tail", "reply_ended r2 Completed 200/200"]);
}

#[test]
fn a_reply_that_was_heard_in_part_is_played_as_far_as_it_came_and_never_begun_again() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    words(&mut rig, "u", "hi");
    rig.created("resp_1");
    says(&mut rig, "resp_1", "a", "this is what I have to say about it all");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.pass(100 * MS);
    rig.said();
    drop_session(&mut rig);
    assert_eq!(
        rig.said(),
        [
            "estimate resp_1 20",
            "notice upstream_reconnecting",
            "dial",
            "7 frames",
            "user: hi",
            "assistant: this is what I have to say about it all",
            "notice upstream_resumed",
        ]
    );
    rig.pass(SECOND);
    assert_eq!(rig.said(), ["20 frames", "tail", "reply_ended r1 Interrupted 1000/1000"]);
}

#[test]
fn words_that_the_voice_had_not_reached_are_not_told_to_the_next_session() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    words(&mut rig, "u", "hi");
    rig.created("resp_1");
    let text = "one two three four five six seven eight nine ten eleven twelve".to_owned();
    rig.event(Event::ReplyText { response: "resp_1".into(), item: "a".into(), text, last: false });
    rig.reply_audio("resp_1", "a", SECOND);
    rig.pass(100 * MS);
    drop_session(&mut rig);
    let said = rig.said();
    assert!(said.contains(&"assistant: one two three ... [interrupted about here]".to_owned()), "{said:?}");
}

#[test]
fn a_barge_in_after_a_drop_tells_the_new_session_less() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    words(&mut rig, "u", "hi");
    rig.created("resp_1");
    says(&mut rig, "resp_1", "a", "one two three four five six seven eight nine ten");
    rig.reply_audio("resp_1", "a", 4 * SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.pass(SECOND);
    drop_session(&mut rig);
    rig.said();
    rig.pass(900 * MS);
    rig.said();
    rig.event(Event::SpeechStarted { at_ms: 2_000 });
    let said = rig.said();
    assert_eq!(
        said[1..],
        [
            "drop audio",
            "clear r1",
            "Delete a",
            "assistant: one two three four five ... [interrupted about here] after u",
            "reply_ended r1 Interrupted 2000/4000"
        ],
        "{said:?}"
    );
}

#[test]
fn a_tool_call_is_not_made_twice_by_a_drop() {
    let mut rig = Rig::new(plan());
    rig.created("resp_1");
    let call = || Event::ToolCall {
        response: "resp_1".into(),
        call_id: "c1".into(),
        name: "look".into(),
        arguments: "{}".into(),
    };
    rig.event(call());
    rig.message(ClientMsg::ToolResult { call_id: "c1".into(), output: "42".into() });
    rig.said();
    drop_session(&mut rig);
    assert_eq!(
        rig.said(),
        [
            "estimate resp_1 0",
            "notice upstream_reconnecting",
            "dial",
            "reply_ended r1 Interrupted 0/0",
            "call c1",
            "result c1",
            "notice upstream_resumed",
            "CreateReply"
        ]
    );
    rig.event(call());
    assert_eq!(rig.said(), [""; 0]);
}

#[test]
fn a_greeting_is_said_once_also_if_its_session_is_lost_before_it() {
    let mut rig = Rig::new(Plan { greeting: Some("Hello!".into()), ..plan() });
    assert_eq!(rig.said(), ["CreateReply with instructions"]);
    drop_session(&mut rig);
    assert_eq!(
        rig.said(),
        ["notice upstream_reconnecting", "dial", "notice upstream_resumed", "CreateReply with instructions"]
    );
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 200 * MS);
    rig.done("resp_1", Ended::Completed);
    rig.pass(SECOND);
    rig.said();
    drop_session(&mut rig);
    assert!(!rig.said().iter().any(|word| word.starts_with("CreateReply")));
}

#[test]
fn audio_past_the_ring_is_lost_and_said_to_be() {
    let mut rig = Rig::new(manual());
    lose(&mut rig);
    rig.speak(70 * SECOND);
    let since = rig.log.len();
    rig.input(Input::SessionUp(None));
    let gap = rig.log[since..].iter().find_map(|(_, output)| match output {
        Output::Send(ServerMsg::Notice { code, more, .. }) if code == "audio_gap" => Some(more.clone()),
        _ => None,
    });
    let gap = gap.expect("a notice");
    assert_eq!((gap["from_ms"].as_u64(), gap["to_ms"].as_u64().map(|ms| ms / 1_000)), (Some(0), Some(9)));
    let heard = appended(&rig, since);
    assert!((60_000 * 48..=60_200 * 48).contains(&heard), "{heard}");
}

#[test]
fn a_service_that_takes_sessions_only_to_drop_them_is_given_up() {
    let mut rig = Rig::new(plan());
    let drops = (1..100).find(|_| {
        drop_session(&mut rig);
        rig.said().iter().any(|word| word.starts_with("hang up"))
    });
    assert_eq!(drops, Some(9));
}

#[test]
fn a_session_is_left_between_turns_ahead_of_its_end() {
    let mut rig = Rig::living(Life { max: 10_000 * SECOND, ..life() }, plan());
    rig.pass(3_299 * SECOND);
    rig.said();
    rig.pass(SECOND);
    assert_eq!(rig.said(), ["dial next"], "55 minutes");
    turn(&mut rig);
    rig.input(Input::NextSession(Ok(Some(3_600 * SECOND))));
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    words(&mut rig, "u", "hi");
    rig.said();
    rig.pass(200 * MS);
    rig.done("resp_1", Ended::Completed);
    assert!(!rig.said().contains(&"switch".to_owned()), "not while it sounds");
    rig.pass(SECOND);
    let said = rig.said();
    assert_eq!(said[said.len() - 4..], ["reply_ended r1 Completed 1000/1000", "switch", "user: hi", "notice rotated"]);
    rig.pass(3_200 * SECOND);
    assert_eq!(rig.said(), [""; 0]);
    rig.pass(200 * SECOND);
    assert_eq!(rig.said(), ["dial next"], "the new one's own time");
}

#[test]
fn a_reply_that_does_not_end_is_cut_at_the_last_moment() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    words(&mut rig, "u", "hi");
    rig.pass(3_400 * SECOND - rig.now);
    rig.created("resp_1");
    rig.input(Input::NextSession(Ok(None)));
    rig.said();
    while rig.now < 3_589 * SECOND {
        rig.reply_audio("resp_1", "a", 200 * MS);
        rig.pass(200 * MS);
    }
    assert!(!rig.said().contains(&"switch".to_owned()));
    rig.pass(2 * SECOND);
    let said = rig.said();
    assert!(said.contains(&"switch".to_owned()) && said.contains(&"notice rotated".to_owned()), "{said:?}");
    rig.pass(SECOND);
    assert!(rig.said().iter().all(|word| !word.starts_with("reply_started")));
}

#[test]
fn a_session_that_breaks_with_the_next_one_ready_loses_no_time() {
    let mut rig = Rig::living(Life { max: 10_000 * SECOND, ..life() }, plan());
    rig.pass(3_300 * SECOND);
    rig.created("resp_1");
    rig.input(Input::NextSession(Ok(None)));
    rig.said();
    lose(&mut rig);
    assert_eq!(
        rig.said(),
        [
            "estimate resp_1 0",
            "notice upstream_reconnecting",
            "switch",
            "notice upstream_resumed",
            "CreateReply",
            "reply_ended r1 Interrupted 0/0"
        ]
    );
}

#[test]
fn a_next_session_that_cannot_be_had_is_tried_again() {
    let mut rig = Rig::living(Life { max: 10_000 * SECOND, ..life() }, plan());
    rig.pass(3_300 * SECOND);
    rig.said();
    rig.input(Input::NextSession(Err(())));
    rig.pass(4 * SECOND);
    assert_eq!(rig.said(), [""; 0]);
    rig.pass(SECOND);
    assert_eq!(rig.said(), ["dial next"]);
}

#[test]
fn playback_pauses_while_the_client_is_away_and_goes_on_where_it_was() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", 2 * SECOND);
    rig.done("resp_1", Ended::Completed);
    rig.pass(200 * MS);
    assert_eq!(rig.said(), ["reply_started r1", "28 frames"]);
    rig.input(Input::ClientGone(End::ClientLost));
    rig.pass(10 * SECOND);
    assert_eq!(rig.said(), ["hang up 1000"]);
    rig.input(Input::ClientBack { late: 200 * MS, credential: None });
    assert_eq!(rig.said(), ["10 frames"], "a lead of 400 ms, 200 of which it had missed");
    rig.pass(400 * MS);
    rig.said();
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    let said = rig.said();
    assert!(said.contains(&"reply_ended r1 Interrupted 760/2000".to_owned()), "360 ms before the drop: {said:?}");
}

#[test]
fn what_nobody_takes_is_not_said() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.reply_audio("resp_1", "a", SECOND);
    rig.pass(200 * MS);
    rig.input(Input::ClientGone(End::ClientLost));
    rig.said();
    rig.reply_audio("resp_1", "a", 20 * SECOND);
    assert_eq!(rig.said(), [""; 0]);
    rig.reply_audio("resp_1", "b", 20 * SECOND);
    let said = rig.said();
    assert_eq!(said[..2], ["Cancel resp_1", "Truncate b 9560"], "560 ms were sent, and 30 s are kept");
    rig.reply_audio("resp_1", "b", 20 * SECOND);
    rig.done("resp_1", Ended::Cancelled);
    rig.pass(5 * SECOND);
    assert_eq!(rig.said(), [""; 0]);
    rig.input(Input::ClientBack { late: Duration::ZERO, credential: None });
    rig.pass(40 * SECOND);
    assert_eq!(rig.said().last().map(String::as_str), Some("reply_ended r1 Incomplete 30560/30560"));
}

#[test]
fn an_utterance_waits_for_a_client_that_is_away() {
    let mut rig = Rig::new(plan());
    rig.speak(SECOND);
    rig.event(Event::SpeechStarted { at_ms: 200 });
    rig.input(Input::ClientGone(End::ClientLost));
    let since = rig.log.len();
    rig.pass(10 * SECOND);
    assert!(appended(&rig, since) < 200 * 48, "what was gathered, and no silence that ends the turn");
    rig.input(Input::ClientBack { late: Duration::ZERO, credential: None });
    let since = rig.log.len();
    rig.pass(700 * MS);
    assert_eq!(appended(&rig, since), 0);
    rig.pass(100 * MS);
    assert!(appended(&rig, since) > 0, "back, and silent: now it has broken off");
}

#[test]
fn a_call_that_nobody_comes_back_to_ends_and_stops_its_reply() {
    let mut rig = Rig::new(plan());
    turn(&mut rig);
    rig.created("resp_1");
    rig.input(Input::ClientGone(End::ClientLost));
    rig.said();
    rig.pass(30 * SECOND);
    assert_eq!(
        rig.said(),
        ["notice stalled", "ping service", "estimate resp_1 0", "notice upstream_reconnecting", "dial", "end 1000"]
    );
}

#[test]
fn a_call_can_be_written_down_in_the_middle_of_everything() {
    let mut rig = Rig::new(plan());
    exchange(&mut rig);
    turn(&mut rig);
    rig.created("resp_2");
    rig.reply_audio("resp_2", "b", SECOND);
    rig.pass(300 * MS);
    rig.input(Input::ClientGone(End::ClientLost));
    rig.said();
    let written = serde_json::to_vec(&rig.core).unwrap();
    let mut other = Rig::new(plan());
    other.core = serde_json::from_slice(&written).unwrap();
    other.now = rig.now;
    other.said();
    for rig in [&mut rig, &mut other] {
        lose(rig);
        rig.input(Input::SessionUp(None));
        rig.input(Input::ClientBack { late: Duration::ZERO, credential: None });
        rig.pass(5 * SECOND);
    }
    let said = rig.said();
    assert!(said.contains(&"user: how are you?".to_owned()), "{said:?}");
    assert_eq!(said, other.said());
}

#[test]
fn a_reply_that_was_given_up_before_its_count_came_is_estimated_when_the_session_is_lost() {
    let mut rig = Rig::new(manual());
    turn(&mut rig);
    rig.created("resp_1");
    rig.message(ClientMsg::Interrupt { reply: None, played_ms: None });
    rig.pass(3 * SECOND);
    assert_eq!(rig.said().last().map(String::as_str), Some("reply_ended r1 Interrupted 0/0"));
    lose(&mut rig);
    assert_eq!(rig.said(), ["estimate resp_1 0", "notice upstream_reconnecting", "dial"]);
}

#[test]
fn a_turn_is_spoken_again_from_its_beginning_however_far_the_service_came_with_it() {
    for committed in [false, true] {
        let mut rig = Rig::new(plan());
        rig.speak(SECOND);
        rig.event(Event::SpeechStarted { at_ms: 0 });
        rig.speak(5 * SECOND);
        rig.event(Event::SpeechStopped { at_ms: 6_000 });
        if committed {
            rig.event(Event::Committed { item: "u".into() });
        }
        let since = rig.log.len();
        drop_session(&mut rig);
        assert!(!rig.said().contains(&"notice audio_gap".to_owned()));
        assert_eq!(appended(&rig, since), 6_000 * 48, "committed: {committed}");
    }
}
