//! One track's sound as the file has it, packet by packet: mono, at its own rate, full scale is 1.
//!
//! Symphonia finds the packets and knows most codecs; Opus goes to [`super::super::opus`]. Judges at the end, by the
//! container's own figures, what is missing, and takes off what an encoder put around the sound.
use symphonia::core::{
    codecs::audio::{AudioDecoder, AudioDecoderOptions, well_known as codec},
    errors::Error as SymphoniaError,
    formats::{FormatReader, Track},
    io::MediaSourceStream,
    packet::Packet,
};

use super::{Failure, codec_name, rate::FULL_SCALE};
use crate::audio::opus::{self, Decoder, Head, OggReader, OpusError};

/// The sound of one recording.
pub(super) enum Sound {
    /// Packets that symphonia finds.
    Track(Box<TrackSound>),
    /// Opus in Ogg, which has a reader of its own.
    Ogg(Box<OggReader<MediaSourceStream<'static>>>),
}

impl Sound {
    /// The sound of a track; `cut` where the file says itself that something of it is missing.
    pub(super) fn open(format: Box<dyn FormatReader>, track: &Track, cut: bool) -> Result<Self, Failure> {
        let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
        let parameters = parameters.ok_or(Failure::NoTrack)?;
        let container = format.format_info().short_name;
        let coder = if parameters.codec != codec::CODEC_ID_OPUS {
            let decoder = symphonia::default::get_codecs()
                .make_audio_decoder(parameters, &AudioDecoderOptions::default())
                .map_err(|_| Failure::Unsupported(codec_name(parameters.codec)))?;
            Coder::Symphonia(decoder)
        } else if container == "ogg" {
            let mut file = format.into_inner();
            std::io::Seek::rewind(&mut file).map_err(|error| Failure::Damaged(error.to_string()))?;
            return Ok(Self::Ogg(Box::new(OggReader::new(file)?)));
        } else {
            let head = match Head::parse(parameters.extra_data.as_deref().unwrap_or_default()) {
                Err(OpusError::Stream(_)) => {
                    return Err(Failure::Unsupported("Opus whose description cannot be read".to_owned()));
                }
                head => head?,
            };
            let decoder = head.decoder().map_err(|error| Failure::Damaged(error.to_string()))?;
            Coder::Opus { decoder, skip: head.pre_skip, made: Vec::new() }
        };
        Ok(Self::Track(Box::new(TrackSound {
            format,
            track: track.clone(),
            container,
            padded: cut,
            coder,
            rate: 0,
            have: 0,
            decoded: 0,
            failed: 0,
            cut,
            interleaved: Vec::new(),
        })))
    }

    /// Samples per second; 0 before the first sample.
    pub(super) fn rate(&self) -> u32 {
        match self {
            Self::Track(track) => track.rate,
            Self::Ogg(_) => opus::DECODER_RATE,
        }
    }

    /// Appends the next packet's samples. Whether there was a packet; at the end, what was wrong with them.
    pub(super) fn next(&mut self, out: &mut Vec<f32>) -> Result<bool, Failure> {
        match self {
            Self::Track(track) => track.next(out),
            Self::Ogg(ogg) => {
                let Some(samples) = ogg.read() else { return Ok(false) };
                out.extend(samples.iter().map(|sample| f32::from(*sample) / FULL_SCALE));
                Ok(true)
            }
        }
    }

    /// At the end: something is missing.
    pub(super) fn is_cut(&self) -> bool {
        match self {
            Self::Track(track) => track.cut,
            Self::Ogg(ogg) => !ogg.is_whole(),
        }
    }
}

/// The packets of one track.
pub(super) struct TrackSound {
    format: Box<dyn FormatReader>,
    track: Track,
    container: &'static str,
    /// Zeros stand in place of what is missing.
    padded: bool,
    coder: Coder,
    rate: u32,
    /// Samples so far, with what an encoder put around the sound.
    have: u64,
    decoded: usize,
    failed: usize,
    cut: bool,
    /// One packet's samples; kept to save the allocation.
    interleaved: Vec<f32>,
}

enum Coder {
    Symphonia(Box<dyn AudioDecoder>),
    Opus {
        decoder: Decoder,
        /// Samples that are still to be left out.
        skip: usize,
        made: Vec<i16>,
    },
}

impl TrackSound {
    fn next(&mut self, out: &mut Vec<f32>) -> Result<bool, Failure> {
        loop {
            let early = match self.format.next_packet() {
                // What `Source` put in place of what is missing.
                Ok(Some(packet)) if self.padded && packet.data.iter().all(|byte| *byte == 0) => true,
                Ok(Some(packet)) if packet.track_id == self.track.id => {
                    match self.append(&packet, out) {
                        Ok(()) => self.decoded += 1,
                        Err(_) => self.failed += 1,
                    }
                    return Ok(true);
                }
                Ok(Some(_)) => continue,
                // Another stream is chained to this one: the recording is the first.
                Ok(None) | Err(SymphoniaError::ResetRequired) => false,
                Err(_) => true,
            };
            return self.finish(early).map(|()| false);
        }
    }

    /// Decodes one packet and mixes its channels to one.
    fn append(&mut self, packet: &Packet, out: &mut Vec<f32>) -> Result<(), SymphoniaError> {
        let before = out.len();
        match &mut self.coder {
            Coder::Opus { decoder, skip, made } => {
                made.clear();
                self.rate = opus::DECODER_RATE;
                decoder
                    .decode(&packet.data, made)
                    .map_err(|_| SymphoniaError::DecodeError("a packet that is not Opus"))?;
                let skipped = (*skip).min(made.len());
                *skip -= skipped;
                out.extend(made.iter().skip(skipped).map(|sample| f32::from(*sample) / FULL_SCALE));
            }
            Coder::Symphonia(decoder) => {
                let decoded = decoder.decode(packet)?;
                let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count().max(1));
                if self.rate == 0 {
                    self.rate = rate;
                } else if rate != self.rate {
                    return Err(SymphoniaError::DecodeError("the rate changes within the file"));
                }
                decoded.copy_to_vec_interleaved(&mut self.interleaved);
                let frames = self.interleaved.chunks_exact(channels);
                out.extend(frames.map(|frame| frame.iter().sum::<f32>() / channels as f32));
                self.take_off(before, out);
            }
        }
        Ok(())
    }

    /// Of a film's sound, what is to be played: behind the encoder's lead-in, and as long as it says.
    fn take_off(&mut self, before: usize, out: &mut Vec<f32>) {
        let (start, samples) = (self.have, (out.len() - before) as u64);
        self.have += samples;
        let Some(frames) = self.track.num_frames.filter(|frames| *frames > 0 && self.container == "isomp4") else {
            return;
        };
        let lead = mp4_lead(&*self.format, frames, self.rate).unwrap_or(0) as u64;
        let within = |place: u64| usize::try_from(place.saturating_sub(start).min(samples)).unwrap_or(0);
        out.truncate(before + within(frames));
        out.drain(before..before + within(lead.min(frames)).min(out.len() - before));
    }

    /// The end: judges what is missing. An error where most was broken.
    fn finish(&mut self, early: bool) -> Result<(), Failure> {
        let (decoded, failed) = (self.decoded, self.failed);
        if let Coder::Opus { .. } = self.coder {
            self.cut |= failed > 0;
            return Ok(());
        }
        if decoded == 0 || failed > decoded {
            // An mp3 header is two bytes, so anything may hold one.
            let reason = format!("{failed} of {} packets are broken", failed + decoded);
            return Err(if self.container == "mp3" { Failure::NotAudio } else { Failure::Damaged(reason) });
        }
        let told = told(self.container, &self.track);
        // A wav or mkv that was written into a pipe does not know its length and just stops.
        let endless = self.container == "matroska" || self.container == "wave" && told.is_none();
        let tolerance = u64::from(self.rate) / 20;
        self.cut |= early && !endless || told.is_some_and(|told| self.have + tolerance < told);
        Ok(())
    }
}

/// How many samples the container says that a track has, where that is no guess from the length of the file, as it is of
/// raw aac, and of mp3 without an encoder's tag.
pub(super) fn told(container: &str, track: &Track) -> Option<u64> {
    let declared = track.num_frames.filter(|frames| *frames > 0);
    match container {
        "aac" | "matroska" => None,
        "mp3" => declared.filter(|_| track.delay.is_some()),
        _ => declared,
    }
}

/// Samples that an AAC encoder put before the sound. Symphonia 0.6 knows no edit lists, but the film's length says how
/// much of the track is to be played, in milliseconds; what is over is an encoder's lead-in where it is as long as one.
fn mp4_lead(format: &dyn FormatReader, frames: u64, rate: u32) -> Option<usize> {
    /// ffmpeg and most others, fdk-aac, Apple.
    const KNOWN: [usize; 3] = [1_024, 2_048, 2_112];
    let info = format.media_info();
    let played = info.time_base?.calc_duration(info.duration?)?;
    let played = played.as_nanos().unsigned_abs() * u128::from(rate) / 1_000_000_000;
    let lead = usize::try_from(u128::from(frames).checked_sub(played)?).ok()?;
    KNOWN.into_iter().find(|known| known.abs_diff(lead) <= rate as usize / 1_000 + 1)
}
