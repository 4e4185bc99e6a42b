//! One direction of a call: between the bytes that a client agreed to and the bytes that the service takes and gives.
//!
//! The [`Uplink`] stands behind the client's dialect, in front of the chunker; the [`Downlink`] between the pacer, which
//! hands it 20 ms at a time, and the client's dialect. Both own what must last from message to message, and nothing else:
//! no socket, queue or clock. Codecs and filters are made when the first audio comes, so an idle lane is 32 bytes.
use std::time::Duration;

use super::{
    format::{Codec, Format},
    opus::{self, Decoder, Encoder, OpusError},
    resample::{self, RateError, Resampler},
};

/// What the service is asked for when a client speaks `client`: G.711 as it is, PCM16 at 24 kHz for everything else.
///
/// The service takes no other formats (openai-node 7.57, read 2026-11). G.711 that stays G.711 costs no sample of
/// quality, no delay and a sixth of the bytes.
pub fn upstream_format(client: Format) -> Format {
    match client.codec {
        Codec::Mulaw | Codec::Alaw => client,
        Codec::Pcm16 | Codec::Opus => Format::PCM_24K,
    }
}

/// The same where a service takes PCM at `rate` (compatible servers, not OpenAI's).
pub fn upstream_input(client: Format, rate: u32) -> Format {
    match upstream_format(client) {
        Format { codec: Codec::Pcm16, .. } => Format { codec: Codec::Pcm16, rate },
        law => law,
    }
}

/// Audio that a lane cannot carry. Of the sender's making, but for [`Rate`](Self::Rate).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AudioError {
    /// Not what it should be in an Opus call.
    #[error(transparent)]
    Opus(#[from] OpusError),
    /// The lane was made for a rate that nobody has.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// More than one frame, or half a sample, where a frame was due.
    #[error("a frame of {found} bytes; 20 ms of {format} are {allowed}")]
    Frame {
        /// The upstream format.
        format: Format,
        /// Bytes given.
        found: usize,
        /// Bytes of 20 ms.
        allowed: usize,
    },
}

/// From the client to the service.
#[derive(Debug)]
pub struct Uplink {
    client: Format,
    /// Of the service's PCM, Hz.
    rate: u32,
    /// Half a sample, whose other half comes with the next message.
    odd: Option<u8>,
    /// Client samples taken so far: durations are differences of sums, so no rounding piles up.
    taken: u64,
    work: Option<Box<Inward>>,
}

/// What an uplink needs once audio comes.
#[derive(Debug)]
enum Inward {
    Rate(Resampler),
    Opus(Decoder),
}

impl Uplink {
    /// The lane of a client that sends `client`, to a service that takes its [usual format](upstream_format).
    pub fn new(client: Format) -> Self {
        Self::towards(client, Format::PCM_24K.rate)
    }

    /// The lane of a client that sends `client`, to a service that takes PCM at `rate`.
    pub fn towards(client: Format, rate: u32) -> Self {
        Self { client, rate, odd: None, taken: 0, work: None }
    }

    /// Half a sample that waits for its other half.
    pub fn half(&self) -> Option<u8> {
        self.odd
    }

    /// The same lane, where half a sample waits for its other half.
    pub fn with_half(self, odd: Option<u8>) -> Self {
        Self { odd, ..self }
    }

    /// Bytes come out as they went in. A caller may go round the lane then, but must itself keep PCM in whole samples.
    pub fn passthrough(&self) -> bool {
        self.client == upstream_input(self.client, self.rate)
    }

    /// Takes one message, appends what it makes to `out` in the upstream format, and returns how long
    /// the client's audio in it plays. PCM may be cut anywhere, also within a sample; an Opus message is one packet.
    ///
    /// # Errors
    /// When an Opus packet cannot be decoded, or the format's rate is impossible. Then nothing has changed.
    pub fn push(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<Duration, AudioError> {
        if self.passthrough() {
            return Ok(self.copy(message, out));
        }
        let (client, rate) = (self.client, self.rate);
        let mut samples = Vec::new();
        let played = match made(&mut self.work, || Inward::new(client, rate))? {
            Inward::Opus(decoder) => decoder.decode(message, &mut samples)?,
            Inward::Rate(resampler) => {
                let (joined, whole) = join(&mut self.odd, message);
                let input: Vec<i16> = joined.iter().chain(whole).map(|bytes| i16::from_le_bytes(*bytes)).collect();
                resampler.push(&input, &mut samples);
                self.took(input.len())
            }
        };
        write_pcm(&samples, out);
        Ok(played)
    }

    /// Appends what the change of rate still holds, a few milliseconds: called when a turn ends. The stream goes on.
    /// Whether there was something.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> bool {
        let mut tail = Vec::new();
        let some = match self.work.as_deref_mut() {
            Some(Inward::Rate(resampler)) => resampler.flush(&mut tail),
            Some(Inward::Opus(decoder)) => decoder.flush(&mut tail),
            None => false,
        };
        write_pcm(&tail, out);
        some
    }

    /// Drops what [`flush`](Self::flush) would bring. The stream itself goes on where it is: half a sample stays, and so
    /// does what an Opus decoder knows, since the client's encoder has not been reset. A new stream needs a new lane.
    pub fn reset(&mut self) {
        match self.work.as_deref_mut() {
            Some(Inward::Rate(resampler)) => resampler.reset(),
            Some(Inward::Opus(decoder)) => decoder.drop_tail(),
            None => {}
        }
    }

    fn copy(&mut self, message: &[u8], out: &mut Vec<u8>) -> Duration {
        if self.client.codec != Codec::Pcm16 {
            out.extend_from_slice(message);
            return self.took(message.len());
        }
        let (joined, whole) = join(&mut self.odd, message);
        out.extend(joined.iter().flatten());
        out.extend_from_slice(whole.as_flattened());
        self.took(usize::from(joined.is_some()) + whole.len())
    }

    /// Counts samples and returns how long they play.
    fn took(&mut self, samples: usize) -> Duration {
        let rate = self.client.rate.max(1);
        let time = |samples: u64| {
            let nanos = samples % u64::from(rate) * 1_000_000_000 / u64::from(rate);
            Duration::from_secs(samples / u64::from(rate)) + Duration::from_nanos(nanos)
        };
        let before = time(self.taken);
        self.taken += samples as u64;
        time(self.taken) - before
    }
}

impl Inward {
    fn new(client: Format, rate: u32) -> Result<Self, AudioError> {
        Ok(match client.codec {
            Codec::Opus => Self::Opus(Decoder::new(rate)?),
            Codec::Pcm16 | Codec::Mulaw | Codec::Alaw => Self::Rate(Resampler::new(client.rate, rate)?),
        })
    }
}

/// How much audio a [`Downlink`] takes and gives at a time.
pub const FRAME: Duration = Duration::from_millis(20);

/// From the service to the client, 20 ms at a time.
#[derive(Debug)]
pub struct Downlink {
    client: Format,
    work: Option<Box<Outward>>,
}

/// What a downlink needs while a reply plays.
#[derive(Debug)]
enum Outward {
    Rate(Resampler),
    Opus {
        encoder: Encoder,
        /// The encoder holds back sound, not only silence.
        tail: bool,
    },
}

impl Downlink {
    /// The lane of a client that wants `client`.
    pub fn new(client: Format) -> Self {
        Self { client, work: None }
    }

    /// Bytes come out as they went in, so a caller may go round the lane.
    pub fn passthrough(&self) -> bool {
        self.client == upstream_format(self.client)
    }

    /// By how much this lane makes the sound late.
    pub fn delay(&self) -> Duration {
        match self.client.codec {
            Codec::Opus => Format::PCM_24K.duration(opus::ENCODER_DELAY * 2),
            Codec::Pcm16 => resample::delay(Format::PCM_24K.rate, self.client.rate),
            Codec::Mulaw | Codec::Alaw => Duration::ZERO,
        }
    }

    /// Takes [`FRAME`] in the [upstream format](upstream_format) and appends one client message of the same length to
    /// `out`. A shorter frame, the last of a reply, is filled up with silence.
    ///
    /// # Errors
    /// When there is more than one frame or half a sample, or the format's rate is impossible. Then nothing has changed.
    pub fn frame(&mut self, upstream: &[u8], out: &mut Vec<u8>) -> Result<(), AudioError> {
        let format = upstream_format(self.client);
        let allowed = format.bytes(FRAME);
        let found = upstream.len();
        if found > allowed || !found.is_multiple_of(format.sample_bytes().unwrap_or(1)) {
            return Err(AudioError::Frame { format, found, allowed });
        }
        if self.passthrough() {
            out.extend_from_slice(upstream);
            out.resize(out.len() + allowed - found, format.silence());
            return Ok(());
        }
        let client = self.client;
        let mut samples = read_pcm(upstream);
        samples.resize(opus::ENCODER_FRAME, 0);
        match made(&mut self.work, || Outward::new(client))? {
            Outward::Rate(resampler) => {
                let mut resampled = Vec::new();
                resampler.push(&samples, &mut resampled);
                write_pcm(&resampled, out);
            }
            Outward::Opus { encoder, tail } => {
                encoder.encode(&samples, out)?;
                *tail = samples.iter().rev().take(opus::ENCODER_DELAY).any(|sample| *sample != 0);
            }
        }
        Ok(())
    }

    /// The end of a reply: appends what the lane still holds as one more message of 20 ms, filled up with silence, if
    /// there is any sound left in it. Whether there was. The next reply starts afresh.
    ///
    /// # Errors
    /// Only for a fault of the codec's own.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<bool, AudioError> {
        match self.work.take().map(|work| *work) {
            Some(Outward::Rate(mut resampler)) => {
                let mut tail = Vec::new();
                resampler.flush(&mut tail);
                if tail.iter().all(|sample| *sample == 0) {
                    return Ok(false);
                }
                tail.resize(self.client.rate as usize / 50, 0);
                write_pcm(&tail, out);
                Ok(true)
            }
            Some(Outward::Opus { mut encoder, tail: true }) => {
                encoder.encode(&[0; opus::ENCODER_FRAME], out)?;
                Ok(true)
            }
            Some(Outward::Opus { tail: false, .. }) | None => Ok(false),
        }
    }

    /// Barge-in: forgets the reply so far, so that none of it is heard in the next, and gives its memory back.
    pub fn reset(&mut self) {
        self.work = None;
    }
}

impl Outward {
    fn new(client: Format) -> Result<Self, AudioError> {
        Ok(match client.codec {
            Codec::Opus => Self::Opus { encoder: Encoder::new(opus::DEFAULT_BITRATE)?, tail: false },
            Codec::Pcm16 | Codec::Mulaw | Codec::Alaw => Self::Rate(Resampler::new(Format::PCM_24K.rate, client.rate)?),
        })
    }
}

/// What is in `slot`, made first where it is empty.
fn made<T>(slot: &mut Option<Box<T>>, make: impl FnOnce() -> Result<T, AudioError>) -> Result<&mut T, AudioError> {
    let work = match slot.take() {
        Some(work) => work,
        None => Box::new(make()?),
    };
    Ok(slot.insert(work))
}

/// The whole samples of `message`: the one that it completes, and the rest. Half a sample at its end goes to `odd`.
fn join<'m>(odd: &mut Option<u8>, message: &'m [u8]) -> (Option<[u8; 2]>, &'m [[u8; 2]]) {
    let (joined, rest) = match (message.split_first(), *odd) {
        (Some((second, rest)), Some(first)) => (Some([first, *second]), rest),
        (None, Some(_)) => return (None, &[]),
        (_, None) => (None, message),
    };
    let (whole, half) = rest.as_chunks();
    *odd = half.first().copied();
    (joined, whole)
}

fn read_pcm(bytes: &[u8]) -> Vec<i16> {
    bytes.as_chunks::<2>().0.iter().map(|sample| i16::from_le_bytes(*sample)).collect()
}

fn write_pcm(samples: &[i16], out: &mut Vec<u8>) {
    out.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audio::{
        g711::Law,
        testing::{correlation, hello, hello_at, resampled},
    };

    /// Of the client protocol, and of telephones.
    const PCM_RATES: [u32; 9] = [8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000];

    fn pcm(rate: u32) -> Format {
        Format { codec: Codec::Pcm16, rate }
    }

    fn formats() -> Vec<Format> {
        PCM_RATES.map(pcm).into_iter().chain([Format::MULAW, Format::ALAW, Format::OPUS]).collect()
    }

    fn bytes(samples: &[i16]) -> Vec<u8> {
        let mut out = Vec::new();
        write_pcm(samples, &mut out);
        out
    }

    /// A reply through the lane: its messages, with what comes at the end.
    fn reply(lane: &mut Downlink, client: Format, upstream: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        for frame in upstream.chunks(upstream_format(client).bytes(FRAME)) {
            let mut message = Vec::new();
            lane.frame(frame, &mut message).unwrap();
            messages.push(message);
        }
        let mut message = Vec::new();
        assert_eq!(lane.flush(&mut message).unwrap(), !message.is_empty());
        messages.extend((!message.is_empty()).then_some(message));
        messages
    }

    /// What a client hears of its messages.
    fn heard(client: Format, messages: &[Vec<u8>]) -> Vec<i16> {
        let mut samples = Vec::new();
        let mut decoder = Decoder::new(client.rate).unwrap();
        for message in messages {
            match Law::of(client.codec) {
                Some(law) => law.decode_into(message, &mut samples),
                None if client.codec == Codec::Opus => drop(decoder.decode(message, &mut samples)),
                None => samples.extend(read_pcm(message)),
            }
        }
        samples
    }

    #[test]
    fn the_service_is_asked_for_what_costs_least() {
        for (client, want) in [
            (Format::MULAW, Format::MULAW),
            (Format::ALAW, Format::ALAW),
            (Format::OPUS, Format::PCM_24K),
            (pcm(8_000), Format::PCM_24K),
            (pcm(48_000), Format::PCM_24K),
        ] {
            assert_eq!(upstream_format(client), want);
            assert_eq!(Uplink::new(client).passthrough(), client == want, "{client}");
            assert_eq!(Downlink::new(client).passthrough(), client == want, "{client}");
        }
        assert!(Uplink::new(Format::PCM_24K).passthrough());
    }

    #[test]
    fn speech_survives_both_ways_for_every_pair_of_pcm_rates() {
        for from in PCM_RATES {
            let said = &hello_at(from)[..from as usize * 2];
            let mut uplink = Uplink::new(pcm(from));
            let mut upstream = Vec::new();
            let mut played = Duration::ZERO;
            // Cut at odd places, as a network would.
            for piece in bytes(said).chunks(1_237) {
                played += uplink.push(piece, &mut upstream).unwrap();
            }
            assert_eq!(played, Duration::from_secs(said.len() as u64) / from, "{from} Hz");
            assert_eq!(uplink.flush(&mut upstream), from != 24_000);
            // The client protocol's with each other; a telephone's is one both ways.
            let usual = |rate: u32| Format::new(Codec::Pcm16, Some(rate)).is_ok();
            for to in PCM_RATES.into_iter().filter(|to| *to == from || usual(from) && usual(*to)) {
                let mut downlink = Downlink::new(pcm(to));
                let late = resample::delay(from, 24_000) + downlink.delay();
                let got = heard(pcm(to), &reply(&mut downlink, pcm(to), &upstream));
                // Compared at the higher rate, where the delay is a whole number of samples.
                let fine = from.max(to);
                let (want, got) = (resampled(said, from, to), resampled(&got, to, fine));
                let (alike, lag) = correlation(&resampled(&want, to, fine), &got, fine as usize / 100);
                println!("{from} to {to} Hz: {alike:.4}");
                assert!(alike >= 0.99, "{from} to {to} Hz: {alike:.4}");
                let off = lag as f64 - late.as_secs_f64() * f64::from(fine);
                assert!(
                    off.abs() <= if usual(from) { 1.0 } else { 1.5 },
                    "{from} to {to} Hz: late by {lag} samples, {off:.2} more than said"
                );
            }
        }
    }

    #[test]
    fn telephone_speech_is_not_touched() {
        let said = hello_at(8_000);
        for (client, law) in [(Format::MULAW, Law::Mu), (Format::ALAW, Law::A)] {
            let mut codes = Vec::new();
            law.encode_into(&said, &mut codes);
            let (mut uplink, mut upstream) = (Uplink::new(client), Vec::new());
            for piece in codes.chunks(333) {
                let played = uplink.push(piece, &mut upstream).unwrap();
                assert_eq!(played, client.duration(piece.len()));
            }
            assert!(!uplink.flush(&mut upstream));
            assert!(upstream == codes, "{client}: bytes changed on the way up");
            let mut downlink = Downlink::new(client);
            let messages = reply(&mut downlink, client, &upstream);
            assert_eq!(downlink.delay(), Duration::ZERO);
            assert!(messages.iter().all(|message| message.len() == 160));
            codes.resize(messages.len() * 160, client.silence());
            assert!(messages.concat() == codes, "{client}: bytes changed on the way down");
            let (alike, lag) = correlation(&said, &heard(client, &messages), 40);
            assert!(alike >= 0.95 && lag == 0, "{client}: {alike:.4} at {lag}");
        }
    }

    /// Opus is no copy of the waveform: at 24 kbit/s libopus itself reaches 0.954 with this clip.
    #[test]
    fn opus_speech_survives_both_ways() {
        let said = hello();
        let mut client = Encoder::new(opus::DEFAULT_BITRATE).unwrap();
        let (mut uplink, mut upstream) = (Uplink::new(Format::OPUS), Vec::new());
        for frame in said.chunks_exact(opus::ENCODER_FRAME) {
            let (mut packet, before) = (Vec::new(), upstream.len());
            client.encode(frame, &mut packet).unwrap();
            assert_eq!(uplink.push(&packet, &mut upstream), Ok(FRAME));
            assert_eq!(upstream.len() - before, 960);
        }
        assert!(uplink.flush(&mut upstream));
        let (alike, _) = correlation(&said, &read_pcm(&upstream), 400);
        assert!(alike >= 0.945, "up: {alike:.4}");

        let mut downlink = Downlink::new(Format::OPUS);
        let messages = reply(&mut downlink, Format::OPUS, &bytes(&said));
        let got = resampled(&heard(Format::OPUS, &messages), 48_000, 24_000);
        let (alike, lag) = correlation(&said, &got, 400);
        assert!(alike >= 0.945, "down: {alike:.4}");
        let late = downlink.delay().as_secs_f64() * 24_000.0;
        assert!((lag as f64 - late).abs() <= 2.0, "late by {lag} samples, says {late}");
    }

    #[test]
    fn twenty_milliseconds_are_one_message() {
        let speech = &hello()[..48_000];
        for client in formats() {
            let upstream: Vec<u8> = match Law::of(client.codec) {
                Some(law) => speech.iter().step_by(3).map(|s| law.encode(*s)).collect(),
                None => bytes(speech),
            };
            let tail = usize::from(!Downlink::new(client).passthrough());
            let mut lane = Downlink::new(client);
            for again in 0..2 {
                let messages = reply(&mut lane, client, &upstream);
                assert_eq!(messages.len(), 100 + tail, "{client}, reply {again}");
                for message in &messages {
                    match client.sample_bytes() {
                        Some(_) => assert_eq!(message.len(), client.bytes(FRAME), "{client}"),
                        None => assert_eq!(opus::duration(message), Ok(FRAME)),
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_sound_of_a_reply_is_heard() {
        // Silence, with a click in the last 2 ms.
        let mut samples = vec![0_i16; 4_800];
        samples[4_752..].fill(12_000);
        let others = PCM_RATES.into_iter().filter(|rate| *rate != 24_000).map(pcm);
        for client in others.chain([Format::OPUS]) {
            let mut lane = Downlink::new(client);
            let messages = reply(&mut lane, client, &bytes(&samples));
            assert_eq!(messages.len(), 11, "{client}: ten frames and the tail");
            let got = heard(client, &messages);
            // The last 2 ms of the tenth frame, later by the lane's delay.
            let whole = Format { codec: Codec::Pcm16, ..client };
            let at = |ms| whole.bytes(Duration::from_millis(ms) + lane.delay()) / 2;
            let click = &got[at(198)..at(200)];
            let mean = click.iter().map(|s| f64::from(*s)).sum::<f64>() / click.len() as f64;
            assert!(mean > 6_000.0, "{client}: a mean of {mean:.0} where 12000 was said");
            let mut more = Vec::new();
            assert_eq!(lane.flush(&mut more), Ok(false), "{client}: nothing is left");
        }
        // Silence holds nothing back, and nor does a lane that was never used.
        for client in formats() {
            let mut lane = Downlink::new(client);
            let silence = vec![upstream_format(client).silence(); upstream_format(client).bytes(FRAME)];
            assert_eq!(reply(&mut lane, client, &silence).len(), 1, "{client}");
            assert_eq!(Downlink::new(client).flush(&mut Vec::new()), Ok(false));
        }
    }

    #[test]
    fn nothing_of_an_interrupted_reply_is_heard_in_the_next() {
        let (loud, next) = (bytes(&hello()[7_000..16_600]), bytes(&hello()[30_000..39_600]));
        for client in [pcm(8_000), pcm(16_000), pcm(44_100), pcm(192_000), Format::OPUS] {
            let fresh = reply(&mut Downlink::new(client), client, &next);
            let mut lane = Downlink::new(client);
            for frame in loud.chunks(960) {
                lane.frame(frame, &mut Vec::new()).unwrap();
            }
            lane.reset();
            assert!(reply(&mut lane, client, &next) == fresh, "{client}: the old reply leaked");
        }
    }

    #[test]
    fn a_discarded_turn_is_not_heard_in_the_next() {
        let (old, new) = (bytes(&hello_at(8_000)[2_000..4_000]), bytes(&hello_at(8_000)[9_000..11_000]));
        let (mut fresh, mut got) = (Vec::new(), Vec::new());
        Uplink::new(pcm(8_000)).push(&new, &mut fresh).unwrap();
        let mut lane = Uplink::new(pcm(8_000));
        lane.push(&old, &mut got).unwrap();
        lane.reset();
        assert!(!lane.flush(&mut got), "nothing is held after a reset");
        got.clear();
        lane.push(&new, &mut got).unwrap();
        assert!(got == fresh);
    }

    #[test]
    fn half_a_sample_waits_even_over_a_flush() {
        for rate in PCM_RATES {
            let (mut lane, mut out) = (Uplink::new(pcm(rate)), Vec::new());
            assert_eq!(lane.push(&[1], &mut out), Ok(Duration::ZERO));
            assert!(out.is_empty() && !lane.flush(&mut out));
            lane.reset();
            assert_eq!(lane.push(&[], &mut out), Ok(Duration::ZERO));
            assert_eq!(lane.push(&[2, 3], &mut out), Ok(pcm(rate).duration(2)), "{rate}");
        }
        let (mut lane, mut out) = (Uplink::new(Format::PCM_24K), Vec::new());
        for message in [&[1][..], &[2, 3], &[], &[4, 5, 6]] {
            lane.push(message, &mut out).unwrap();
        }
        assert_eq!(out, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_bad_packet_is_refused_and_forgotten() {
        let mut encoder = Encoder::new(opus::DEFAULT_BITRATE).unwrap();
        let (mut lane, mut clean) = (Uplink::new(Format::OPUS), Uplink::new(Format::OPUS));
        let (mut out, mut want) = (Vec::new(), Vec::new());
        for frame in hello().chunks_exact(480).skip(20).take(20) {
            let mut packet = Vec::new();
            encoder.encode(frame, &mut packet).unwrap();
            clean.push(&packet, &mut want).unwrap();
            for bad in [&[][..], &[0xFF, 0xFF, 0xFF], &[0x0B]] {
                let error = lane.push(bad, &mut out).unwrap_err();
                assert!(matches!(error, AudioError::Opus(_)), "{error}");
            }
            lane.push(&packet, &mut out).unwrap();
        }
        assert!(out == want);
    }

    #[test]
    fn frames_that_are_none_are_refused() {
        for client in formats() {
            let format = upstream_format(client);
            let mut lane = Downlink::new(client);
            let mut out = vec![9];
            let error = lane.frame(&vec![0; format.bytes(FRAME) + 2], &mut out).unwrap_err();
            let want = format!("20 ms of {format} are {}", format.bytes(FRAME));
            assert!(error.to_string().ends_with(&want), "{error}");
            if format == Format::PCM_24K {
                assert!(lane.frame(&[0; 3], &mut out).is_err(), "half a sample");
            }
            assert_eq!(out, [9]);
        }
        let impossible = Format { codec: Codec::Pcm16, rate: 44_101 };
        assert!(matches!(Uplink::new(impossible).push(&[0, 0], &mut Vec::new()), Err(AudioError::Rate(_))));
        assert!(matches!(Downlink::new(impossible).frame(&[0, 0], &mut Vec::new()), Err(AudioError::Rate(_))));
    }

    #[test]
    fn an_idle_lane_is_small() {
        assert!(size_of::<Uplink>() <= 32 && size_of::<Downlink>() <= 16);
    }

    proptest! {
        #[test]
        fn any_cut_of_pcm_gives_the_same(
            rate in proptest::sample::select(&PCM_RATES[..]), data in proptest::collection::vec(any::<u8>(), 0..4_000),
            cuts in proptest::collection::vec(0_usize..900, 0..20),
        ) {
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let mut lane = Uplink::new(pcm(rate));
            let played = lane.push(&data, &mut whole).unwrap();
            prop_assert_eq!(played, pcm(rate).duration(data.len()));
            prop_assert_eq!(whole.len(), (data.len() / 2 * 24_000).div_ceil(rate as usize) * 2);
            lane.flush(&mut whole);
            let (mut lane, mut rest, mut sum) = (Uplink::new(pcm(rate)), data.as_slice(), Duration::ZERO);
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                sum += lane.push(piece, &mut pieces).unwrap();
                rest = after;
            }
            sum += lane.push(rest, &mut pieces).unwrap();
            lane.flush(&mut pieces);
            prop_assert_eq!(sum, played);
            prop_assert_eq!(whole, pieces);
        }
    }
}
