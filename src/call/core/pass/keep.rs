//! What the next session must be told of a conversation that is the client's own: kept as it passes, in the words in which it
//! passes.
//!
//! The session as the service last described it, items as they were complete, and the appends of audio that is part of no turn
//! yet, or of one that nobody has written down. Decides nothing, and sends nothing.
use std::{borrow::Cow, collections::VecDeque, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{audio::Format, client::openai::Said};

/// Items are kept up to so many bytes; more is left out of the middle.
const MOST_ITEMS: usize = 256 << 10;
/// Items at the beginning that stay, of so many: names and reasons stand there.
const HEAD: usize = 5;
/// Audio outside speech: what may turn out to be its beginning.
const BEFORE_SPEECH: Duration = Duration::from_secs(2);
/// Audio of speech and of turns that are not written down, each.
const LONGEST: Duration = Duration::from_secs(60);
/// What a model says in a second, characters (an estimate: of the client's own playback we know only where it cut).
const PACE: u64 = 15;
/// Put behind words of which the end was not heard.
const CUT_MARK: &str = " ... [interrupted about here]";
/// Wishes of the client that wait for the service's word, of each kind.
const UNCONFIRMED: usize = 64;
/// Of a session that the service describes, what it does not take back.
const READ_ONLY: [&str; 5] = ["id", "object", "expires_at", "model", "client_secret"];

/// One item.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Item {
    id: String,
    /// As the service showed it; empty: only its audio is known.
    shown: Bytes,
    /// What the caller said in it.
    words: Option<String>,
    /// Heard of it, where the client cut it, ms.
    cut_ms: Option<u64>,
    /// Its appends, until somebody has written it down.
    audio: Vec<Bytes>,
    /// The client's own words for it, with its voice in them, until somebody has written that down.
    clip: Option<Bytes>,
}

/// What an item is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    role: String,
}

/// The conversation, so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Keep {
    session: Bytes,
    /// Turns are ended by hand.
    manual: bool,
    items: VecDeque<Item>,
    /// Appends that are part of no turn: where each ends in all that was written, and the message.
    open: VecDeque<(u64, Bytes)>,
    /// Where the client has ended turns that the service has not confirmed.
    commits: VecDeque<u64>,
    /// Settings and items of the client that the service has not confirmed.
    settings: VecDeque<Bytes>,
    made: VecDeque<Bytes>,
    /// Words of the reply that runs, by their items.
    saying: Vec<(String, String)>,
    /// What was left out of the open audio since it was too long: nobody will hear it.
    pub(super) lost: bool,
}

/// What a new session is told.
#[derive(Debug, Default)]
pub(super) struct Retold {
    /// The session, without turn detection; and with it.
    pub(super) quiet: Value,
    pub(super) session: Value,
    /// Events, in their order; and turns, which are spoken again: the old id, and what to send.
    pub(super) steps: Vec<Step>,
}

/// One step.
#[derive(Debug)]
pub(super) enum Step {
    /// An item.
    Item(Value),
    /// A turn, by its id: its appends.
    Turn(String, Vec<Bytes>),
}

impl Keep {
    /// The service describes the session.
    pub(super) fn session(&mut self, text: &Bytes) {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Described {
            session: Value,
        }
        let described: Described = serde_json::from_slice(text).unwrap_or_default();
        self.manual = described.session.pointer("/audio/input/turn_detection").is_none_or(Value::is_null);
        self.session = text.clone();
        self.settings.pop_front();
    }

    /// Audio went by, which ends at `end` of all that was written.
    pub(super) fn append(&mut self, end: u64, text: &Bytes, speaking: bool, format: Format) {
        self.open.push_back((end, text.clone()));
        // Where turns are ended by hand, all of it is part of one.
        let speaking = speaking || self.manual;
        let keep = format.bytes(if speaking { LONGEST } else { BEFORE_SPEECH }) as u64;
        while self.open.front().is_some_and(|(at, _)| *at + keep < end) {
            self.open.pop_front();
            self.lost |= speaking;
        }
    }

    /// The client changes the session.
    pub(super) fn set(&mut self, text: &Bytes) {
        self.settings.push_back(text.clone());
        bound_unconfirmed(&mut self.settings);
    }

    /// The client makes an item.
    pub(super) fn make(&mut self, text: &Bytes) {
        self.made.push_back(text.clone());
        bound_unconfirmed(&mut self.made);
    }

    /// The service would not have one of them.
    pub(super) fn refused(&mut self, event_id: &str) {
        let named = |text: &Bytes| Said::read(text.clone()).event_id.as_deref() == Some(event_id);
        self.settings.retain(|text| !named(text));
        self.made.retain(|text| !named(text));
    }

    /// The client ends a turn here.
    pub(super) fn commit(&mut self, at: u64) {
        self.commits.push_back(at);
    }

    /// The client forgets what it said.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.lost = false;
    }

    /// The service has made a turn, which ends here unless the client has ended it.
    pub(super) fn turn(&mut self, id: &str, found: u64) {
        let end = self.commits.pop_front().unwrap_or(found);
        let mut audio = Vec::new();
        while let Some((_, text)) = self.open.front().filter(|(at, _)| *at <= end).cloned() {
            self.open.pop_front();
            audio.push(text);
        }
        self.item(id).audio = audio;
        self.lost = false; // it was part of this turn
        self.bound();
    }

    fn item(&mut self, id: &str) -> &mut Item {
        let at = self.items.iter().rposition(|item| item.id == id).unwrap_or_else(|| {
            let (shown, words, cut_ms, audio, clip) = (Bytes::new(), None, None, Vec::new(), None);
            self.items.push_back(Item { id: id.to_owned(), shown, words, cut_ms, audio, clip });
            self.items.len() - 1
        });
        self.items.get_mut(at).expect("found, or just pushed")
    }

    /// An item is complete.
    pub(super) fn done(&mut self, text: &Bytes) {
        #[derive(Deserialize)]
        struct Done<'a> {
            #[serde(borrow)]
            item: &'a RawValue,
        }
        let Ok(Done { item }) = serde_json::from_slice(text) else { return };
        if let Ok(Named { id, kind, role }) = serde_json::from_str(item.get()) {
            let turn = self.items.iter().any(|item| item.id == id);
            let by_model = self.saying.iter().any(|(said, _)| *said == id);
            let made = if turn || by_model { None } else { self.confirmed(&id, &kind, &role) };
            self.saying.retain(|(said, _)| *said != id);
            let clip = made.filter(|text| memchr::memmem::find(text, b"\"input_audio\"").is_some());
            let item_kept = self.item(&id);
            item_kept.shown = Bytes::copy_from_slice(item.get().as_bytes());
            item_kept.clip = clip.or(item_kept.clip.take());
            self.bound();
        }
    }

    /// The client's words for an item that is complete now, if it made it. What it said before that, and is not confirmed, the
    /// service would not have: it takes items in their order.
    fn confirmed(&mut self, id: &str, kind: &str, role: &str) -> Option<Bytes> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Made {
            item: Named,
        }
        let same = |text: &Bytes| {
            let Made { item } = serde_json::from_slice(text).unwrap_or_default();
            match item.id.as_str() {
                "" => item.kind == kind && item.role == role,
                named => named == id,
            }
        };
        let at = self.made.iter().position(same)?;
        self.made.drain(..=at).next_back()
    }

    /// The reply that runs says more. `response`: its id.
    pub(super) fn says(&mut self, response: &str, text: &[u8]) {
        #[derive(Deserialize)]
        struct Words<'a> {
            #[serde(borrow)]
            response_id: Cow<'a, str>,
            #[serde(borrow)]
            item_id: Cow<'a, str>,
            #[serde(borrow)]
            delta: Cow<'a, str>,
        }
        let Ok(Words { response_id, item_id, delta }) = serde_json::from_slice(text) else { return };
        if response_id != response {
            return; // one beside the conversation
        }
        match self.saying.last_mut().filter(|(item, _)| *item == item_id) {
            Some((_, words)) => words.push_str(&delta),
            None => self.saying.push((item_id.into_owned(), delta.into_owned())),
        }
    }

    /// The reply is over, or another one begins.
    pub(super) fn said_all(&mut self) {
        self.saying.clear();
    }

    /// The reply broke off: of its items that were not complete, the words that came are kept as all that was said.
    pub(super) fn broke_off(&mut self) {
        for (id, words) in std::mem::take(&mut self.saying) {
            let heard = self.items.iter().find(|item| item.id == id).and_then(|item| item.cut_ms);
            let text = match heard {
                Some(ms) => cut(&words, ms).unwrap_or_default(),
                None => format!("{}{CUT_MARK}", words.trim_end()),
            };
            let shown = json!({"id": id, "type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": text}]});
            self.item(&id).shown = shown.to_string().into();
        }
        self.bound();
    }

    /// What the caller said in a turn is known.
    pub(super) fn words(&mut self, id: &str, words: &str) {
        let item = self.item(id);
        item.words = Some(words.to_owned());
        (item.audio, item.clip) = (Vec::new(), None);
    }

    /// The client has cut an answer.
    pub(super) fn cut(&mut self, id: &str, audio_end_ms: u64) {
        self.item(id).cut_ms = Some(audio_end_ms); // it may not be complete yet
    }

    /// An item is gone.
    pub(super) fn gone(&mut self, id: &str) {
        self.items.retain(|item| item.id != id);
    }

    /// A turn has another id in the session that runs now.
    pub(super) fn renamed(&mut self, old: &str, new: &str) {
        if let Some(item) = self.items.iter_mut().find(|item| item.id == old) {
            item.id = new.to_owned();
        }
    }

    fn bound(&mut self) {
        let weight = |item: &Item| item.shown.len() + item.words.as_ref().map_or(0, String::len) + 64;
        let mut bytes: usize = self.items.iter().map(weight).sum();
        while bytes > MOST_ITEMS && self.items.len() > HEAD + 1 {
            bytes -= self.items.remove(HEAD).as_ref().map_or(0, weight);
        }
        // Whatever is not written down by then stays unknown to a new session.
        let mut left = MOST_ITEMS * 16;
        for item in self.items.iter_mut().rev() {
            let bytes: usize = item.audio.iter().chain(&item.clip).map(Bytes::len).sum();
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => (item.audio, item.clip) = (Vec::new(), None),
            }
        }
    }

    /// Where the audio begins that is part of no turn, in all that was written.
    pub(super) fn begins(&self) -> Option<u64> {
        let (end, text) = self.open.front()?;
        Some(end.saturating_sub(Said::read(text.clone()).audio_len() as u64))
    }

    /// What the service has not confirmed, to be said again: settings, items, audio that is part of no turn, and ends of turns.
    pub(super) fn unconfirmed(&self) -> Vec<Bytes> {
        let mut said: Vec<Bytes> = self.settings.iter().chain(&self.made).cloned().collect();
        let mut commits = self.commits.iter().peekable();
        let commit = || Bytes::from_static(br#"{"type":"input_audio_buffer.commit"}"#);
        for (end, text) in &self.open {
            while commits.next_if(|at| *at < end).is_some() {
                said.push(commit());
            }
            said.push(text.clone());
        }
        said.extend(commits.map(|_| commit()));
        said
    }

    /// What a new session is told; `None`: nothing is known of the session.
    pub(super) fn retell(&self) -> Option<Retold> {
        let described: Value = serde_json::from_slice(&self.session).ok()?;
        let mut session = described.get("session")?.as_object()?.clone();
        session.retain(|key, value| !READ_ONLY.contains(&key.as_str()) && !value.is_null());
        let mut quiet = session.clone();
        let input = quiet.get_mut("audio").and_then(|audio| audio.get_mut("input")).and_then(Value::as_object_mut);
        if let Some(input) = input {
            input.insert("turn_detection".to_owned(), Value::Null);
        }
        let steps = self.items.iter().filter_map(Item::retell).collect();
        Some(Retold { quiet: Value::Object(quiet), session: Value::Object(session), steps })
    }
}

impl Item {
    fn retell(&self) -> Option<Step> {
        if !self.audio.is_empty() {
            return Some(Step::Turn(self.id.clone(), self.audio.clone()));
        }
        if let Some(item) = self.clip.as_ref().and_then(|clip| self.spoken(clip)) {
            return Some(Step::Item(item));
        }
        let mut item: Map<String, Value> = serde_json::from_slice(&self.shown).ok()?;
        item.retain(|key, _| !matches!(key.as_str(), "object" | "status"));
        if item.get("type").is_some_and(|kind| kind == "message") {
            let parts = item.get("content")?.as_array()?;
            let parts: Vec<Value> = parts.iter().filter_map(|part| self.part(part)).collect();
            if parts.is_empty() {
                return None;
            }
            item.insert("content".to_owned(), Value::Array(parts));
        }
        Some(Step::Item(Value::Object(item)))
    }

    /// The item as the client made it.
    fn spoken(&self, clip: &Bytes) -> Option<Value> {
        let mut made: Value = serde_json::from_slice(clip).ok()?;
        let item = made.get_mut("item")?.as_object_mut()?;
        item.insert("id".to_owned(), json!(self.id));
        Some(Value::Object(std::mem::take(item)))
    }

    /// Audio as the words that stand for it: a session cannot be given voices (realtime-protocol section 4.5).
    fn part(&self, part: &Value) -> Option<Value> {
        let text = |key: &str| part.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        match part.get("type").and_then(Value::as_str)? {
            "input_audio" => {
                let words = self.words.as_deref().filter(|words| !words.is_empty()).or(text("transcript"))?;
                Some(json!({"type": "input_text", "text": words}))
            }
            "output_audio" | "audio" => {
                let words = text("transcript")?;
                let words = match self.cut_ms {
                    None => words.to_owned(),
                    Some(ms) => cut(words, ms)?,
                };
                Some(json!({"type": "output_text", "text": words}))
            }
            "text" => Some(json!({"type": "output_text", "text": text("text")?})),
            _ => Some(part.clone()),
        }
    }
}

/// The newest of what a client wishes are kept, so many and so large: a service answers within a round trip.
fn bound_unconfirmed(wishes: &mut VecDeque<Bytes>) {
    let mut bytes: usize = wishes.iter().map(Bytes::len).sum();
    while wishes.len() > UNCONFIRMED || bytes > MOST_ITEMS * 16 {
        bytes -= wishes.pop_front().map_or(0, |text| text.len());
    }
}

/// The words of so much voice; `None`: not one.
fn cut(words: &str, heard_ms: u64) -> Option<String> {
    let heard = usize::try_from(heard_ms * PACE / 1_000).unwrap_or(usize::MAX);
    if heard >= words.chars().count() {
        return Some(words.to_owned());
    }
    let begin: String = words.chars().take(heard).collect();
    let (whole, _) = begin.rsplit_once(char::is_whitespace)?;
    Some(format!("{}{CUT_MARK}", whole.trim_end()))
}
