//! What providers and networks do beside their references: on request, seeded, and counted.
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// How a stream is ended towards the relay, where the provider has a message for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stop {
    /// `stop`, then the socket closes.
    #[default]
    Once,
    /// The socket closes without a word.
    Never,
    /// `stop` twice.
    Twice,
}

/// Habits that a provider's reference does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks {
    /// No media while the caller is silent, as some legs of Twilio's.
    pub pauses: bool,
    /// Every n-th media message comes twice.
    pub duplicate_every: Option<u64>,
    /// Every n-th media message comes after the one that follows it (Telnyx says that this may happen).
    pub swap_every: Option<u64>,
    /// How the stream ends.
    pub stop: Stop,
    /// So many media messages come before `start`.
    pub early_media: u64,
    /// Media names a stream that was never started.
    pub wrong_stream_ids: bool,
    /// `start` comes so long after the socket is open.
    pub start_after: Duration,
    /// What comes behind silence is played so much later, as from a jitter buffer that fills first.
    pub holds: Duration,
}

impl Quirks {
    /// What can be asked for, in commands.
    pub const KNOWN: &'static str =
        "pauses, duplicate=N, swap=N, no-stop, stop-twice, early-media=N, wrong-stream-ids, late-start=MS, holds=MS";

    /// Adds one, said in a word; see [`Self::KNOWN`].
    ///
    /// # Errors
    /// When there is none of that name, or its number is missing.
    pub fn add(&mut self, said: &str) -> Result<(), String> {
        let wrong = || format!("`{said}` is no quirk; known: {}", Self::KNOWN);
        let (name, number) =
            said.split_once('=').map_or((said, None), |(name, number)| (name, number.parse::<u64>().ok()));
        match (name, number) {
            ("pauses", None) => self.pauses = true,
            ("duplicate", Some(every)) => self.duplicate_every = Some(every),
            ("swap", Some(every)) => self.swap_every = Some(every),
            ("no-stop", None) => self.stop = Stop::Never,
            ("stop-twice", None) => self.stop = Stop::Twice,
            ("early-media", Some(frames)) => self.early_media = frames,
            ("wrong-stream-ids", None) => self.wrong_stream_ids = true,
            ("late-start", Some(ms)) => self.start_after = Duration::from_millis(ms),
            ("holds", Some(ms)) => self.holds = Duration::from_millis(ms),
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// What a network between provider and relay does. Nothing is lost or overtaken: it is TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Network {
    /// From provider to relay.
    pub to_relay: Duration,
    /// From relay to provider.
    pub from_relay: Duration,
    /// Up to so much more, each message anew.
    pub jitter: Duration,
}

/// What was done on request so far; a test of a fault looks here whether it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Injected {
    /// Frames of silence that were not sent.
    pub paused: u64,
    /// Media messages sent twice.
    pub duplicated: u64,
    /// Pairs of media messages sent in the wrong order.
    pub swapped: u64,
    /// Media messages before `start`.
    pub early: u64,
    /// Media messages with a stream id that is not the call's.
    pub wrong_ids: u64,
    /// `stop` messages sent.
    pub stops: u64,
}

/// One direction's delay.
#[derive(Debug)]
pub(super) struct Wire {
    delay: Duration,
    jitter: Duration,
    last: Duration,
    dice: StdRng,
}

impl Wire {
    pub(super) fn new(delay: Duration, jitter: Duration, seed: u64) -> Self {
        Self { delay, jitter, last: Duration::ZERO, dice: StdRng::seed_from_u64(seed) }
    }

    /// When what is sent at `now` arrives.
    pub(super) fn arrival(&mut self, now: Duration) -> Duration {
        let more = if self.jitter.is_zero() { 0.0 } else { self.dice.random::<f64>() };
        self.last = self.last.max(now + self.delay + self.jitter.mul_f64(more));
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quirk_can_be_said() {
        let mut quirks = Quirks::default();
        let said = "pauses duplicate=10 swap=7 stop-twice early-media=2 wrong-stream-ids late-start=100 holds=60";
        for said in said.split(' ') {
            quirks.add(said).unwrap();
        }
        let all = Quirks {
            pauses: true,
            duplicate_every: Some(10),
            swap_every: Some(7),
            stop: Stop::Twice,
            early_media: 2,
            wrong_stream_ids: true,
            start_after: Duration::from_millis(100),
            holds: Duration::from_millis(60),
        };
        assert_eq!(quirks, all);
        for said in ["", "pause", "swap", "swap=x", "pauses=1"] {
            assert!(quirks.add(said).unwrap_err().contains("known: pauses, duplicate=N"), "{said}");
        }
    }
}
