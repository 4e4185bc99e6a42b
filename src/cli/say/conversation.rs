//! What is known of the conversation, and whether it is over.
//!
//! Pure: events come in with their time, which is the duration since the phone began. Decides nothing about sockets and
//! prints nothing.
use std::time::Duration;

use crate::{
    caller::{CallEnd, Event},
    client::wire::{ErrorBody, Latency, ReplyStatus, ServerMsg},
};

/// Speech that ends with the recording is announced within this time after it.
const SETTLE: Duration = Duration::from_millis(1_500);
/// The service may still be connecting when a short recording is through, for 10 s at a time; it hears it later then.
const FIRST_SIGN: Duration = Duration::from_secs(15);

/// What an answer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Ask {
    /// Speech that ended at this point of the audio.
    Speech,
    Commit,
    Text,
    /// The result of a tool.
    Tool,
    /// Nothing: the agent's greeting, or a reply that goes on by itself.
    Nobody,
}

/// A reply and what it answers.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Turn {
    pub(in crate::cli) reply: String,
    pub(in crate::cli) ask: Ask,
    /// When the asking was over, as far as we know; for a greeting, when it began.
    pub(in crate::cli) asked_at: Duration,
    /// Speech: where in our audio the service was sure that it had ended, which is later by the silence that it waits for.
    pub(in crate::cli) heard_until: Option<Duration>,
    /// When its first audio was here.
    pub(in crate::cli) first_audio_at: Option<Duration>,
    pub(in crate::cli) end: Option<TurnEnd>,
}

impl Turn {
    /// From the end of the asking to the first audio, by our own clock. Speech has ended before we are told; how long
    /// before, the relay knows: the service commits the turn when it is sure.
    pub(in crate::cli) fn first_audio(&self) -> Option<Duration> {
        let committed = self.end.as_ref().and_then(|end| end.latency.committed_ms).filter(|_| self.ask == Ask::Speech);
        let before = Duration::from_millis(committed.unwrap_or(0));
        self.first_audio_at.map(|at| at.saturating_sub(self.asked_at) + before)
    }
}

/// From `reply_ended`.
#[derive(Debug, Clone)]
pub(in crate::cli) struct TurnEnd {
    pub(in crate::cli) status: ReplyStatus,
    pub(in crate::cli) reason: Option<String>,
    pub(in crate::cli) audio_ms: u64,
    pub(in crate::cli) heard_ms: u64,
    pub(in crate::cli) latency: Latency,
}

/// A question without an answer so far.
#[derive(Debug, Clone, Copy)]
struct Asked {
    ask: Ask,
    at: Duration,
    heard_until: Option<Duration>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) enum Verdict {
    /// Everything that was said has been answered.
    Answered,
    /// The recording is through and the service has heard no speech in it.
    NoSpeech,
    /// The last turn was answered by an error, or by a reply that failed.
    Failed(String),
    /// Nothing has come for so long.
    Late(Duration),
    /// Something still comes, but for so long after the recording that it is enough.
    Endless(Duration),
    /// The call ended by itself.
    Over(CallEnd),
}

/// How long to be patient after the recording's end.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Patience {
    /// With nothing coming.
    pub(in crate::cli) quiet: Duration,
    /// In all.
    pub(in crate::cli) total: Duration,
}

/// Follows one call.
#[derive(Debug)]
pub(in crate::cli) struct Conversation {
    patience: Patience,
    /// Turns are found by the service: it must be waited for.
    auto: bool,
    turns: Vec<Turn>,
    /// The caller is speaking, as the service hears it.
    speaking: bool,
    heard_speech: bool,
    asked: Option<Asked>,
    spoken_at: Option<Duration>,
    last_sign: Duration,
    refused: Option<(Duration, ErrorBody)>,
    /// The connection is lost and may come back.
    away: bool,
    /// When it did last: what was said meanwhile was not heard before.
    back_at: Duration,
    over: Option<CallEnd>,
}

impl Conversation {
    pub(in crate::cli) fn new(auto: bool, patience: Patience) -> Self {
        Self {
            patience,
            auto,
            turns: Vec::new(),
            speaking: false,
            heard_speech: false,
            asked: None,
            spoken_at: None,
            last_sign: Duration::ZERO,
            refused: None,
            away: false,
            back_at: Duration::ZERO,
            over: None,
        }
    }

    /// The replies so far, in the order in which they started.
    pub(in crate::cli) fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// The recording is through.
    pub(in crate::cli) fn spoken(&mut self, now: Duration) {
        self.spoken_at = Some(now);
    }

    /// Something was asked by a message of ours.
    pub(in crate::cli) fn ask(&mut self, now: Duration, ask: Ask) {
        self.asked = Some(Asked { ask, at: now, heard_until: None });
        self.refused = None;
    }

    /// A reply is being played: as good as an event.
    pub(in crate::cli) fn playing(&mut self, now: Duration) {
        self.last_sign = now;
    }

    /// Takes an event.
    pub(in crate::cli) fn handle(&mut self, now: Duration, event: &Event) {
        match event {
            Event::Audio { reply, .. } => {
                self.last_sign = now;
                let turn = self.turns.iter_mut().rfind(|turn| Some(turn.reply.as_str()) == reply.as_deref());
                if let Some(turn) = turn {
                    turn.first_audio_at.get_or_insert(now);
                }
            }
            Event::Message(message) => self.message(now, message),
            Event::Unknown(_) => {}
            Event::Dropped(_) => self.away = true,
            Event::Resumed { .. } => {
                self.away = false;
                self.last_sign = now;
                self.back_at = now;
            }
            Event::Ended(end) => self.over = Some(end.clone()),
        }
    }

    fn message(&mut self, now: Duration, message: &ServerMsg) {
        if !matches!(message, ServerMsg::Ack { .. } | ServerMsg::Pong { .. } | ServerMsg::Notice { .. }) {
            self.last_sign = now;
        }
        match message {
            ServerMsg::SpeechStarted { .. } => {
                self.speaking = true;
                self.heard_speech = true;
            }
            ServerMsg::SpeechStopped { at_ms } => {
                self.speaking = false;
                if self.auto {
                    self.ask(now, Ask::Speech);
                    let heard_until = Some(Duration::from_millis(*at_ms));
                    self.asked = self.asked.map(|asked| Asked { heard_until, ..asked });
                }
            }
            // What comes of it is an answer of its own.
            ServerMsg::Notice { code, .. } if code == "tool_running" => self.ask(now, Ask::Tool),
            ServerMsg::ReplyStarted { reply } => {
                let nobody = Asked { ask: Ask::Nobody, at: now, heard_until: None };
                let Asked { ask, at, heard_until } = self.asked.take().unwrap_or(nobody);
                self.refused = None;
                let reply = reply.clone();
                self.turns.push(Turn { reply, ask, asked_at: at, heard_until, first_audio_at: None, end: None });
            }
            ServerMsg::ReplyEnded { reply, status, reason, audio_ms, heard_ms, latency, .. } => {
                if let Some(turn) = self.turns.iter_mut().rfind(|turn| turn.reply == *reply) {
                    turn.end = Some(TurnEnd {
                        status: *status,
                        reason: reason.clone(),
                        audio_ms: *audio_ms,
                        heard_ms: *heard_ms,
                        latency: *latency,
                    });
                }
            }
            ServerMsg::Error { error } if self.asked.is_some() => self.refused = Some((now, error.clone())),
            _ => {}
        }
    }

    /// Whether it is over, and how.
    pub(in crate::cli) fn verdict(&self, now: Duration) -> Option<Verdict> {
        if let Some(end) = &self.over {
            return Some(Verdict::Over(end.clone()));
        }
        let spoken_at = self.spoken_at?;
        let since = now.saturating_sub(spoken_at);
        if !self.away && now.saturating_sub(spoken_at.max(self.last_sign)) >= self.patience.quiet {
            return Some(Verdict::Late(self.patience.quiet));
        }
        if since >= self.patience.total {
            return Some(Verdict::Endless(self.patience.total));
        }
        if self.away {
            return None;
        }
        let since = now.saturating_sub(spoken_at.max(self.back_at));
        if let Some((at, error)) = self.refused.as_ref().filter(|(at, _)| now >= *at + SETTLE) {
            let seconds = at.as_secs_f32();
            return Some(Verdict::Failed(format!("at {seconds:.1} s: {}: {}", error.code, error.message)));
        }
        if self.speaking || self.asked.is_some() || self.turns.iter().any(|turn| turn.end.is_none()) {
            return None;
        }
        if self.auto && !self.heard_speech {
            return (since >= FIRST_SIGN.min(self.patience.quiet)).then_some(Verdict::NoSpeech);
        }
        if self.auto && since < SETTLE {
            return None;
        }
        let last = self.turns.iter().rfind(|turn| turn.ask != Ask::Nobody)?;
        let end = last.end.as_ref()?;
        Some(if end.status == ReplyStatus::Failed {
            let reason = end.reason.as_deref().unwrap_or("no reason was given");
            Verdict::Failed(format!("the reply failed: {reason}"))
        } else {
            Verdict::Answered
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const WAIT: Patience = Patience { quiet: Duration::from_secs(30), total: Duration::from_secs(60) };

    const fn t(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn event(json: &str) -> Event {
        Event::Message(Box::new(serde_json::from_str(json).unwrap()))
    }

    /// Plays events at their moments. `+reply`, `-reply status`, `~reply` (audio), `speech`, `silence AT`, `!code`.
    fn play(talk: &mut Conversation, script: &[(u64, &str)]) {
        for (at, what) in script {
            let word = |n| what.split(' ').nth(n).unwrap();
            let event = match what.as_bytes()[0] {
                b'+' => event(&format!(r#"{{"type":"reply_started","reply":"{}"}}"#, &word(0)[1..])),
                b'-' => event(&format!(
                    r#"{{"type":"reply_ended","reply":"{}","status":"{}","audio_ms":900,"heard_ms":800,"latency":{{"committed_ms":500}}}}"#,
                    &word(0)[1..],
                    word(1)
                )),
                b'~' => Event::Audio { reply: Some(what[1..].into()), data: Bytes::from_static(b"..") },
                b'!' => event(&format!(
                    r#"{{"type":"error","error":{{"code":"{}","message":"no","retryable":false,"request_id":"q"}}}}"#,
                    &what[1..]
                )),
                _ if *what == "tool" => event(r#"{"type":"notice","code":"tool_running","message":"at work"}"#),
                _ if *what == "speech" => event(r#"{"type":"speech_started","at_ms":1}"#),
                _ => event(&format!(r#"{{"type":"speech_stopped","at_ms":{}}}"#, word(1))),
            };
            talk.handle(t(*at), &event);
        }
    }

    #[test]
    fn what_comes_of_a_tool_of_the_relays_is_waited_for() {
        let mut talk = Conversation::new(false, WAIT);
        talk.ask(t(0), Ask::Text);
        talk.spoken(t(0));
        play(&mut talk, &[(10, "+r1"), (20, "tool"), (30, "-r1 completed")]);
        assert_eq!(talk.verdict(t(5_000)), None);
        play(&mut talk, &[(6_000, "+r2"), (7_000, "-r2 completed")]);
        assert_eq!(talk.verdict(t(7_000)), Some(Verdict::Answered));
    }

    #[test]
    fn two_turns_with_a_barge_in() {
        let mut talk = Conversation::new(true, WAIT);
        play(&mut talk, &[(300, "speech"), (4_000, "silence 3440"), (4_100, "+r1"), (4_200, "~r1"), (4_300, "~r1")]);
        play(&mut talk, &[(5_100, "speech"), (5_110, "-r1 interrupted"), (8_600, "silence 7980"), (8_700, "+r2")]);
        talk.spoken(t(9_160));
        assert_eq!(talk.verdict(t(9_170)), None, "r2 has not ended");
        play(&mut talk, &[(8_900, "~r2"), (12_000, "-r2 completed")]);
        assert_eq!(talk.verdict(t(12_000)), Some(Verdict::Answered));
        let got: Vec<_> = talk.turns().iter().map(|turn| (turn.ask, turn.heard_until, turn.first_audio())).collect();
        // 500 ms from the end of speech to the commit, which is when we were told, and from then on our own clock.
        assert_eq!(got, [(Ask::Speech, Some(t(3_440)), Some(t(700))), (Ask::Speech, Some(t(7_980)), Some(t(800)))]);
        assert_eq!(talk.turns()[0].end.as_ref().unwrap().status, ReplyStatus::Interrupted);
    }

    #[test]
    fn speech_at_the_very_end_is_waited_for() {
        let mut talk = Conversation::new(true, WAIT);
        play(&mut talk, &[(100, "speech"), (700, "silence 200"), (800, "+r1"), (900, "-r1 completed")]);
        talk.spoken(t(1_000));
        assert_eq!(talk.verdict(t(1_100)), None);
        play(&mut talk, &[(1_200, "speech")]);
        assert_eq!(talk.verdict(t(9_000)), None);
        play(&mut talk, &[(9_100, "silence 1000"), (9_200, "+r2"), (9_300, "-r2 completed")]);
        assert_eq!(talk.verdict(t(9_300)), Some(Verdict::Answered));
    }

    #[test]
    fn silence_is_no_speech_but_a_slow_start_is_forgiven() {
        let mut talk = Conversation::new(true, WAIT);
        talk.spoken(t(1_000));
        assert_eq!(talk.verdict(t(15_900)), None);
        assert_eq!(talk.verdict(t(16_000)), Some(Verdict::NoSpeech));
        play(&mut talk, &[(13_000, "speech")]);
        assert_eq!(talk.verdict(t(16_000)), None);
    }

    #[test]
    fn patience_ends() {
        let mut talk = Conversation::new(true, WAIT);
        assert_eq!(talk.verdict(t(900_000)), None, "still speaking");
        talk.spoken(t(900_000));
        play(&mut talk, &[(903_000, "speech")]);
        assert_eq!(talk.verdict(t(932_999)), None);
        assert_eq!(talk.verdict(t(933_000)), Some(Verdict::Late(t(30_000))));
        play(&mut talk, &[(932_000, "silence 900000"), (932_100, "+r1")]);
        talk.playing(t(959_000));
        assert_eq!(talk.verdict(t(959_999)), None);
        assert_eq!(talk.verdict(t(960_000)), Some(Verdict::Endless(t(60_000))));
    }

    #[test]
    fn a_greeting_answers_nothing() {
        let mut talk = Conversation::new(false, WAIT);
        play(&mut talk, &[(10, "+hello"), (900, "-hello completed")]);
        talk.spoken(t(1_000));
        talk.ask(t(1_000), Ask::Commit);
        assert_eq!(talk.verdict(t(2_000)), None);
        play(&mut talk, &[(2_000, "+r1"), (2_100, "~r1"), (3_000, "-r1 incomplete")]);
        assert_eq!(talk.verdict(t(3_000)), Some(Verdict::Answered));
        assert_eq!(talk.turns().iter().map(|turn| turn.ask).collect::<Vec<_>>(), [Ask::Nobody, Ask::Commit]);
    }

    #[test]
    fn an_error_instead_of_an_answer_is_not_waited_out() {
        let mut talk = Conversation::new(false, WAIT);
        talk.spoken(t(1_000));
        talk.ask(t(1_000), Ask::Commit);
        play(&mut talk, &[(1_100, "!nothing_to_commit")]);
        assert_eq!(talk.verdict(t(2_500)), None, "an answer may still come");
        let Some(Verdict::Failed(why)) = talk.verdict(t(2_600)) else { panic!("{:?}", talk.verdict(t(2_600))) };
        assert_eq!(why, "at 1.1 s: nothing_to_commit: no");
        play(&mut talk, &[(2_650, "+r1"), (2_700, "-r1 failed")]);
        assert_eq!(talk.verdict(t(2_700)), Some(Verdict::Failed("the reply failed: no reason was given".into())));
    }

    #[test]
    fn errors_that_concern_no_turn_end_nothing() {
        let mut talk = Conversation::new(true, WAIT);
        play(&mut talk, &[(50, "!audio_too_fast"), (100, "speech"), (700, "silence 200"), (800, "+r1")]);
        play(&mut talk, &[(850, "!unknown_call"), (5_000, "-r1 completed")]);
        talk.spoken(t(2_000));
        assert_eq!(talk.verdict(t(5_000)), Some(Verdict::Answered));
    }

    #[test]
    fn a_tool_result_asks_for_one_reply_more() {
        let mut talk = Conversation::new(false, WAIT);
        talk.ask(t(0), Ask::Text);
        talk.spoken(t(0));
        play(&mut talk, &[(100, "+r1")]);
        talk.ask(t(150), Ask::Tool);
        play(&mut talk, &[(200, "-r1 completed")]);
        assert_eq!(talk.verdict(t(5_000)), None);
        play(&mut talk, &[(5_100, "+r2"), (6_000, "-r2 completed")]);
        assert_eq!(talk.verdict(t(6_000)), Some(Verdict::Answered));
    }

    #[test]
    fn a_lost_connection_is_waited_for_and_what_was_said_meanwhile_is_heard_later() {
        let lost = Event::Dropped(CallEnd { code: 1006, reason: String::new(), error: None, not_resumed: None });
        let mut talk = Conversation::new(true, WAIT);
        play(&mut talk, &[(100, "speech"), (700, "silence 200"), (800, "+r1"), (900, "-r1 completed")]);
        talk.handle(t(950), &lost);
        talk.spoken(t(1_000));
        assert_eq!((talk.verdict(t(2_600)), talk.verdict(t(40_000))), (None, None), "it may come back");
        talk.handle(t(40_000), &Event::Resumed { after: t(39_050) });
        assert_eq!(talk.verdict(t(41_400)), None, "speech at the very end is told now");
        assert_eq!(talk.verdict(t(41_500)), Some(Verdict::Answered));
        talk.handle(t(41_000), &lost);
        assert_eq!(talk.verdict(t(61_000)), Some(Verdict::Endless(t(60_000))), "but not for ever");
    }

    #[test]
    fn the_end_of_the_call_ends_the_conversation() {
        let mut talk = Conversation::new(true, WAIT);
        let end = CallEnd { code: 4503, reason: String::new(), error: None, not_resumed: None };
        talk.handle(t(10), &Event::Ended(end.clone()));
        assert_eq!(talk.verdict(t(10)), Some(Verdict::Over(end)));
    }
}
