//! What the caller's ear has heard: samples, each with its moment.
//!
//! Written by the [`super::playout`] only. Times are those of the line, from its beginning.
use std::{path::Path, time::Duration};

use super::wire::Media;
use crate::audio::{
    Codec, Format,
    decode::{WriteError, write_wav},
};

/// Below it nobody hears a voice on a telephone: -42 dB of full scale.
pub const AUDIBLE: u16 = 256;

/// What was heard.
#[derive(Debug, Clone)]
pub struct Ear {
    media: Media,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
struct Piece {
    at: Duration,
    samples: Vec<i16>,
    /// Its first and its last audible sample: asked for 50 times a second.
    audible: Option<(usize, usize)>,
}

impl Ear {
    pub(super) fn new(media: Media) -> Self {
        Self { media, pieces: Vec::new() }
    }

    pub(super) fn hear(&mut self, at: Duration, samples: Vec<i16>) {
        if !samples.is_empty() {
            let audible = |sample: &i16| is_audible(*sample);
            let audible = samples.iter().position(audible).zip(samples.iter().rposition(audible));
            self.pieces.push(Piece { at, samples, audible });
        }
    }

    /// Samples per second.
    pub fn rate(&self) -> u32 {
        self.media.rate
    }

    /// How much of the relay's audio has sounded before `until`: pauses between its pieces do not count, silence in it does.
    pub fn heard(&self, until: Duration) -> Duration {
        let samples = self.pieces.iter().map(|piece| self.sounded(piece, until)).sum();
        self.media.length(samples)
    }

    /// The samples that have sounded before `until`, without the pauses between them.
    pub fn samples(&self, until: Duration) -> Vec<i16> {
        let pieces = self.pieces.iter();
        pieces.flat_map(|piece| piece.samples.iter().take(self.sounded(piece, until)).copied()).collect()
    }

    fn sounded(&self, piece: &Piece, until: Duration) -> usize {
        self.media.samples(until.saturating_sub(piece.at)).min(piece.samples.len())
    }

    /// When something could first be heard at or after `from`.
    pub fn first_audible(&self, from: Duration) -> Option<Duration> {
        self.moments(from).next()
    }

    /// When the last thing that could be heard was over; looks no further than `until`.
    pub fn last_audible(&self, until: Duration) -> Option<Duration> {
        self.pieces.iter().rev().find_map(|piece| {
            let (first, mut last) = piece.audible?;
            let sounded = self.sounded(piece, until);
            if first >= sounded {
                return None;
            }
            if last >= sounded {
                last = piece.samples.iter().take(sounded).rposition(|sample| is_audible(*sample))?;
            }
            Some(piece.at + self.media.length(last + 1))
        })
    }

    /// How long something could be heard at or after `from`: its frames of 20 ms in which something was.
    pub fn audible(&self, from: Duration) -> Duration {
        let later = self.pieces.iter().filter(|piece| piece.at >= from);
        let loud = later.filter(|piece| piece.audible.is_some());
        loud.map(|piece| self.media.length(piece.samples.len())).sum()
    }

    /// When the sound that goes on at `from` was over: a pause of `pause` or more ends it. `None`: nothing sounds within one
    /// of `from`.
    pub fn sounds_until(&self, from: Duration, pause: Duration) -> Option<Duration> {
        let mut over = None;
        for piece in &self.pieces {
            let Some((first, last)) = piece.audible else { continue };
            let (begins, ends) = (piece.at + self.media.length(first), piece.at + self.media.length(last + 1));
            if ends <= from {
                continue;
            }
            if begins >= over.unwrap_or(from) + pause {
                break;
            }
            over = Some(ends);
        }
        over
    }

    fn moments(&self, from: Duration) -> impl Iterator<Item = Duration> {
        self.pieces.iter().filter(move |piece| piece.at + self.media.length(piece.samples.len()) > from).filter_map(
            move |piece| {
                let skip = self.media.samples(from.saturating_sub(piece.at));
                let at = piece.samples.iter().skip(skip).position(|sample| is_audible(*sample))?;
                Some((piece.at + self.media.length(skip + at)).max(from))
            },
        )
    }

    /// Everything from the line's beginning to `until`, pauses included: what a recorder at the ear would hold.
    pub fn tape(&self, until: Duration) -> Vec<i16> {
        let mut tape = Vec::new();
        for piece in self.pieces.iter().filter(|piece| piece.at < until) {
            tape.resize(self.media.samples(piece.at).max(tape.len()), 0);
            tape.extend(piece.samples.iter().take(self.sounded(piece, until)));
        }
        tape.resize(self.media.samples(until).max(tape.len()), 0);
        tape
    }

    /// [`Self::tape`] as a wav file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_wav(&self, path: &Path, until: Duration) -> Result<(), WriteError> {
        let bytes: Vec<u8> = self.tape(until).iter().flat_map(|sample| sample.to_le_bytes()).collect();
        write_wav(path, Format { codec: Codec::Pcm16, rate: self.media.rate }, &bytes)
    }
}

/// Loud enough to be heard.
pub fn is_audible(sample: i16) -> bool {
    sample.unsigned_abs() >= AUDIBLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_amounts_are_exact_to_the_sample() {
        let ms = Duration::from_millis;
        let mut ear = Ear::new(Media::MULAW);
        ear.hear(ms(100), vec![0; 160]);
        ear.hear(ms(120), [vec![0; 80], vec![1_000; 80]].concat());
        ear.hear(ms(200), vec![1_000; 80]);
        assert_eq!([ear.heard(ms(90)), ear.heard(ms(125)), ear.heard(ms(150))], [ms(0), ms(25), ms(40)]);
        assert_eq!(ear.heard(ms(1_000)), ms(50));
        assert_eq!(ear.first_audible(ms(0)), Some(ms(130)));
        assert_eq!(ear.first_audible(ms(135)), Some(ms(135)));
        assert_eq!(ear.first_audible(ms(140)), Some(ms(200)));
        assert_eq!((ear.last_audible(ms(1_000)), ear.last_audible(ms(199))), (Some(ms(210)), Some(ms(140))));
        assert_eq!(ear.tape(ms(300)).len(), 2_400);
        assert_eq!(ear.tape(ms(300))[1_040], 1_000);
        assert_eq!(ear.audible(ms(0)), ms(30));
        assert_eq!(ear.sounds_until(ms(120), ms(20)), Some(ms(140)));
        assert_eq!(ear.sounds_until(ms(120), ms(100)), Some(ms(210)));
        assert_eq!(ear.sounds_until(ms(220), ms(100)), None);
    }
}
