//! One row: what one reply, or one transcription, has used.
use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{admit::price::Cost, client::wire::Usage};

/// Longest text in a row, bytes: what comes from outside is cut there.
const LONGEST: usize = 256;

/// What was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A reply of the model.
    Reply,
    /// The words of a caller, written down.
    Transcription,
    /// An answer that was refused for a limit or a budget: nothing was used.
    Refusal,
    /// A call by telephone that is over: how long it was, and who ended it. What it used stands in the other rows.
    Call,
}

impl Kind {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Transcription => "transcription",
            Self::Refusal => "refusal",
            Self::Call => "call",
        }
    }
}

/// A row. Its key is what it was used for, and the service's id of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The service's id: of the response, or of the item whose words were written down.
    pub id: String,
    /// What was used for.
    pub kind: Kind,
    /// The call.
    pub call: String,
    /// The upstream session; empty: not known.
    pub session: String,
    /// Who pays.
    pub tenant: String,
    /// The label of their key.
    pub key: Option<String>,
    /// The end user, by the tenant's own name for them.
    pub user: Option<String>,
    /// The agent that was called.
    pub agent: String,
    /// The model that did it.
    pub model: String,
    /// The account and the model, `default/gpt-realtime-2.1`.
    pub route: String,
    /// Where the call came in.
    pub door: Cow<'static, str>,
    /// When, Unix ms.
    pub at: u64,
    /// How it ended: `completed`, `cancelled` and so on; of a call, who ended it.
    pub status: String,
    /// Tokens.
    pub usage: Usage,
    /// Audio that was written down, seconds, where that is what the service bills; of a call, how long it was.
    pub seconds: Option<f64>,
    /// Audio of the reply, ms.
    pub audio_ms: u64,
    /// Of it really heard, ms.
    pub heard_ms: u64,
    /// From the request, or the turn that the service answers by itself, to the reply's first audio, ms; none: not known, or it had no audio.
    pub first_audio_ms: Option<u64>,
    /// The service's own count was lost: these are numbers of ours.
    pub estimated: bool,
    /// How long a reply had to wait until it could be asked for, ms; none: it did not have to.
    pub waited_ms: Option<u64>,
    /// Why it had to wait, or was refused, in numbers.
    pub reason: Option<String>,
    /// What it costs, by the prices of the moment at which it was booked; none: not known.
    pub cost: Option<Cost>,
}

/// Tells rows apart.
pub type Key = (Kind, String);

impl Entry {
    /// What it is found by.
    pub fn key(&self) -> Key {
        (self.kind, self.id.clone())
    }

    /// Whether this one, which came later, takes the place of one for the same id: unless it is an estimate, and the other the
    /// service's own count. The file's rule is the same ([`super::file`]).
    pub fn replaces(&self, earlier: &Self) -> bool {
        !self.estimated || earlier.estimated
    }

    /// The same without texts that somebody made long, so that so many rows are so many bytes.
    pub(super) fn bounded(mut self) -> Self {
        let texts = [
            &mut self.id,
            &mut self.call,
            &mut self.session,
            &mut self.tenant,
            &mut self.agent,
            &mut self.model,
            &mut self.route,
            &mut self.status,
        ];
        let more = [&mut self.key, &mut self.user, &mut self.reason].into_iter().flatten();
        for text in texts.into_iter().chain(more) {
            text.truncate((0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default());
        }
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Some reply's row.
    pub(crate) fn reply(id: &str, output_tokens: u64, estimated: bool) -> Entry {
        Entry {
            id: id.to_owned(),
            kind: Kind::Reply,
            call: "call_1".to_owned(),
            session: "sess_1".to_owned(),
            tenant: "acme".to_owned(),
            key: Some("backend".to_owned()),
            user: None,
            agent: "default".to_owned(),
            model: "gpt-realtime-2.1".to_owned(),
            route: "default/gpt-realtime-2.1".to_owned(),
            door: "thin".into(),
            at: 1_795_219_200_000,
            status: "completed".to_owned(),
            usage: Usage { total_tokens: output_tokens, output_tokens, ..Usage::default() },
            seconds: None,
            audio_ms: 2_000,
            heard_ms: 1_500,
            first_audio_ms: None,
            waited_ms: None,
            reason: None,
            estimated,
            cost: None,
        }
    }

    #[test]
    fn of_two_for_the_same_reply_the_services_own_count_stays() {
        for (name, earlier, later, replaces) in [
            ("a later count", false, false, true),
            ("a count after an estimate", true, false, true),
            ("an estimate after a count", false, true, false),
            ("a better estimate", true, true, true),
        ] {
            assert_eq!(reply("a", 1, later).replaces(&reply("a", 2, earlier)), replaces, "{name}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let long = Entry { user: Some("é".repeat(200)), id: "i".repeat(5_000), ..reply("", 1, false) }.bounded();
        assert_eq!((long.id.len(), long.user.map(|user| user.len())), (256, Some(256)));
        let odd = Entry { user: Some(format!("x{}", "é".repeat(200))), ..reply("", 1, false) }.bounded();
        assert_eq!(odd.user.map(|user| user.len()), Some(255));
    }
}
