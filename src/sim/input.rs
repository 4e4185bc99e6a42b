//! The input audio buffer: what the client has appended and nobody has committed yet, and the turns heard in it.
//!
//! Positions are counted on the bytes written, so that `audio_start_ms` and `audio_end_ms` do not depend on when they
//! arrived. Decides no reply: it reports turns to [`super::session`].
use bytes::{Buf as _, Bytes, BytesMut};

use super::{
    vad::{Heard, Thresholds, Vad},
    voice,
};
use crate::audio::Format;

/// Shortest turn that may be committed by the client, ms.
pub(super) const MIN_COMMIT_MS: u64 = 100;
/// Audio that is kept while nobody speaks, beyond the padding, ms.
const IDLE_KEEP_MS: u64 = 1_000;

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// Somebody began to speak; the padding is in it.
    Began {
        /// Where the turn's audio begins, ms.
        start_ms: u64,
    },
    /// The turn is complete.
    Ended {
        /// Where its audio ends, ms; the silence that ended it is in it.
        end_ms: u64,
        /// All of it.
        audio: Bytes,
    },
}

/// What a detector is set up with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Detection {
    pub(super) thresholds: Thresholds,
    /// Audio before the speech that belongs to the turn, ms.
    pub(super) prefix_ms: u64,
    /// Audio that an idle timeout commits, ms.
    pub(super) idle_ms: u64,
}

#[derive(Debug)]
struct Ear {
    vad: Vad,
    detection: Detection,
    /// The byte that was the detector's first sample.
    origin: u64,
    /// Where the turn that goes on begins.
    turn_from: Option<u64>,
}

/// The buffer.
#[derive(Debug)]
pub(super) struct Input {
    format: Format,
    bytes: BytesMut,
    /// Bytes of this format that were written before `bytes`.
    first: u64,
    /// What was written in other formats before this one, ms.
    before_ms: u64,
    /// How far the detector has listened, in bytes.
    heard: u64,
    ear: Option<Ear>,
}

impl Input {
    /// An empty buffer.
    pub(super) fn new(format: Format, detection: Option<Detection>) -> Self {
        let mut input = Self { format, bytes: BytesMut::new(), first: 0, before_ms: 0, heard: 0, ear: None };
        input.configure(format, detection);
        input
    }

    /// Changes format and detector. A new format empties the buffer, a changed detector forgets the speech it hears.
    pub(super) fn configure(&mut self, format: Format, detection: Option<Detection>) {
        if format != self.format {
            self.before_ms = self.position_ms();
            (self.format, self.first, self.heard, self.ear) = (format, 0, 0, None);
            self.bytes.clear();
        }
        match (&mut self.ear, detection) {
            (Some(ear), Some(detection)) => ear.detection = detection,
            (ear, None) => *ear = None,
            (ear, Some(detection)) => {
                self.heard = self.first + self.bytes.len() as u64;
                let vad = Vad::new(format.rate);
                *ear = Some(Ear { vad, detection, origin: self.heard, turn_from: None });
            }
        }
    }

    /// The format of what is appended.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Whether the detector hears speech at the moment.
    pub(super) fn speaking(&self) -> bool {
        self.ear.as_ref().is_some_and(|ear| ear.vad.speaking())
    }

    /// How much waits in the buffer, ms.
    pub(super) fn buffered_ms(&self) -> f64 {
        self.format.duration(self.bytes.len()).as_secs_f64() * 1_000.0
    }

    /// Everything written so far, ms.
    pub(super) fn position_ms(&self) -> u64 {
        self.ms_at(self.end())
    }

    fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64
    }

    fn ms_at(&self, byte: u64) -> u64 {
        let size = self.format.sample_bytes().unwrap_or(1) as u64;
        self.before_ms + byte / size * 1_000 / u64::from(self.format.rate)
    }

    fn bytes_of_ms(&self, ms: u64) -> u64 {
        let size = self.format.sample_bytes().unwrap_or(1) as u64;
        ms * u64::from(self.format.rate) / 1_000 * size
    }

    /// Takes more audio; tells what was heard in it, in order.
    pub(super) fn append(&mut self, audio: &[u8]) -> Vec<Turn> {
        self.bytes.extend_from_slice(audio);
        let mut turns = Vec::new();
        while let Some(turn) = self.listen() {
            turns.extend(turn);
        }
        self.forget_silence();
        turns
    }

    /// Hands the detector one more frame; `None` when there is no whole frame left.
    fn listen(&mut self) -> Option<Option<Turn>> {
        let size = self.format.sample_bytes().unwrap_or(1);
        let ear = self.ear.as_mut()?;
        let from = usize::try_from(self.heard.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let frame = self.bytes.get(from..from.saturating_add(ear.vad.frame_samples() * size))?;
        self.heard += frame.len() as u64;
        let heard = ear.vad.frame(&voice::decode(frame, self.format), ear.detection.thresholds);
        let (origin, prefix_ms) = (ear.origin, ear.detection.prefix_ms);
        Some(match heard {
            None => None,
            Some(Heard::Began(sample)) => {
                let speech = origin + sample * size as u64;
                let from = speech.saturating_sub(self.bytes_of_ms(prefix_ms)).max(self.first);
                self.drop_before(from);
                self.ear.as_mut()?.turn_from = Some(from);
                Some(Turn::Began { start_ms: self.ms_at(from) })
            }
            Some(Heard::Ended(sample)) => {
                let end = origin + sample * size as u64;
                self.ear.as_mut()?.turn_from = None;
                let audio = self.take_until(end);
                Some(Turn::Ended { end_ms: self.ms_at(end), audio })
            }
        })
    }

    fn take_until(&mut self, byte: u64) -> Bytes {
        let len = usize::try_from(byte.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.bytes.len());
        // A copy of its own: a view would keep the whole buffer alive as long as the item.
        let audio = Bytes::copy_from_slice(self.bytes.get(..len).unwrap_or_default());
        self.bytes.advance(len);
        self.first += len as u64;
        audio
    }

    fn drop_before(&mut self, byte: u64) {
        let len = usize::try_from(byte.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.advance(len);
        self.first += len as u64;
    }

    /// While nobody speaks and a detector listens, old audio is of no use to anybody.
    fn forget_silence(&mut self) {
        let Some(ear) = &self.ear else { return };
        if ear.turn_from.is_none() {
            let keep = ear.detection.prefix_ms.max(ear.detection.idle_ms) + IDLE_KEEP_MS;
            self.drop_before(self.heard.saturating_sub(self.bytes_of_ms(keep)));
        }
    }

    /// Takes all of it as a turn.
    ///
    /// # Errors
    /// With the milliseconds there are, when they are too few.
    pub(super) fn commit(&mut self) -> Result<Bytes, f64> {
        if self.bytes.len() as u64 >= self.bytes_of_ms(MIN_COMMIT_MS) {
            Ok(self.take_all())
        } else {
            Err(self.buffered_ms())
        }
    }

    /// Takes what was written since `mark_ms`, however little it is, as the turn of an idle timeout.
    pub(super) fn take_since(&mut self, mark_ms: u64) -> Bytes {
        self.drop_before(self.bytes_of_ms(mark_ms.saturating_sub(self.before_ms)));
        self.take_all()
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        self.take_all();
    }

    fn take_all(&mut self) -> Bytes {
        let audio = self.take_until(u64::MAX);
        if let Some(ear) = &mut self.ear {
            // The detector skips the part of a frame that it has not seen.
            ear.origin += self.first - self.heard;
            ear.vad.interrupt();
            ear.turn_from = None;
        }
        self.heard = self.first;
        audio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_SECOND: Detection =
        Detection { thresholds: Thresholds { level: 0.5, silence_ms: 500 }, prefix_ms: 300, idle_ms: 0 };

    fn clip(name: &str) -> Vec<u8> {
        let mut reader = hound::WavReader::open(name).unwrap();
        reader.samples::<i16>().flat_map(|s| s.unwrap().to_le_bytes()).collect()
    }

    fn hello() -> Vec<u8> {
        clip("assets/hello.wav")
    }

    /// The data chunk of a WAV file that is not PCM.
    fn mulaw(name: &str) -> Vec<u8> {
        let file = std::fs::read(name).unwrap();
        let at = file.windows(4).position(|w| w == b"data").unwrap();
        file[at + 8..].to_vec()
    }

    fn turns(input: &mut Input, audio: &[u8], piece: usize) -> Vec<Turn> {
        audio.chunks(piece).flat_map(|piece| input.append(piece)).collect()
    }

    #[test]
    fn a_turn_is_exactly_the_bytes_between_its_positions() {
        let (audio, want) = (hello(), [0usize, 5_120]);
        for piece in [2, 960, 4_800, 999_998] {
            let mut input = Input::new(Format::PCM_24K, Some(HALF_SECOND));
            let got = turns(&mut input, &audio, piece);
            let turn = Bytes::copy_from_slice(&audio[want[0] * 48..want[1] * 48]);
            assert_eq!(got, [Turn::Began { start_ms: 0 }, Turn::Ended { end_ms: 5_120, audio: turn }], "{piece} bytes");
            assert_eq!(input.position_ms(), 5_399, "the clip is two bytes short of 5.4 s");
        }
    }

    #[test]
    fn telephone_speech_is_heard_as_well() {
        let audio = mulaw("tests/clips/hello_question_telephone_8k_ulaw.wav");
        let mut input = Input::new(Format::MULAW, Some(HALF_SECOND));
        let got = turns(&mut input, &audio, 160);
        let [Turn::Began { start_ms: 0 }, Turn::Ended { end_ms, audio: turn }] = &got[..] else { panic!("{got:?}") };
        assert_eq!(*end_ms, 5_120);
        assert_eq!(turn[..], audio[..5_120 * 8]);
    }

    #[test]
    fn the_second_turn_begins_with_its_padding() {
        let long = symphonia_pcm("tests/clips/long_turn_pause_24k.flac");
        let mut input = Input::new(Format::PCM_24K, Some(HALF_SECOND));
        let got = turns(&mut input, &long, 4_800);
        let [Turn::Began { start_ms: 0 }, Turn::Ended { end_ms, audio }, Turn::Began { start_ms }, Turn::Ended { .. }] =
            &got[..]
        else {
            panic!("{got:?}")
        };
        assert!((3_900..=3_960).contains(end_ms), "{end_ms}");
        assert_eq!(audio.len(), usize::try_from(*end_ms).unwrap() * 48);
        assert!((4_720..=4_780).contains(start_ms), "5.04 s less 300 ms: {start_ms}");
    }

    fn symphonia_pcm(name: &str) -> Vec<u8> {
        let flac: &'static [u8] = std::fs::read(name).unwrap().leak();
        voice::decode_flac(flac).unwrap().iter().flat_map(|s| s.to_le_bytes()).collect()
    }

    #[test]
    fn silence_is_not_kept_while_a_detector_listens() {
        let mut input = Input::new(Format::PCM_24K, Some(HALF_SECOND));
        for _ in 0..600 {
            assert_eq!(input.append(&[0; 4_800]), []);
        }
        assert_eq!(input.position_ms(), 60_000);
        assert!(input.buffered_ms() < 1_400.0, "{} ms", input.buffered_ms());
        let mut manual = Input::new(Format::PCM_24K, None);
        manual.append(&[0; 480_000]);
        assert!((manual.buffered_ms() - 10_000.0).abs() < 1e-9, "without one everything is");
    }

    #[test]
    fn a_commit_wants_a_tenth_of_a_second() {
        let mut input = Input::new(Format::MULAW, None);
        input.append(&[0xFF; 799]);
        assert_eq!(input.commit(), Err(99.875));
        input.append(&[0xFF; 1]);
        assert_eq!(input.commit().map(|audio| audio.len()), Ok(800));
        assert_eq!(input.commit(), Err(0.0));
    }

    #[test]
    fn positions_go_on_through_commits_and_changes_of_format() {
        let mut input = Input::new(Format::PCM_24K, Some(HALF_SECOND));
        input.append(&[0; 48_018]);
        input.clear();
        let got = turns(&mut input, &hello(), 4_800);
        assert!(matches!(got[0], Turn::Began { start_ms: 1_000 }), "not before what was cleared: {got:?}");
        assert_eq!(input.position_ms(), 6_400);
        input.configure(Format::MULAW, Some(HALF_SECOND));
        input.append(&[0xFF; 8_000]);
        assert_eq!(input.position_ms(), 7_400);
        assert_eq!(input.take_since(7_000).len(), 3_200);
    }
}
