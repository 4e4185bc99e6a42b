//! The caller's transcripts: a separate model that listens along and takes its time.
use std::time::Duration;

use serde_json::{Value, json};

use super::{
    conversation::{Clip, Kind, Part},
    reply,
    response::with,
    session::{Act, Session},
    text::hear,
    tokens, voice,
};

/// How long a transcript that was held back waits for the one that is to overtake it.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// The next thing to tell about a turn's words.
#[derive(Debug, Clone)]
pub(super) struct Event {
    item_id: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Delta(String),
    Completed { transcript: String, usage: Value },
    Failed,
}

/// A transcript that waits until the next one is out.
#[derive(Debug)]
pub(super) struct Held {
    item_id: String,
    events: Vec<Event>,
}

impl Session {
    /// Has a turn transcribed, if the session wants it.
    pub(super) fn transcribe(&mut self, item_id: &str, clip: &Clip, committed: Duration) {
        let Some(transcription) = &self.settings.transcription else { return };
        let model = transcription.model.clone();
        // Who only writes is asked for words; in a conversation the length is what people want to see.
        let transcript = match self.settings.only_writes {
            true => hear::text(&hear::words(&voice::decode(&clip.bytes(), clip.format), clip.format.rate)),
            false => reply::transcript_of(clip),
        };
        let usage = usage(&model, clip.ms(), &transcript);
        let delay = self.dice.delay(self.world.config.delays.transcription);
        let pause = Duration::from_millis(self.world.config.reply.word_ms);
        let mut at = self.now + committed + delay;
        for word in transcript.split_inclusive(' ') {
            let event = Event { item_id: item_id.to_owned(), what: What::Delta(word.to_owned()) };
            self.at(at, Act::Transcript(event));
            at += pause;
        }
        let what = What::Completed { transcript, usage };
        self.at(at, Act::Transcript(Event { item_id: item_id.to_owned(), what }));
    }

    /// Tells the next piece.
    pub(super) fn transcript(&mut self, event: Event) {
        let Event { item_id, what } = event;
        let logprobs = self.settings.logprobs();
        match what {
            What::Delta(delta) => {
                let words = logprobs.then(|| vec![logprob(&delta)]);
                let fields = json!({ "item_id": item_id, "content_index": 0, "delta": delta });
                let fields = with(with_logprobs(fields, words), json!({ "obfuscation": self.dice.obfuscation() }));
                self.send("conversation.item.input_audio_transcription.delta", fields);
            }
            What::Completed { transcript, usage } => {
                self.keep_transcript(&item_id, &transcript);
                let words = logprobs.then(|| transcript.split_inclusive(' ').map(logprob).collect());
                let fields =
                    json!({ "item_id": item_id, "content_index": 0, "transcript": transcript, "usage": usage });
                let fields = with_logprobs(fields, words);
                self.send("conversation.item.input_audio_transcription.completed", fields);
                self.overtaken(&item_id);
            }
            What::Failed => {
                let error = json!({
                    "type": "transcription_error",
                    "code": "audio_unintelligible",
                    "message": "The audio could not be transcribed.",
                    "param": null,
                });
                let fields = json!({ "item_id": item_id, "content_index": 0, "error": error });
                self.send("conversation.item.input_audio_transcription.failed", fields);
                self.overtaken(&item_id);
            }
        }
    }

    fn keep_transcript(&mut self, item_id: &str, words: &str) {
        let item = self.conversation.get_mut(item_id);
        if let Some(Kind::Message { parts, .. }) = item.map(|item| &mut item.kind)
            && let Some(Part::InputAudio { transcript, .. }) = parts.first_mut()
        {
            *transcript = Some(words.to_owned());
        }
    }

    /// Lets the last turn's transcript fail.
    pub(super) fn fail_transcript(&mut self) {
        for event in self.take_last_transcript() {
            if matches!(event.what, What::Completed { .. }) {
                self.at(self.now, Act::Transcript(Event { what: What::Failed, ..event }));
            }
        }
    }

    /// Holds the last turn's transcript back until the next one is out.
    pub(super) fn hold_transcript(&mut self) {
        if self.held.is_some() {
            return; // one at a time: the second is the one that overtakes
        }
        let events = self.take_last_transcript();
        if let Some(first) = events.first() {
            self.held = Some(Held { item_id: first.item_id.clone(), events });
            self.at(self.now + LONGEST_HOLD, Act::ReleaseTranscripts);
        }
    }

    fn take_last_transcript(&mut self) -> Vec<Event> {
        let Some(last) = self.conversation.last_id().map(str::to_owned) else { return Vec::new() };
        let wanted = |act: &Act| matches!(act, Act::Transcript(event) if event.item_id == last);
        let acts = self.take_timers(wanted);
        let events = acts.into_iter().filter_map(|act| match act {
            Act::Transcript(event) => Some(event),
            _ => None,
        });
        events.collect()
    }

    fn overtaken(&mut self, item_id: &str) {
        if self.held.as_ref().is_some_and(|held| held.item_id != item_id) {
            self.release_transcripts();
        }
    }

    /// Lets out what was held back.
    pub(super) fn release_transcripts(&mut self) {
        let Some(held) = self.held.take() else { return };
        self.take_timers(|act| matches!(act, Act::ReleaseTranscripts));
        let pause = Duration::from_millis(self.world.config.reply.word_ms);
        let mut at = self.now + pause;
        for event in held.events {
            self.at(at, Act::Transcript(event));
            at += pause;
        }
    }
}

/// Whether a model is billed by time, as the streaming ones and the newest one are; the others are by tokens.
pub(super) fn by_time(model: &str) -> bool {
    !model.contains("4o")
}

/// What a transcript of so many ms of audio has used.
pub(super) fn usage(model: &str, ms: u64, transcript: &str) -> Value {
    if by_time(model) {
        return json!({ "type": "duration", "seconds": ms as f64 / 1_000.0 });
    }
    let (input, output) = (tokens::of_user_audio(ms), tokens::of_text(transcript));
    json!({
        "type": "tokens",
        "total_tokens": input + output,
        "input_tokens": input,
        "input_token_details": { "text_tokens": 0, "audio_tokens": input },
        "output_tokens": output,
    })
}

fn with_logprobs(fields: Value, words: Option<Vec<Value>>) -> Value {
    match words {
        Some(words) => with(fields, json!({ "logprobs": words })),
        None => fields,
    }
}

pub(super) fn logprob(token: &str) -> Value {
    json!({ "token": token, "logprob": -0.01, "bytes": token.as_bytes() })
}
