//! Another session under a client that owns its conversation: it hears nothing of it, unless something is lost.
//!
//! The new session takes what the old one had last shown as its settings, is told the items, hears turns again that nobody
//! has written down, and then the audio that is part of no turn. What it says meanwhile is kept from the client, to whom none of
//! it is news; the settings come last, so that their answer says that everything before was taken.
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    super::{Core, Output},
    Asked, Pass, Stage,
    keep::{Retold, Step},
    string_id, update,
};
use crate::{
    call::{At, end::End, ms},
    client::openai::{self, Problem, SERVER_ERROR, Said},
    upstream::{Event, UpstreamError, error::plain_code},
};

/// Our commands to a session that is told what was; the service complains about one of them by this name.
const RETELLS: &str = "voxrelay_retold";

impl Core {
    /// The session of a client that owns its conversation is lost, or left: what of it the client must know.
    pub(in crate::call::core) fn pass_lost(&mut self, now: At) {
        self.up = false;
        self.stall = super::super::Stall::None;
        self.service_seen = now;
        self.turns_lost();
        let lost = self.slot.lost();
        let pass = self.pass();
        pass.stage = Stage::Dialling;
        pass.stopped = false;
        pass.asides = 0;
        pass.retold.clear();
        let asked = pass.asked.take().and(pass.asked_text.take());
        let Some((response, times)) = pass.live.take() else {
            // Asked for and not begun: it is asked again, in the client's own words; also if the session that was to hear it
            // is lost, too.
            pass.again = asked.or(pass.again.take());
            return;
        };
        let begun = std::mem::take(&mut pass.speaks);
        let audio = times.first_delta.is_some();
        if begun || audio {
            self.pass().keep.broke_off();
            self.tell_done(&response, "failed");
            let message = format!(
                "The connection to the model broke in the middle of response {response}; the conversation goes on, without the \
                 rest of it."
            );
            self.tell_lost("upstream_lost", message);
            return;
        }
        self.tell_done(&response, "cancelled");
        let words = || Bytes::from_static(br#"{"type":"response.create"}"#);
        self.pass().again =
            Some(lost.want.map_or_else(words, |_| self.pass().last_asked.clone().unwrap_or_else(words)));
    }

    /// A reply that the client saw begin has ended.
    fn tell_done(&mut self, response: &str, status: &str) {
        let details = match status {
            "failed" => json!({"type": "failed", "error": {"type": SERVER_ERROR, "code": "upstream_lost"}}),
            status => json!({"type": status, "reason": "client_cancelled"}),
        };
        let event = json!({"type": "response.done", "event_id": string_id(&self.request_id()), "response": {
            "object": "realtime.response", "id": response, "status": status, "status_details": details, "output": [],
            "usage": null}});
        self.out.push_back(Output::Relay { text: event.to_string().into(), first: false });
    }

    fn tell_lost(&mut self, code: &str, message: String) {
        self.errors += 1;
        let problem = Problem { kind: SERVER_ERROR, code: code.to_owned(), message, param: None, event_id: None };
        let text = openai::error_event(&problem, &self.life.call, self.errors);
        self.out.push_back(Output::Relay { text, first: false });
    }

    /// A new session is there, in place of one that was.
    pub(in crate::call::core) fn pass_begins(&mut self, now: At) {
        self.up = true;
        self.service_seen = now;
        let Some(Retold { quiet, session, steps }) = self.pass().keep.retell() else {
            // The old one was lost before it had said anything: this one is the first.
            self.pass().stage = Stage::Dialling;
            return;
        };
        let mut heard = 0;
        self.forward(update(&quiet));
        for step in steps {
            match step {
                Step::Item(item) => {
                    let event = json!({"type": "conversation.item.create", "event_id": RETELLS, "item": item});
                    self.forward(event.to_string().into());
                }
                Step::Turn(id, appends) => {
                    for text in appends {
                        heard += Said::read(text.clone()).audio_len();
                        self.forward(text);
                    }
                    self.forward(json!({"type": "input_audio_buffer.commit", "event_id": RETELLS}).to_string().into());
                    self.pass().retold.push_back(id);
                }
            }
        }
        self.forward(update(&session));
        self.pass().heard_again = heard as u64;
        self.pass().stage = Stage::Reopening { updates: 2 };
    }

    /// What the new session says to what it is told.
    pub(super) fn heard_reopening(&mut self, now: At, event: Event, updates: u8) {
        match event {
            Event::SessionUpdated { hearing, .. } if updates <= 1 => {
                hearing.into_iter().for_each(|hearing| self.listens(hearing));
                self.reopened(now);
            }
            Event::SessionUpdated { .. } => self.pass().stage = Stage::Reopening { updates: updates - 1 },
            Event::Committed { item } => {
                let pass = self.pass();
                if let Some(old) = pass.retold.pop_front() {
                    pass.keep.renamed(&old, &item);
                    // The client goes on to call it what it was called first.
                    match pass.names.iter_mut().find(|(ours, _)| *ours == old) {
                        Some((ours, _)) => *ours = item,
                        None => pass.names.push((item, old)),
                    }
                }
            }
            // What it would not be told of is a little less that it knows.
            Event::Error(error) if error.event_id.as_deref() == Some(RETELLS) => {}
            Event::Error(error) => {
                let mut end = End::upstream(&UpstreamError::refused(&error, None));
                if let End::Upstream { message, .. } = &mut end {
                    *message = format!("the service refused the session's own settings ({})", plain_code(&error.code));
                }
                self.end(now, end);
            }
            _ => {}
        }
    }

    fn reopened(&mut self, now: At) {
        let input = self.pass().input;
        let said = self.pass().keep.unconfirmed();
        let begins = self.pass().keep.begins().unwrap_or(self.turn.written());
        let heard = self.pass().heard_again;
        self.turn.session_hears(begins, heard);
        self.pass().shift_ms = {
            let length = |bytes: u64| ms(input.duration(usize::try_from(bytes).unwrap_or(usize::MAX)));
            i64::try_from(length(begins)).unwrap_or(0) - i64::try_from(length(heard)).unwrap_or(0)
        };
        self.pass().stage = Stage::Open;
        for text in said {
            self.forward_named(text);
        }
        if std::mem::take(&mut self.pass().keep.lost) {
            self.tell_lost("audio_gap", "Audio was lost while there was no connection to the model.".to_owned());
        }
        if let Some(again) = self.pass().again.take()
            && self.slot.take()
        {
            self.service_seen = now;
            self.pass().asked = Some(Asked { event_id: Said::read(again.clone()).event_id });
            self.pass().asked_text = Some(again.clone());
            self.answers.asked(now);
            self.forward(again);
        }
        self.say_held(now);
    }
}

impl Pass {
    /// What the client calls otherwise than the session that runs, and counts from another moment.
    pub(super) fn in_clients_words(&self, event: &Event, text: Bytes) -> Bytes {
        let moment = match event {
            Event::SpeechStarted { .. } => Some("audio_start_ms"),
            Event::SpeechStopped { .. } => Some("audio_end_ms"),
            _ => None,
        };
        let text = match moment.filter(|_| self.shift_ms != 0) {
            None => text,
            Some(field) => shifted(&text, field, self.shift_ms).unwrap_or(text),
        };
        // Turns are the caller's; what is frequent is about the model's items.
        if matches!(event, Event::AudioPasses | Event::WordsPass) {
            return text;
        }
        renamed(text, self.names.iter().map(|(ours, shown)| (ours.as_str(), shown.as_str())))
    }

    /// And the other way round.
    pub(super) fn in_services_words(&self, text: Bytes) -> Bytes {
        renamed(text, self.names.iter().map(|(ours, shown)| (shown.as_str(), ours.as_str())))
    }
}

fn shifted(text: &[u8], field: &str, by: i64) -> Option<Bytes> {
    let mut event: Value = serde_json::from_slice(text).ok()?;
    let moment = event.get_mut(field)?;
    *moment = json!(moment.as_i64()?.saturating_add(by).max(0));
    Some(event.to_string().into())
}

/// Ids are long and by chance: where one stands in a message, it is meant.
fn renamed<'n>(text: Bytes, names: impl Iterator<Item = (&'n str, &'n str)>) -> Bytes {
    names.fold(text, |text, (from, to)| match std::str::from_utf8(&text) {
        Ok(said) if !from.is_empty() && said.contains(from) => said.replace(from, to).into(),
        _ => text,
    })
}
