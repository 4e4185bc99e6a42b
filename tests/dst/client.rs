//! A client that keeps the contract: counts, keeps what no `ack` covers, comes back with what it got.
//!
//! Owns no socket and no clock: it is told what came, and says what it wants written.
use std::{collections::VecDeque, time::Duration};

use voxrelay::client::wire::{ClientMsg, ReplyStatus, ServerMsg};

use crate::{
    audio::{FORMAT, PER_MS},
    check::{At, Fact, History},
};

/// A message of the client.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    /// Units of audio.
    Audio { from: u64, count: u32, loud: bool },
    /// Text.
    Text(ClientMsg),
}

/// What the client wants.
#[derive(Debug)]
pub(crate) enum Wish {
    /// This message on the socket.
    Write(u64, Up),
    /// A tool's result, later.
    Tool(String),
    /// To be gone: it may not come back.
    GiveUp,
}

/// The client of one call.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Its socket is greeted: it may write.
    pub(crate) greeted: bool,
    pub(crate) token: u64,
    pub(crate) got: u64,
    made: u64,
    written: u64,
    kept: VecDeque<(u64, Up)>,
    /// Units spoken.
    pub(crate) position: u64,
    pub(crate) over: bool,
    /// The reply whose audio comes, and when each frame is played.
    reply: Option<(String, VecDeque<At>, u64)>,
    plays_until: At,
    acked: u64,
}

fn status(status: ReplyStatus) -> &'static str {
    match status {
        ReplyStatus::Completed => "completed",
        ReplyStatus::Interrupted => "interrupted",
        ReplyStatus::Incomplete => "incomplete",
        ReplyStatus::Failed => "failed",
    }
}

impl Client {
    pub(crate) fn say(&mut self, up: Up) -> Vec<Wish> {
        self.made += 1;
        self.kept.push_back((self.made, up));
        self.write()
    }

    fn write(&mut self) -> Vec<Wish> {
        if !self.greeted {
            return Vec::new();
        }
        let from = self.written;
        self.written = self.made;
        self.kept
            .iter()
            .filter(|(number, _)| *number > from)
            .map(|(number, up)| Wish::Write(*number, up.clone()))
            .collect()
    }

    /// The socket is gone.
    pub(crate) fn lost(&mut self) {
        self.greeted = false;
    }

    /// What of the reply was played by now, ms.
    pub(crate) fn played(&self, now: At) -> Option<(String, u64)> {
        let (reply, plays, before) = self.reply.as_ref()?;
        let played = plays.iter().filter(|at| **at + Duration::from_millis(20) <= now).count() as u64;
        Some((reply.clone(), before + 20 * played))
    }

    /// Reply audio came.
    pub(crate) fn audio(&mut self, now: At, audio: &[u8], history: &mut History) -> Vec<Wish> {
        self.got += 1;
        history.note(now, Fact::Audio { audio: audio.to_vec() });
        let at = self.plays_until.max(now);
        self.plays_until = at + FORMAT.duration(audio.len());
        if let Some((_, plays, _)) = &mut self.reply {
            plays.push_back(at);
        }
        self.maybe_ack()
    }

    fn maybe_ack(&mut self) -> Vec<Wish> {
        if self.got < self.acked + 40 {
            return Vec::new();
        }
        self.acked = self.got;
        self.say(Up::Text(ClientMsg::Ack { got: self.got }))
    }

    /// A text message came.
    pub(crate) fn text(&mut self, now: At, text: &[u8], history: &mut History) -> Vec<Wish> {
        let message: ServerMsg = serde_json::from_slice(text).expect("the server writes what its own types read");
        match message {
            ServerMsg::Ready { resume, .. } => {
                self.token = resume.and_then(|token| token.parse().ok()).unwrap_or(0);
                self.greeted = true;
                return self.write();
            }
            ServerMsg::Resumed { resume, got, .. } => {
                self.token = resume.and_then(|token| token.parse().ok()).unwrap_or(0);
                history.note(now, Fact::Acknowledged { got });
                self.has(got);
                self.greeted = true;
                self.written = got;
                return self.write();
            }
            _ => self.got += 1,
        }
        self.note(now, &message, history);
        let mut wishes = match message {
            ServerMsg::ToolCall { call_id, .. } => vec![Wish::Tool(call_id)],
            ServerMsg::Ack { got, .. } => {
                self.has(got);
                Vec::new()
            }
            ServerMsg::Error { error } if error.code == "resume_refused" => vec![Wish::GiveUp],
            ServerMsg::Notice { code, .. } if code == "token_expiring" => {
                self.say(Up::Text(ClientMsg::Token { token: "the next".into() }))
            }
            _ => Vec::new(),
        };
        wishes.extend(self.maybe_ack());
        wishes
    }

    /// The server has so many.
    fn has(&mut self, got: u64) {
        while self.kept.front().is_some_and(|(number, _)| *number <= got) {
            self.kept.pop_front();
        }
    }

    fn note(&mut self, now: At, message: &ServerMsg, history: &mut History) {
        let unit = |ms: &serde_json::Value| u32::try_from(ms.as_u64().unwrap_or(0)).unwrap_or(0) * PER_MS;
        let fact = match message {
            ServerMsg::ReplyStarted { reply } => {
                self.reply = Some((reply.clone(), VecDeque::new(), 0));
                Fact::Started { reply: reply.clone() }
            }
            ServerMsg::Clear { reply } => {
                let played_ms = self.played(now).filter(|(which, _)| which == reply).map_or(0, |(_, ms)| ms);
                self.plays_until = now;
                Fact::Clear { reply: reply.clone(), played_ms }
            }
            ServerMsg::ReplyEnded { reply, status: how, audio_ms, heard_ms, .. } => {
                Fact::Ended { reply: reply.clone(), status: status(*how), audio_ms: *audio_ms, heard_ms: *heard_ms }
            }
            ServerMsg::ToolCall { call_id, .. } => Fact::Called { call_id: call_id.clone() },
            ServerMsg::Ack { got, .. } => Fact::Acknowledged { got: *got },
            ServerMsg::Notice { code, more, .. } if code == "audio_gap" => {
                let at = |key: &str| unit(more.get(key).unwrap_or(&serde_json::Value::Null));
                Fact::Gap { from: at("from_ms"), to: at("to_ms") }
            }
            ServerMsg::Notice { code, .. } => Fact::Told(format!("notice {code}")),
            ServerMsg::Error { error } => Fact::Told(format!("error {}: {}", error.code, error.message)),
            other => Fact::Told(format!("{other:?}")),
        };
        history.note(now, fact);
    }
}
