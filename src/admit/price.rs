//! What a reply costs: tokens, or minutes, times the prices of a list that says of which day it is ([`list`]).
//!
//! Stands beside the way of audio: [`crate::call::books`] asks it when a row is booked, so that a row keeps the price of its
//! day, whatever list is in force later ([`Prices`]). Pure, and exact ([`Usd`]). A cost that cannot be known is none, never zero; where the service leaves something open,
//! the answer is never less than its bill.
pub mod list;
mod usd;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

pub use self::{
    list::{PriceError, doubts},
    usd::Usd,
};
use crate::client::wire::Usage;

/// Audio of one token of what a caller says (realtime-protocol section 5), for models that are billed by the minute where the
/// service tells tokens.
const TOKEN_MS: u64 = 100;
/// Nanoseconds of a minute.
const MINUTE: u128 = 60_000_000_000;

/// What something has cost, and what for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Text, read and written.
    pub text: Usd,
    /// Audio, heard and spoken; also what is billed by time.
    pub audio: Usd,
    /// Images.
    pub image: Usd,
    /// What the service had in its cache, of any kind.
    pub cached: Usd,
}

impl Cost {
    /// All of it.
    pub fn total(&self) -> Usd {
        self.text + self.audio + self.image + self.cached
    }
}

/// Prices of a token of one kind, pico-dollars; none: the list has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rates {
    fresh: Option<u64>,
    cached: Option<u64>,
    /// What is newly written into the cache.
    written: Option<u64>,
    out: Option<u64>,
}

impl Rates {
    /// A list without a price for cached tokens knows no discount.
    fn cached(self) -> Option<u64> {
        self.cached.or(self.fresh)
    }

    /// Nor one of its own for what is written into the cache.
    fn written(self) -> Option<u64> {
        self.written.or(self.fresh)
    }

    fn saved_by_cache(self) -> u64 {
        self.fresh.unwrap_or_default().saturating_sub(self.cached().unwrap_or_default())
    }
}

/// What one model costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The day of which the prices are, `2026-11-21`.
    pub as_of: String,
    /// Its midnight, Unix seconds.
    pub as_of_unix: u64,
    /// Who says so.
    pub source: String,
    text: Rates,
    audio: Rates,
    image: Rates,
    /// A minute of audio.
    minute: Option<Usd>,
    /// What the same costs in a batch, percent.
    batch_percent: u32,
}

/// What models cost, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceList {
    rows: BTreeMap<String, Row>,
}

/// The list of a process, as it is at any time ([`super::sources`]).
pub type Prices = Arc<ArcSwap<PriceList>>;

impl PriceList {
    /// The row of a model: of that very name, or of the one whose dated snapshot it is (`gpt-realtime-2.1-2026-09-30`).
    pub fn row(&self, model: &str) -> Option<&Row> {
        self.rows.get(model).or_else(|| self.rows.get(undated(model)?))
    }

    /// What this has cost at this model. `seconds`: the audio that was written down, where the service counts that. `None`: not
    /// known, for there is no price for the model, or for something that was used.
    pub fn cost(&self, model: &str, usage: &Usage, seconds: Option<f64>) -> Option<Cost> {
        let cost = self.row(model)?.cost(usage, seconds)?;
        // A ledger's number holds 9 million dollars: a count that is more is none.
        i64::try_from(cost.total().pico()).is_ok().then_some(cost)
    }

    /// The same of something that came in a batch, at its price; a fraction of a pico-dollar is a whole one.
    pub fn batch_cost(&self, model: &str, usage: &Usage) -> Option<Cost> {
        let percent = i128::from(self.row(model)?.batch_percent);
        let part = |usd: Usd| Usd::from_pico((usd.pico().saturating_mul(percent).saturating_add(99)) / 100);
        let Cost { text, audio, image, cached } = self.cost(model, usage, None)?;
        Some(Cost { text: part(text), audio: part(audio), image: part(image), cached: part(cached) })
    }
}

/// The name without the date at its end.
fn undated(model: &str) -> Option<&str> {
    let (name, date) = model.split_at_checked(model.len().checked_sub("-2026-09-30".len())?)?;
    let shape = |(at, b): (usize, u8)| if matches!(at, 0 | 5 | 8) { b == b'-' } else { b.is_ascii_digit() };
    date.bytes().enumerate().all(shape).then_some(name)
}

impl Row {
    fn cost(&self, usage: &Usage, seconds: Option<f64>) -> Option<Cost> {
        match self.minute {
            Some(minute) => by_time(minute, usage, seconds),
            // Time of a model that is billed by tokens.
            None if usage.total_tokens == 0 && seconds.is_some_and(|seconds| seconds != 0.0) => None,
            None => self.by_tokens(usage),
        }
    }

    fn by_tokens(&self, usage: &Usage) -> Option<Cost> {
        let inputs = [usage.input_text_tokens, usage.input_image_tokens, usage.input_audio_tokens];
        let outputs = [usage.output_text_tokens, usage.output_audio_tokens];
        let (input, output) = (saturating_sum(&inputs), saturating_sum(&outputs));
        // Tokens of which it is not said whether they went in or came out.
        if usage.total_tokens > usage.input_tokens.max(input).saturating_add(usage.output_tokens.max(output)) {
            return None;
        }
        let kinds = [self.text, self.image, self.audio];
        let cached = self.cached_of(usage, inputs);
        let mut parts = [0; 3];
        let mut from_cache = 0;
        for (((part, rates), all), cached) in parts.iter_mut().zip(kinds).zip(inputs).zip(cached) {
            *part += cost_of(all - cached, rates.fresh)?;
            from_cache += cost_of(cached, rates.cached())?;
        }
        let [mut text, image, mut audio] = parts;
        // Never more than there is of text that was not in the cache yet.
        let [cached_text, ..] = cached;
        let written = usage.cache_write_tokens.min(usage.input_text_tokens.saturating_sub(cached_text));
        text = text - cost_of(written, self.text.fresh)? + cost_of(written, self.text.written())?;
        text += cost_of(usage.output_text_tokens, self.text.out)?;
        audio += cost_of(usage.output_audio_tokens, self.audio.out)?;
        // Tokens of which the kind is not said are of the dearest one.
        let dearest = |rate: fn(Rates) -> Option<u64>| (kinds.into_iter().filter_map(rate).max(), rate(self.audio));
        for (all, named, (dearest, of_audio)) in [
            (usage.input_tokens, input, dearest(|rates| rates.fresh)),
            (usage.output_tokens, output, dearest(|rates| rates.out)),
        ] {
            let more = cost_of(all.saturating_sub(named), dearest)?;
            if dearest == of_audio { audio += more } else { text += more }
        }
        let usd = |pico: u128| i128::try_from(pico).ok().map(Usd::from_pico);
        Some(Cost { text: usd(text)?, audio: usd(audio)?, image: usd(image)?, cached: usd(from_cache)? })
    }

    /// Of each kind what was cached: as the service says, and where it only says how much in all, where that saves least. In a
    /// voice call this is also where it is: a cache holds the beginning, and there the instructions stand.
    fn cached_of(&self, usage: &Usage, inputs: [u64; 3]) -> [u64; 3] {
        let said = [usage.cached_text_tokens, usage.cached_image_tokens, usage.cached_audio_tokens];
        let mut left = usage.cached_tokens.saturating_sub(saturating_sum(&said));
        let mut kinds: Vec<(u64, u64, u64)> = [self.text, self.image, self.audio]
            .into_iter()
            .zip(inputs.into_iter().zip(said))
            .map(|(rates, (all, said))| (rates.saved_by_cache(), all, said.min(all)))
            .collect();
        let mut order: Vec<&mut (u64, u64, u64)> = kinds.iter_mut().collect();
        order.sort_by_key(|(saved, ..)| *saved);
        for (_, all, cached) in order {
            let more = left.min(*all - *cached);
            *cached += more;
            left -= more;
        }
        let mut found = [0; 3];
        found.iter_mut().zip(kinds).for_each(|(found, (_, _, cached))| *found = cached);
        found
    }
}

fn saturating_sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// `None`: tokens without a price.
fn cost_of(tokens: u64, rate: Option<u64>) -> Option<u128> {
    if tokens == 0 { Some(0) } else { Some(u128::from(tokens) * u128::from(rate?)) }
}

/// Rounded to the nearest pico-dollar.
fn by_time(minute: Usd, usage: &Usage, seconds: Option<f64>) -> Option<Cost> {
    let audio = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        None if usage.input_audio_tokens == 0 && usage.total_tokens > 0 => return None,
        None => Duration::from_millis(usage.input_audio_tokens.saturating_mul(TOKEN_MS)),
    };
    let pico = u128::try_from(minute.pico()).ok()?.checked_mul(audio.as_nanos())?;
    let rounded = pico.checked_add(MINUTE / 2)? / MINUTE;
    Some(Cost { audio: Usd::from_pico(i128::try_from(rounded).ok()?), ..Cost::default() })
}

#[cfg(test)]
mod tests;
