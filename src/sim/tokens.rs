//! The token model: what a conversation weighs, what of it is cached, and what must go when it is too heavy.
//!
//! The service's rules: a token for 100 ms of the caller, one for 50 ms of the model, the whole conversation again for
//! every response. Text is counted as four characters a token, and the cache as whole blocks of the prefix that this and
//! the last response have in common: both our guesses.
use serde_json::{Value, json};

/// Tokens by modality.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) text: u64,
    pub(super) audio: u64,
}

impl Tokens {
    pub(super) fn total(self) -> u64 {
        self.text + self.audio
    }
}

impl std::ops::AddAssign for Tokens {
    fn add_assign(&mut self, more: Self) {
        self.text += more.text;
        self.audio += more.audio;
    }
}

impl std::iter::Sum for Tokens {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |mut sum, more| {
            sum += more;
            sum
        })
    }
}

/// Tokens of a text: about four characters each.
pub(super) fn of_text(text: &str) -> u64 {
    of_chars(text.chars().count() as u64)
}

/// Tokens of a text of so many characters.
pub(super) fn of_chars(chars: u64) -> u64 {
    chars.div_ceil(4)
}

/// Tokens of the caller's audio, one for 100 ms.
pub(super) fn of_user_audio(ms: u64) -> u64 {
    ms / 100
}

/// Tokens of the model's audio, one for 50 ms.
pub(super) fn of_reply_audio(ms: u64) -> u64 {
    ms / 50
}

/// One piece of a context: the instructions with the tools, or an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The item's id; empty for the instructions.
    pub(super) id: String,
    /// Changes when the content does.
    pub(super) version: u64,
    pub(super) tokens: Tokens,
}

/// How a session wants its context cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Truncation {
    /// The oldest items go, as few as possible.
    Auto,
    /// A context that is too long is an error.
    Disabled,
    /// Items go until this share of the limit is left, so that the next turns find their prefix in the cache.
    Retain {
        /// 0 to 1.
        ratio: f64,
        /// A limit of the session's own on what follows the instructions.
        post_instructions: Option<u64>,
    },
}

/// How many of the oldest items must leave a context so that it fits; `Err`: its tokens, when nothing may leave.
/// `entries` begins with the instructions; `limit` is for all of them.
pub(super) fn overflow(entries: &[Entry], limit: u64, truncation: Truncation) -> Result<usize, u64> {
    let (head, items) = entries.split_first().map_or((0, entries), |(head, items)| (head.tokens.total(), items));
    let weight: u64 = items.iter().map(|e| e.tokens.total()).sum();
    let room = limit.saturating_sub(head);
    let (most, aim) = match truncation {
        Truncation::Auto => (room, room),
        Truncation::Disabled if weight > room => return Err(head + weight),
        Truncation::Disabled => return Ok(0),
        Truncation::Retain { ratio, post_instructions } => {
            let most = post_instructions.unwrap_or(room).min(room);
            (most, share(most, ratio))
        }
    };
    if weight <= most {
        return Ok(0);
    }
    let mut left = weight;
    let gone = items.iter().take_while(|entry| {
        let over = left > aim;
        left -= if over { entry.tokens.total() } else { 0 };
        over
    });
    // The newest item is what is to be answered: it stays whatever it weighs.
    Ok(gone.count().min(items.len().saturating_sub(1)))
}

fn share(whole: u64, ratio: f64) -> u64 {
    // Thousandths keep this in integers; ratio is 0 to 1 by validation.
    let thousandths = (0..=1_000u64).rev().find(|t| *t as f64 <= ratio * 1_000.0 + 1e-6).unwrap_or(0);
    whole / 1_000 * thousandths + whole % 1_000 * thousandths / 1_000
}

/// What a response's input weighs and what of it was cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct InputUsage {
    pub(super) all: Tokens,
    pub(super) cached: Tokens,
}

/// What the model has in its memory from the last response of this session.
#[derive(Debug, Default)]
pub(super) struct Cache(Vec<Entry>);

impl Cache {
    /// Weighs `context` against what is cached, in whole blocks.
    pub(super) fn weigh(&self, context: &[Entry], block: u64) -> InputUsage {
        let same = self.0.iter().zip(context).take_while(|(seen, entry)| seen == entry).map(|(_, entry)| entry.tokens);
        let block = block.max(1);
        let same: Vec<Tokens> = same.collect();
        let mut left = same.iter().map(|t| t.total()).sum::<u64>() / block * block;
        let mut cached = Tokens::default();
        for tokens in same {
            let text = tokens.text.min(left);
            let audio = tokens.audio.min(left - text);
            left -= text + audio;
            cached += Tokens { text, audio };
        }
        InputUsage { all: context.iter().map(|e| e.tokens).sum(), cached }
    }

    /// Remembers what a response has read and written.
    pub(super) fn remember(&mut self, context: Vec<Entry>) {
        self.0 = context;
    }
}

/// The `usage` object of `response.done`.
pub(super) fn usage_json(input: InputUsage, output: Tokens) -> Value {
    json!({
        "total_tokens": input.all.total() + output.total(),
        "input_tokens": input.all.total(),
        "output_tokens": output.total(),
        "input_token_details": {
            "text_tokens": input.all.text,
            "audio_tokens": input.all.audio,
            "image_tokens": 0,
            "cached_tokens": input.cached.total(),
            "cached_tokens_details": {
                "text_tokens": input.cached.text,
                "audio_tokens": input.cached.audio,
                "image_tokens": 0,
            },
        },
        "output_token_details": { "text_tokens": output.text, "audio_tokens": output.audio },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, text: u64, audio: u64) -> Entry {
        Entry { id: id.to_owned(), version: 0, tokens: Tokens { text, audio } }
    }

    #[test]
    fn the_services_own_figures() {
        assert_eq!(of_user_audio(1_630), 16, "captured: 1.63 s of speech were 16 tokens");
        assert_eq!(of_user_audio(60_000), 600);
        assert_eq!(of_reply_audio(60_000), 1_200);
        assert_eq!(of_text("Hello"), 2);
        assert_eq!(of_text(""), 0);
    }

    #[test]
    fn only_the_common_prefix_is_cached_in_whole_blocks() {
        let mut cache = Cache::default();
        let first = vec![entry("", 100, 0), entry("a", 0, 30)];
        assert_eq!(cache.weigh(&first, 64).cached, Tokens::default(), "nothing was there before");
        cache.remember(first);
        let grown = [entry("", 100, 0), entry("a", 0, 30), entry("b", 0, 50)];
        let usage = cache.weigh(&grown, 64);
        assert_eq!(usage.all, Tokens { text: 100, audio: 80 });
        assert_eq!(usage.cached, Tokens { text: 100, audio: 28 }, "128 of the 130 that are the same");
        let cut = [entry("", 100, 0), Entry { version: 1, ..entry("a", 0, 10) }, entry("b", 0, 50)];
        assert_eq!(cache.weigh(&cut, 64).cached, Tokens { text: 64, audio: 0 }, "a truncated item ends the prefix");
        let shifted = [entry("", 100, 0), entry("b", 0, 50)];
        assert_eq!(cache.weigh(&shifted, 64).cached, Tokens { text: 64, audio: 0 });
    }

    #[test]
    fn what_must_leave_a_context() {
        let context = [entry("", 100, 0), entry("a", 0, 50), entry("b", 0, 50), entry("c", 0, 50)];
        let retain = |ratio, post| Truncation::Retain { ratio, post_instructions: post };
        for (name, limit, truncation, want) in [
            ("fits", 250, Truncation::Auto, Ok(0)),
            ("one too many", 249, Truncation::Auto, Ok(1)),
            ("two too many", 199, Truncation::Auto, Ok(2)),
            ("the newest stays", 10, Truncation::Auto, Ok(2)),
            ("disabled, fits", 250, Truncation::Disabled, Ok(0)),
            ("disabled, too long", 249, Truncation::Disabled, Err(250)),
            ("retain leaves more room", 249, retain(0.5, None), Ok(2)),
            ("retain, fits", 250, retain(0.5, None), Ok(0)),
            ("own limit", 1_000, retain(0.8, Some(149)), Ok(1)),
            ("own limit, fits", 1_000, retain(0.8, Some(150)), Ok(0)),
        ] {
            assert_eq!(overflow(&context, limit, truncation), want, "{name}");
        }
    }

    #[test]
    fn shares_are_exact_enough() {
        assert_eq!(share(28_672, 0.8), 22_937);
        assert_eq!(share(1_000, 0.29), 290);
        assert_eq!(share(1_000, 1.0), 1_000);
        assert_eq!(share(1_000, 0.0), 0);
    }
}
