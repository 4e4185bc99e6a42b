//! The conversation as we know it, so that a session that begins can be told what was said in those before.
//!
//! Holds plain items in their order: who spoke which words, and how much of the model's words was heard. Reconnect, rotation
//! and hand-over all read it ([`Mirror::retell`]). Sends nothing, and knows no session but the one that runs.
use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::upstream::History;

/// What a model says in a second, characters, while nothing was measured in this call.
const USUAL_PACE: u64 = 15;
/// Put behind words of which the end was not heard. Where that was is an estimate by the position in the audio.
const CUT_MARK: &str = " ... [interrupted about here]";
/// A token of text, characters (realtime-protocol section 13).
const CHARS_PER_TOKEN: usize = 4;
/// Tokens of an item beside its words.
const ITEM_TOKENS: usize = 8;
/// A token of the caller's audio, ms.
const MS_PER_TOKEN: u64 = 100;
/// Items at the beginning of a long conversation get this share of the budget, in percent: names and reasons stand there.
const HEAD_PERCENT: usize = 20;
/// What is told in words is no longer than this, bytes; the newest line is told in any case.
const LONGEST_DIALOGUE: usize = 16 << 10;
/// What stands for a turn that nobody has written down.
const UNWRITTEN: &str = "[spoken; not written down]";
/// The mirror itself forgets from the middle when it holds so many times what is told again.
const SLACK: usize = 2;

/// One turn, answer, tool call or result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    /// The service's id; empty: it has not said one.
    id: String,
    /// The id that the client was told.
    shown: String,
    /// The running session made it, so that it can be truncated there.
    here: bool,
    /// The running session was told of it.
    told: bool,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// The caller spoke: positions in all audio written.
    Spoken {
        from: u64,
        to: u64,
        /// How long, ms.
        ms: u64,
        /// Its words; none: not known yet, or never.
        words: Option<String>,
        /// Kept where nobody writes the words down.
        audio: Option<Bytes>,
        /// The newest reply that answers it, or would.
        reply: Option<String>,
        answered: bool,
    },
    /// The caller typed.
    Typed { text: String },
    /// The model spoke.
    Said {
        response: String,
        words: String,
        /// The words are complete.
        whole: bool,
        audio_ms: u64,
        /// Heard of it, where it was cut off.
        heard_ms: Option<u64>,
    },
    /// The model called a tool.
    Called { response: String, call_id: String, name: String, arguments: String },
    /// What came of it.
    Result { call_id: String, output: String },
    /// So many items stood here.
    Gap { items: usize },
}

/// A step of telling a new session what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retell {
    /// An item, under this id if it has one.
    Item {
        /// The id that it had.
        id: Option<String>,
        /// What it is.
        item: History,
    },
    /// A turn whose audio must be heard again and committed.
    Turn {
        /// Its id until the service says another.
        id: String,
        /// Where its audio begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// Audio that is lost.
    Lost {
        /// Where it begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
}

impl Retell {
    /// Characters of text in it.
    pub fn chars(&self) -> usize {
        let Self::Item { item, .. } = self else { return 0 };
        match item {
            History::User { text } | History::Assistant { text } | History::Note { text } => text.len(),
            History::Call { name, arguments, .. } => name.len() + arguments.len(),
            History::Result { output, .. } => output.len(),
            History::UserAudio { .. } => 0,
        }
    }

    fn id(&self) -> Option<&String> {
        match self {
            Self::Item { id, .. } => id.as_ref(),
            Self::Turn { id, .. } => Some(id),
            Self::Lost { .. } => None,
        }
    }
}

/// The conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mirror {
    items: VecDeque<Item>,
    /// Tokens that a new session is told at most.
    budget: usize,
    /// Somebody writes down what the caller says.
    transcribed: bool,
    /// Audio of turns that nobody writes down, bytes, at most.
    most_audio: usize,
    /// Ids that we give ourselves.
    own: u64,
    /// Characters and milliseconds of answers that are complete.
    paced: (u64, u64),
}

impl Mirror {
    /// An empty one. `budget`: tokens that a new session is told; `transcribed`: somebody writes down what the caller says;
    /// else up to `most_audio` bytes of turns are kept.
    pub fn new(budget: usize, transcribed: bool, most_audio: usize) -> Self {
        Self { items: VecDeque::new(), budget, transcribed, most_audio, own: 0, paced: (0, 0) }
    }

    fn push(&mut self, id: String, what: What) {
        self.items.push_back(Item { shown: id.clone(), id, here: true, told: false, what });
        self.bound();
    }

    fn find(&mut self, id: &str) -> Option<&mut Item> {
        self.items.iter_mut().rev().find(|item| !id.is_empty() && item.id == id)
    }

    /// The caller's turn, from one position to another, `ms` long. `id`: the service's, or none yet; returns what it goes by
    /// until then. `audio` gives the turn's audio, which is kept where nobody writes it down.
    pub fn spoken(
        &mut self,
        id: Option<&str>,
        (from, to): (u64, u64),
        ms: u64,
        audio: impl FnOnce() -> Bytes,
    ) -> String {
        let id = id.map_or_else(|| self.own_id(), str::to_owned);
        if self.find(&id).is_none() {
            let audio = (!self.transcribed).then(audio);
            self.push(id.clone(), What::Spoken { from, to, ms, words: None, audio, reply: None, answered: false });
            self.bound_audio();
        }
        id
    }

    fn own_id(&mut self) -> String {
        self.own += 1;
        format!("turn_{}", self.own)
    }

    /// The service calls a turn otherwise from now on; the client goes on to hear of it by the name that it was told first.
    pub fn rename(&mut self, old: &str, new: &str) {
        if let Some(item) = self.find(old) {
            // Our own names were told to nobody.
            if item.shown.starts_with("turn_") {
                item.shown = new.to_owned();
            }
            (item.id, item.here) = (new.to_owned(), true);
        }
    }

    /// A turn that the service would not take.
    pub fn remove(&mut self, id: &str) {
        self.items.retain(|item| item.id != id);
    }

    /// The caller's words, complete or `failed` to be had. What the client is told of it: the id that it knows, if it has not
    /// been told already.
    pub fn heard(&mut self, id: &str, text: &str) -> Option<String> {
        let Some(item) = self.find(id) else { return Some(id.to_owned()) };
        let shown = item.shown.clone();
        match &mut item.what {
            What::Spoken { words, .. } if words.is_none() => *words = Some(text.to_owned()),
            _ => return None,
        }
        Some(shown)
    }

    /// Whether pieces of the caller's words go to the client: not when it had them before, under another id.
    pub fn tells_pieces(&mut self, id: &str) -> bool {
        self.find(id).is_none_or(|item| item.shown == item.id)
    }

    /// The caller typed.
    pub fn typed(&mut self, text: &str) {
        self.push(String::new(), What::Typed { text: text.to_owned() });
    }

    /// An answer's item; one without a name is none that could be told again.
    fn said(&mut self, response: &str, id: &str) -> Option<&mut Item> {
        if !id.is_empty() && self.find(id).is_none() {
            let (response, words) = (response.to_owned(), String::new());
            let what = What::Said { response, words, whole: false, audio_ms: 0, heard_ms: None };
            self.push(id.to_owned(), what);
        }
        self.find(id)
    }

    /// Words of the model: more of them, or with `last` all.
    pub fn said_words(&mut self, response: &str, id: &str, text: &str, last: bool) {
        if let Some(Item { what: What::Said { words, whole, .. }, .. }) = self.said(response, id) {
            if last {
                words.clear();
            }
            words.push_str(text);
            *whole |= last;
        }
    }

    /// All words of an answer that was cut off; of one that is not known, nothing was heard.
    pub fn said_rest(&mut self, id: &str, text: &str) {
        if let Some(Item { what: What::Said { words, whole, .. }, .. }) = self.find(id) {
            (*words, *whole) = (text.to_owned(), true);
        }
    }

    /// A reply was cut off: of what has no sound yet nothing was heard.
    pub fn cut_silent(&mut self, of: &str) {
        for item in &mut self.items {
            if let What::Said { response, audio_ms: 0, heard_ms, .. } = &mut item.what
                && response == of
            {
                *heard_ms = Some(0);
            }
        }
    }

    /// So much more of the model's voice.
    pub fn said_audio(&mut self, response: &str, id: &str, ms: u64) {
        if let Some(Item { what: What::Said { audio_ms, .. }, .. }) = self.said(response, id) {
            *audio_ms += ms;
        }
    }

    /// The model called a tool.
    pub fn called(&mut self, response: &str, call_id: &str, name: &str, arguments: &str) {
        let (response, call_id) = (response.to_owned(), call_id.to_owned());
        let what = What::Called { response, call_id, name: name.to_owned(), arguments: arguments.to_owned() };
        self.push(String::new(), what);
    }

    /// What came of it.
    pub fn result(&mut self, call_id: &str, output: &str) {
        self.push(String::new(), What::Result { call_id: call_id.to_owned(), output: output.to_owned() });
    }

    /// A reply begins: it answers all that was said before it and is not answered.
    pub fn replies(&mut self, response: &str) {
        for item in &mut self.items {
            if let What::Spoken { reply, answered: false, .. } = &mut item.what {
                *reply = Some(response.to_owned());
            }
        }
    }

    /// A reply is complete, or was heard: what was said before it is answered, and what it said tells how fast the model speaks.
    pub fn answered(&mut self, response: &str) {
        for item in &mut self.items {
            match &mut item.what {
                What::Spoken { reply, answered, .. } if reply.as_deref() == Some(response) => *answered = true,
                What::Said { response: its, words, whole: true, audio_ms, heard_ms: None } if its == response => {
                    self.paced.0 += words.chars().count() as u64;
                    self.paced.1 += *audio_ms;
                }
                _ => {}
            }
        }
    }

    /// Only so much of an item was heard; `None`: of its audio that came. Returns what stands in the running session in its
    /// place, if it does not stand there as the model said it.
    pub fn cut(&mut self, id: &str, heard: Option<u64>) -> Option<Cut> {
        let pace = self.pace();
        let at = self.items.iter().rposition(|item| item.shown == id)?;
        let stands = |item: &&Item| !item.id.is_empty() && (item.here || item.told);
        let before = self.items.iter().take(at).rev().find(stands).map(|item| item.id.clone());
        self.own += 1;
        let new = format!("cut_{}", self.own);
        let item = self.items.get_mut(at)?;
        if let What::Said { audio_ms, heard_ms, .. } = &mut item.what {
            let heard = heard.unwrap_or(*audio_ms).min(*audio_ms);
            *heard_ms = Some(heard_ms.map_or(heard, |before| before.min(heard)));
        }
        if item.here {
            return None;
        }
        if !item.told {
            return Some(Cut::Nothing);
        }
        let words = item.words(pace).filter(|words| !words.is_empty());
        let old = std::mem::replace(&mut item.id, new.clone());
        item.told = words.is_some();
        Some(Cut::Replace { old, before, new: words.map(|words| (new, words)) })
    }

    /// A reply that nobody heard is forgotten. The ids of its items that have words, as the client was told them.
    pub fn unsaid(&mut self, lost: &str) -> Vec<String> {
        let mut told = Vec::new();
        self.items.retain(|item| match &item.what {
            What::Said { response, words, .. } if response == lost => {
                if !words.is_empty() {
                    told.push(item.shown.clone());
                }
                false
            }
            _ => true,
        });
        told
    }

    /// Whether this reply has called a tool.
    pub fn has_called(&self, of: &str) -> bool {
        self.items.iter().any(|item| matches!(&item.what, What::Called { response, .. } if response == of))
    }

    /// The position from which audio is needed still: of turns that are not answered or not written down.
    pub fn needs_from(&self) -> Option<u64> {
        let needed = self.items.iter().filter_map(|item| match &item.what {
            What::Spoken { from, words, audio, answered, .. } => {
                let waits = audio.is_none() && (words.is_none() || !answered);
                waits.then_some(*from)
            }
            _ => None,
        });
        needed.min()
    }

    /// Somebody still writes down what the caller said.
    pub fn waits_for_words(&self) -> bool {
        let waits = |item: &Item| matches!(&item.what, What::Spoken { words: None, audio: None, .. });
        self.items.iter().any(waits)
    }

    /// What a turn's words would be worth is not waited for any longer: they will not come.
    pub fn give_up_words(&mut self) {
        for item in &mut self.items {
            if let What::Spoken { words: words @ None, audio: None, answered: true, .. } = &mut item.what {
                *words = Some(String::new());
            }
        }
    }

    fn pace(&self) -> u64 {
        let (chars, ms) = self.paced;
        if ms >= 1_000 { (chars * 1_000 / ms).clamp(4, 60) } else { USUAL_PACE }
    }

    /// What a new session is told, the oldest first. `kept_from`: where the audio that is kept begins. From here on no item
    /// stands in the running session as it was made.
    pub fn retell(&mut self, kept_from: u64) -> Vec<Retell> {
        let pace = self.pace();
        self.bound();
        let dropped = self.middle(self.budget);
        let mut told = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            if dropped.as_ref().is_some_and(|middle| middle.start == index) {
                told.push(note(dropped.as_ref().map_or(0, ExactSizeIterator::len)));
            }
            if !dropped.as_ref().is_some_and(|middle| middle.contains(&index)) {
                told.extend(item.retell(pace, kept_from));
            }
        }
        let names: std::collections::HashSet<&String> = told.iter().filter_map(Retell::id).collect();
        for item in &mut self.items {
            (item.here, item.told) = (false, names.contains(&item.id));
            // What is lost is said once.
            if let What::Spoken { from, words: words @ None, audio: None, .. } = &mut item.what
                && *from < kept_from
            {
                *words = Some(String::new());
            }
        }
        told
    }

    /// The last turns in words, the oldest first, a line each: what the caller said, and what they heard of the answers.
    pub fn dialogue(&self, turns: usize) -> String {
        let pace = self.pace();
        let (mut lines, mut left, mut bytes) = (VecDeque::new(), turns, 0);
        for item in self.items.iter().rev() {
            if left == 0 {
                break;
            }
            let (who, words) = match &item.what {
                What::Spoken { words: None, .. } => ("Caller", UNWRITTEN.to_owned()),
                What::Spoken { words: Some(words), .. } | What::Typed { text: words } => ("Caller", words.clone()),
                What::Said { .. } => ("Agent", item.words(pace).unwrap_or_default()),
                What::Called { .. } | What::Result { .. } | What::Gap { .. } => continue,
            };
            let words = words.trim();
            if words.is_empty() {
                continue;
            }
            bytes += words.len();
            if bytes > LONGEST_DIALOGUE && !lines.is_empty() {
                break;
            }
            lines.push_front(format!("{who}: {words}\n"));
            left -= usize::from(who == "Caller");
        }
        lines.into_iter().collect()
    }

    /// The items in the middle that are over a budget; calls of tools and their results stay together.
    fn middle(&self, budget: usize) -> Option<std::ops::Range<usize>> {
        let sizes: Vec<usize> = self.items.iter().map(Item::tokens).collect();
        if sizes.iter().sum::<usize>() <= budget {
            return None;
        }
        let mut left = budget * HEAD_PERCENT / 100;
        let mut fits = |size: &&usize| left.checked_sub(**size).inspect(|rest| left = *rest).is_some();
        let mut head = sizes.iter().take_while(&mut fits).count();
        let mut left = budget - budget * HEAD_PERCENT / 100;
        let mut fits = |size: &&usize| left.checked_sub(**size).inspect(|rest| left = *rest).is_some();
        // The newest item always stays.
        let tail = sizes.iter().rev().take_while(&mut fits).count().max(1);
        let mut end = sizes.len() - tail;
        while self.items.get(end).is_some_and(|item| matches!(item.what, What::Result { .. })) && end + 1 < sizes.len()
        {
            end += 1;
        }
        head = head.min(end);
        while head > 0 && self.items.get(head - 1).is_some_and(|item| matches!(item.what, What::Called { .. })) {
            head -= 1;
        }
        (head < end).then_some(head..end)
    }

    /// The mirror of a call that lasts for days is no larger than it needs to be.
    fn bound(&mut self) {
        let tokens: usize = self.items.iter().map(Item::tokens).sum();
        if tokens <= self.budget * SLACK {
            return;
        }
        let Some(middle) = self.middle(self.budget) else { return };
        let earlier = |item: &Item| if let What::Gap { items } = item.what { items } else { 1 };
        let items = self.items.range(middle.clone()).map(earlier).sum();
        self.items.drain(middle.clone());
        let gap = Item { id: String::new(), shown: String::new(), here: false, told: false, what: What::Gap { items } };
        self.items.insert(middle.start, gap);
    }

    fn bound_audio(&mut self) {
        let mut left = self.most_audio;
        for item in self.items.iter_mut().rev() {
            if let What::Spoken { audio: Some(kept), .. } = &mut item.what {
                match left.checked_sub(kept.len()) {
                    Some(rest) => left = rest,
                    None => *kept = Bytes::new(),
                }
            }
        }
    }
}

/// What to do in a session that did not make the item that is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// It knows nothing of it.
    Nothing,
    /// It was told the item's words: others go in their place.
    Replace {
        /// The item that stands there now.
        old: String,
        /// The item before it.
        before: Option<String>,
        /// The item's new id, and what is left of it; none: nothing.
        new: Option<(String, String)>,
    },
}

impl Item {
    fn tokens(&self) -> usize {
        let text = |chars: usize| chars.div_ceil(CHARS_PER_TOKEN);
        ITEM_TOKENS
            + match &self.what {
                What::Spoken { words: Some(words), .. } if !words.is_empty() => text(words.len()),
                What::Spoken { ms, .. } => usize::try_from(ms / MS_PER_TOKEN).unwrap_or(usize::MAX / 2),
                What::Said { words, .. } => text(words.len()),
                What::Typed { text: words } | What::Result { output: words, .. } => text(words.len()),
                What::Called { name, arguments, .. } => text(name.len() + arguments.len()),
                What::Gap { .. } => text(60),
            }
    }

    /// What the caller heard of the model's words, by the position in the audio; `None`: not an answer.
    fn words(&self, pace: u64) -> Option<String> {
        let What::Said { words, whole, audio_ms, heard_ms, .. } = &self.what else { return None };
        let all = words.chars().count() as u64;
        let heard = match (heard_ms, whole) {
            (None, _) => all,
            (Some(heard), true) if *audio_ms > 0 => all * heard / *audio_ms,
            // Words run ahead of the voice; how far, nobody says.
            (Some(heard), _) => heard * pace / 1_000,
        };
        if heard >= all {
            return Some(words.clone());
        }
        let cut: String = words.chars().take(usize::try_from(heard).unwrap_or(usize::MAX)).collect();
        // Whole words only.
        let cut = cut.rsplit_once(char::is_whitespace).map_or("", |(words, _)| words.trim_end());
        Some(if cut.is_empty() { String::new() } else { format!("{cut}{CUT_MARK}") })
    }

    fn retell(&self, pace: u64, kept_from: u64) -> Vec<Retell> {
        let id = (!self.id.is_empty()).then(|| self.id.clone());
        let item = |item| vec![Retell::Item { id: id.clone(), item }];
        match &self.what {
            What::Spoken { audio: Some(audio), words: None, .. } if !audio.is_empty() => {
                item(History::UserAudio { audio: audio.clone() })
            }
            What::Spoken { from, to, words, answered, audio: None, .. }
                if (words.is_none() || !answered) && *from >= kept_from =>
            {
                vec![Retell::Turn { id: self.id.clone(), from: *from, to: *to }]
            }
            What::Spoken { words: Some(words), .. } if words.is_empty() => Vec::new(), // nothing was said, or it is not known
            What::Spoken { words: Some(words), .. } => item(History::User { text: words.clone() }),
            // Its answer says what it was about.
            What::Spoken { words: None, answered: true, .. } => Vec::new(),
            What::Spoken { from, to, words: None, .. } => vec![Retell::Lost { from: *from, to: *to }],
            What::Typed { text } => item(History::User { text: text.clone() }),
            What::Said { .. } => match self.words(pace) {
                Some(words) if !words.is_empty() => item(History::Assistant { text: words }),
                _ => Vec::new(),
            },
            What::Called { call_id, name, arguments, .. } => {
                item(History::Call { call_id: call_id.clone(), name: name.clone(), arguments: arguments.clone() })
            }
            What::Result { call_id, output } => {
                item(History::Result { call_id: call_id.clone(), output: output.clone() })
            }
            What::Gap { items } => vec![note(*items)],
        }
    }
}

fn note(items: usize) -> Retell {
    let text = format!("[{items} earlier parts of this conversation are left out here.]");
    Retell::Item { id: None, item: History::Note { text } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Mirror {
        Mirror::new(1_000, true, 0)
    }

    fn no_audio() -> Bytes {
        Bytes::new()
    }

    fn told(mirror: &mut Mirror, kept_from: u64) -> Vec<String> {
        let steps = mirror.retell(kept_from).into_iter().map(|step| match step {
            Retell::Item { id, item } => {
                let text = match item {
                    History::User { text } => format!("user {text}"),
                    History::UserAudio { audio } => format!("audio {}", audio.len()),
                    History::Assistant { text } => format!("assistant {text}"),
                    History::Call { name, .. } => format!("call {name}"),
                    History::Result { output, .. } => format!("result {output}"),
                    History::Note { text } => format!("note {text}"),
                };
                format!("{}: {text}", id.unwrap_or_default())
            }
            Retell::Turn { id, from, to } => format!("{id}: turn {from}..{to}"),
            Retell::Lost { from, to } => format!("lost {from}..{to}"),
        });
        steps.collect()
    }

    #[test]
    fn a_conversation_is_told_in_its_order_with_its_ids() {
        let mut mirror = mirror();
        mirror.spoken(Some("u1"), (0, 100), 2, no_audio);
        mirror.replies("r1");
        mirror.said_words("r1", "a1", "hello ", false);
        mirror.said_audio("r1", "a1", 400);
        mirror.said_words("r1", "a1", "hello there", true);
        mirror.called("r1", "c1", "look", "{}");
        mirror.answered("r1");
        assert_eq!(mirror.needs_from(), Some(0), "answered, but not written down");
        assert_eq!(mirror.heard("u1", "hi").as_deref(), Some("u1"));
        assert_eq!(mirror.needs_from(), None);
        mirror.result("c1", "42");
        mirror.typed("and then?");
        let want = ["u1: user hi", "a1: assistant hello there", ": call look", ": result 42", ": user and then?"];
        assert_eq!(told(&mut mirror, 0), want);
    }

    #[test]
    fn a_turn_that_is_not_answered_or_not_written_down_is_spoken_again() {
        let mut mirror = mirror();
        mirror.spoken(Some("u1"), (100, 200), 2, no_audio);
        mirror.heard("u1", "hi");
        assert_eq!(told(&mut mirror, 100), ["u1: turn 100..200"], "the model shall hear what it answers");
        assert_eq!(told(&mut mirror, 150), ["u1: user hi"], "or at least read it");
        mirror.rename("u1", "u1b");
        assert_eq!(mirror.heard("u1b", "hi"), None, "the client has it");
        mirror.answered("r0");
        assert_eq!(told(&mut mirror, 100), ["u1b: turn 100..200"], "by a reply that began before");
        mirror.replies("r1");
        mirror.answered("r1");
        assert_eq!(told(&mut mirror, 100), ["u1b: user hi"]);
        let own = mirror.spoken(None, (200, 300), 2, no_audio);
        assert_eq!(told(&mut mirror, 200).last().map(String::as_str), Some("turn_1: turn 200..300"));
        mirror.rename(&own, "u2");
        assert!(mirror.tells_pieces("u2"), "nobody was told our own name");
        assert!(!mirror.tells_pieces("u1b"), "they came before");
        assert_eq!(mirror.heard("u2", "there").as_deref(), Some("u2"));
        mirror.spoken(Some("u3"), (300, 400), 2, no_audio);
        assert_eq!(told(&mut mirror, 350).last().map(String::as_str), Some("lost 300..400"));
        assert!(!told(&mut mirror, 350).contains(&"lost 300..400".to_owned()), "said once");
    }

    #[test]
    fn the_last_turns_are_told_in_words_as_they_were_heard() {
        let mut mirror = mirror();
        mirror.typed("first");
        mirror.spoken(Some("u1"), (0, 100), 2, no_audio);
        mirror.heard("u1", "hi ");
        mirror.said_audio("r1", "a1", 1_000);
        mirror.said_words("r1", "a1", "one two three four", true);
        mirror.cut("a1", Some(500));
        mirror.called("r1", "c1", "look", "{}");
        mirror.result("c1", "42");
        mirror.spoken(Some("u2"), (100, 200), 2, no_audio);
        let last = "Caller: hi\nAgent: one two ... [interrupted about here]\nCaller: [spoken; not written down]\n";
        assert_eq!(mirror.dialogue(2), last);
        assert_eq!(mirror.dialogue(9), format!("Caller: first\n{last}"));
        assert_eq!(mirror.dialogue(0), "");
        let mut long = Mirror::new(1 << 20, true, 0);
        (0..3).for_each(|n| long.typed(&format!("{n}{}", "x".repeat(LONGEST_DIALOGUE / 2))));
        assert!(long.dialogue(9).starts_with("Caller: 2") && long.dialogue(9).len() > LONGEST_DIALOGUE / 2);
        long.typed(&"y".repeat(LONGEST_DIALOGUE + 1));
        assert!(long.dialogue(9).starts_with("Caller: y"));
    }

    #[test]
    fn what_had_no_sound_was_not_heard() {
        let mut mirror = mirror();
        mirror.said_words("r1", "a1", "one ", false);
        mirror.said_audio("r1", "", 20);
        mirror.cut_silent("r1");
        mirror.said_rest("a1", "one two");
        mirror.said_rest("a2", "three");
        assert_eq!(told(&mut mirror, 0), [""; 0]);
    }

    #[test]
    fn where_nobody_writes_down_the_audio_itself_is_told() {
        let mut mirror = Mirror::new(1_000, false, 250);
        for n in 0..3u64 {
            mirror.spoken(Some(&format!("u{n}")), (n * 100, n * 100 + 100), 2, || Bytes::from(vec![0; 100]));
        }
        mirror.replies("r");
        mirror.answered("r");
        assert_eq!(mirror.needs_from(), None);
        assert_eq!(told(&mut mirror, 999), ["u1: audio 100", "u2: audio 100"], "bounded");
    }

    #[test]
    fn words_are_cut_where_the_voice_was() {
        for (heard, whole, want) in [
            (0, true, ""),
            (500, true, "one two ... [interrupted about here]"),
            (999, true, "one two three ... [interrupted about here]"),
            (1_000, true, "one two three four"),
            (600, false, "one two ... [interrupted about here]"),
        ] {
            let mut mirror = mirror();
            mirror.said_audio("r1", "a1", 1_000);
            mirror.said_words("r1", "a1", "one two three four", whole);
            assert_eq!(mirror.cut("a1", Some(heard)), None, "the session itself truncates it");
            let want = (!want.is_empty()).then(|| format!("a1: assistant {want}"));
            assert_eq!(told(&mut mirror, 0), want.into_iter().collect::<Vec<_>>(), "{heard} {whole}");
        }
    }

    #[test]
    fn what_was_told_again_is_cut_by_telling_it_anew() {
        let mut mirror = mirror();
        mirror.spoken(Some("u1"), (0, 1), 2, no_audio);
        mirror.heard("u1", "hi");
        mirror.said_audio("r1", "a1", 1_000);
        mirror.said_words("r1", "a1", "one two three four", true);
        mirror.answered("r1");
        mirror.retell(0);
        let words = |words: &str| Some(words.to_owned());
        assert_eq!(
            mirror.cut("a1", Some(500)),
            Some(Cut::Replace {
                old: "a1".to_owned(),
                before: words("u1"),
                new: Some(("cut_1".to_owned(), "one two ... [interrupted about here]".to_owned()))
            })
        );
        let gone = Cut::Replace { old: "cut_1".to_owned(), before: words("u1"), new: None };
        assert_eq!(mirror.cut("a1", Some(0)), Some(gone), "by the name that it had first");
        assert_eq!(mirror.cut("a1", Some(0)), Some(Cut::Nothing));
        assert_eq!(mirror.cut("nobody", Some(0)), None);
    }

    #[test]
    fn a_reply_that_nobody_heard_is_forgotten() {
        let mut mirror = mirror();
        mirror.said_words("r1", "a1", "one", false);
        mirror.said_audio("r1", "a2", 100);
        mirror.called("r2", "c1", "look", "{}");
        assert!(mirror.has_called("r2") && !mirror.has_called("r1"));
        assert_eq!(mirror.unsaid("r1"), ["a1"]);
        assert_eq!(told(&mut mirror, 0), [": call look"]);
    }

    #[test]
    fn long_conversations_lose_their_middle_but_no_result_its_call() {
        let mut mirror = Mirror::new(400, true, 0);
        for n in 0..100 {
            mirror.typed(&format!("{n:0>36}")); // 9 tokens and 8
            if n == 83 {
                mirror.called("r", "c", "look", "{}");
                mirror.result("c", "42");
            }
        }
        let told = told(&mut mirror, 0);
        let tokens = told.len() * 17;
        assert!((300..500).contains(&tokens), "{tokens}");
        assert!(told[0].ends_with("00") && told[1].ends_with("01"), "the beginning stays: {told:?}");
        assert!(told.iter().filter(|step| step.contains("left out")).count() >= 1);
        assert!(told.last().unwrap().ends_with("99"));
        let calls = told.iter().filter(|step| step.contains("call look")).count();
        assert_eq!(calls, told.iter().filter(|step| step.contains("result 42")).count());
        assert!(mirror.items.len() < 60, "{} items are kept", mirror.items.len());
    }
}
