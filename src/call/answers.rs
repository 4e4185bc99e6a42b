//! How soon a call's replies were heard, from the moment at which the service had all that it needed: our request, or the turn that it
//! answers by itself. What a reply had to wait for in our own queues is not in it.
use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{At, ms};
use crate::admit::router::Stage;

/// Replies that are remembered: those that may still be booked.
const REPLIES: usize = 8;

/// What is told of a session's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// A reply is heard, so long after it was asked for.
    FirstAudio(Duration),
    /// The session says nothing any more, not even to a ping.
    Dead(Stage),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer {
    response: String,
    asked: At,
    first_audio: Option<At>,
}

/// The newest replies.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answers {
    asked: Option<At>,
    replies: VecDeque<Answer>,
}

impl Answers {
    /// The service has what it needs to answer; the last time before a reply begins counts.
    pub fn asked(&mut self, now: At) {
        self.asked = Some(now);
    }

    /// The session is lost: what it was asked for is asked for again elsewhere.
    pub fn lost(&mut self) {
        self.asked = None;
    }

    /// A reply begins.
    pub fn began(&mut self, now: At, response: &str) {
        if self.replies.len() == REPLIES {
            self.replies.pop_front();
        }
        let asked = self.asked.take().unwrap_or(now);
        self.replies.push_back(Answer { response: response.to_owned(), asked, first_audio: None });
    }

    /// Audio of it came; if it is the first, how long that took.
    pub fn audio(&mut self, now: At, response: &str) -> Option<Duration> {
        let answer = self.replies.iter_mut().rev().find(|answer| answer.response == response)?;
        if answer.first_audio.is_some() {
            return None;
        }
        answer.first_audio = Some(now);
        Some(now.saturating_sub(answer.asked))
    }

    /// How long it took until this one was heard, ms; `None`: it was not, or is forgotten.
    pub fn first_audio_ms(&self, response: &str) -> Option<u64> {
        let answer = self.replies.iter().rev().find(|answer| answer.response == response)?;
        Some(ms(answer.first_audio?.saturating_sub(answer.asked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_the_last_request_before_a_reply_and_its_first_audio() {
        let at = Duration::from_millis;
        let mut answers = Answers::default();
        answers.asked(at(100)); // the turn
        answers.asked(at(900)); // our request, which had to wait
        answers.began(at(1_000), "resp_1");
        assert_eq!(answers.first_audio_ms("resp_1"), None);
        assert_eq!(answers.audio(at(1_300), "resp_1"), Some(at(400)));
        assert_eq!((answers.audio(at(1_400), "resp_1"), answers.audio(at(1_400), "resp_0")), (None, None));
        answers.began(at(2_000), "resp_2"); // nobody has asked for it
        assert_eq!(answers.audio(at(2_250), "resp_2"), Some(at(250)));
        assert_eq!(answers.first_audio_ms("resp_1"), Some(400));
        (0..8).for_each(|n| answers.began(at(3_000), &format!("more_{n}")));
        assert_eq!(answers.first_audio_ms("resp_1"), None, "it was booked long ago");
    }
}
