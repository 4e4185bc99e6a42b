//! Sound cards, by cpal: ALSA (and what stands behind it, PulseAudio or PipeWire) on Linux, CoreAudio, WASAPI.
//!
//! Takes whatever rate, number of channels and sample format a device has; 48 kHz where it has that. Callbacks do nothing
//! but move samples between the device's buffer and a ring.
use std::{thread, time::Duration};

use cpal::{
    BufferSize, Device, Error, ErrorKind, FromSample, I24, InputCallbackInfo, OutputCallbackInfo, Sample as _,
    SampleFormat, SizedSample, Stream, StreamConfig, SupportedBufferSize, SupportedStreamConfig, U24,
    traits::{DeviceTrait as _, HostTrait as _, StreamTrait as _},
};
use tokio::time::Instant;

use super::{
    io::{AudioIo, DeviceError, Running, Side, Want, find},
    tap::{self, Capture, Complaints, MicEnd, Playback, SpeakerEnd},
};

/// The rate that is asked for where a device has it: all have, and it is twice the call's.
const RATE: u32 = 48_000;
/// A lost device may report errors as fast as it can (cpal on ALSA: over a thousand in 6 s, all of them the same), on a
/// thread that has nothing else to do: from the twentieth in a row on it is slowed down.
const PATIENCE: u32 = 20;
const SLOWER: Duration = Duration::from_millis(20);
/// Channels that a voice is played on; further ones are for film sound.
const STEREO: usize = 2;

/// This computer's sound cards.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cards;

/// What people call a device, and what the system does.
type Names = (String, String);

/// One device, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What the system calls it; unique.
    pub id: String,
}

impl Cards {
    /// All devices of a side, and the default one's name.
    ///
    /// # Errors
    /// When the sound system does not answer.
    pub fn list(side: Side) -> Result<(Vec<Listed>, Option<String>), DeviceError> {
        let _quiet = chatter::keep();
        let listed = all(side)?.into_iter().map(|(device, (name, id))| {
            drop(device);
            Listed { name, id }
        });
        Ok((listed.collect(), default(side).map(|device| names(&device).0)))
    }
}

impl AudioIo for Cards {
    fn check(&self, side: Side, want: &Want) -> Result<(), DeviceError> {
        let _quiet = chatter::keep();
        choose(side, want).map(drop)
    }

    fn open_microphone(&self, want: &Want) -> Result<Running<MicEnd>, DeviceError> {
        let side = Side::Microphone;
        let complaint = chatter::keep();
        let (device, name) = choose(side, want)?;
        let failed = |error: Error| failed(side, &name, &error, &complaint);
        let (config, format) = configure(side, &device, want.period).map_err(failed)?;
        let (capture, end) = tap::microphone(config.sample_rate);
        let stream = listen(&device, config, format, capture).map_err(failed)?;
        stream.play().map_err(failed)?;
        Ok(Running { device: name, end, guard: Box::new(stream) })
    }

    fn open_loudspeaker(&self, want: &Want) -> Result<Running<SpeakerEnd>, DeviceError> {
        let side = Side::Loudspeaker;
        let complaint = chatter::keep();
        let (device, name) = choose(side, want)?;
        let failed = |error: Error| failed(side, &name, &error, &complaint);
        let (config, format) = configure(side, &device, want.period).map_err(failed)?;
        let (playback, end) = tap::loudspeaker(config.sample_rate);
        let stream = play(&device, config, format, playback).map_err(failed)?;
        stream.play().map_err(failed)?;
        Ok(Running { device: name, end, guard: Box::new(stream) })
    }
}

/// An error in words; the sound system's own are better where it has some.
fn failed(side: Side, device: &str, error: &Error, complaint: &chatter::Kept) -> DeviceError {
    let why = complaint.last().map_or_else(|| error.to_string(), |said| format!("{said} ({error})"));
    DeviceError::Failed { side, device: device.to_owned(), why }
}

/// The device that is wanted, and its name.
fn choose(side: Side, want: &Want) -> Result<(Device, String), DeviceError> {
    let Some(wanted) = &want.device else {
        let device = default(side).ok_or(DeviceError::None { side })?;
        let (name, _) = names(&device);
        return Ok((device, name));
    };
    let (devices, listed): (Vec<Device>, Vec<Names>) = all(side)?.into_iter().unzip();
    let index = find(side, wanted, &listed)?;
    let found = devices.into_iter().zip(listed).nth(index);
    found.map(|(device, (name, _))| (device, name)).ok_or(DeviceError::None { side })
}

fn default(side: Side) -> Option<Device> {
    let host = cpal::default_host();
    match side {
        Side::Microphone => host.default_input_device(),
        Side::Loudspeaker => host.default_output_device(),
    }
}

fn all(side: Side) -> Result<Vec<(Device, Names)>, DeviceError> {
    let host = cpal::default_host();
    let named = |device: Device| {
        let names = names(&device);
        (device, names)
    };
    let devices: Result<Vec<_>, Error> = match side {
        Side::Microphone => host.input_devices().map(|devices| devices.map(named).collect()),
        Side::Loudspeaker => host.output_devices().map(|devices| devices.map(named).collect()),
    };
    devices.map_err(|error| DeviceError::Failed {
        side,
        device: "list of the sound system".to_owned(),
        why: error.to_string(),
    })
}

fn names(device: &Device) -> Names {
    let id = device.id().map(|id| id.id().to_owned()).unwrap_or_default();
    let name = device.description().map(|description| description.name().trim().to_owned());
    (name.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| id.clone()), id)
}

/// The device's own choice, at 48 kHz if it can, with buffers of about `period`.
fn configure(side: Side, device: &Device, period: Duration) -> Result<(StreamConfig, SampleFormat), Error> {
    let own = match side {
        Side::Microphone => device.default_input_config()?,
        Side::Loudspeaker => device.default_output_config()?,
    };
    let others: Vec<_> = match side {
        Side::Microphone => device.supported_input_configs()?.collect(),
        Side::Loudspeaker => device.supported_output_configs()?.collect(),
    };
    let same = |other: &SupportedStreamConfig| {
        (other.channels(), other.sample_format()) == (own.channels(), own.sample_format())
    };
    let better = others.into_iter().filter_map(|range| range.try_with_sample_rate(RATE)).find(same);
    let chosen = better.unwrap_or(own);
    let mut config = chosen.config();
    let frames = period.as_millis() * u128::from(chosen.sample_rate()) / 1_000;
    if let SupportedBufferSize::Range { min, max } = *chosen.buffer_size() {
        config.buffer_size = BufferSize::Fixed(u32::try_from(frames).unwrap_or(max).clamp(min.max(1), max.max(1)));
    }
    Ok((config, chosen.sample_format()))
}

/// Calls a function with the sample format as a type.
macro_rules! by_format {
    ($format:expr, $function:ident($($argument:expr),*)) => {
        match $format {
            SampleFormat::I8 => $function::<i8>($($argument),*),
            SampleFormat::I16 => $function::<i16>($($argument),*),
            SampleFormat::I24 => $function::<I24>($($argument),*),
            SampleFormat::I32 => $function::<i32>($($argument),*),
            SampleFormat::I64 => $function::<i64>($($argument),*),
            SampleFormat::U8 => $function::<u8>($($argument),*),
            SampleFormat::U16 => $function::<u16>($($argument),*),
            SampleFormat::U24 => $function::<U24>($($argument),*),
            SampleFormat::U32 => $function::<u32>($($argument),*),
            SampleFormat::U64 => $function::<u64>($($argument),*),
            SampleFormat::F32 => $function::<f32>($($argument),*),
            SampleFormat::F64 => $function::<f64>($($argument),*),
            other => Err(Error::with_message(
                ErrorKind::UnsupportedConfig,
                format!("its samples are {other}, which is not known here"),
            )),
        }
    };
}

fn listen(device: &Device, config: StreamConfig, format: SampleFormat, capture: Capture) -> Result<Stream, Error> {
    by_format!(format, listen_as(device, config, capture))
}

fn play(device: &Device, config: StreamConfig, format: SampleFormat, playback: Playback) -> Result<Stream, Error> {
    by_format!(format, play_as(device, config, playback))
}

fn listen_as<T>(device: &Device, config: StreamConfig, mut capture: Capture) -> Result<Stream, Error>
where
    T: SizedSample,
    f32: FromSample<T>,
{
    let channels = usize::from(config.channels);
    let errors = errors(capture.complaints());
    let callback = move |data: &[T], _: &InputCallbackInfo| {
        capture.hear(data.iter().map(|sample| f32::from_sample(*sample)), channels);
    };
    device.build_input_stream(config, callback, errors, None)
}

fn play_as<T>(device: &Device, config: StreamConfig, mut playback: Playback) -> Result<Stream, Error>
where
    T: SizedSample + FromSample<f32>,
{
    let channels = usize::from(config.channels).max(1);
    let errors = errors(playback.complaints());
    let callback = move |data: &mut [T], info: &OutputCallbackInfo| {
        let moments = info.timestamp();
        let heard_at = Instant::now() + moments.playback.duration_since(moments.callback);
        playback.fill(data.chunks_exact_mut(channels), heard_at, |frame, sample| {
            let (voice, rest) = frame.split_at_mut(STEREO.min(channels));
            voice.fill(T::from_sample(sample));
            rest.fill(T::EQUILIBRIUM);
        });
    };
    device.build_output_stream(config, callback, errors, None)
}

/// What a stream's errors come to.
fn errors(complaints: Complaints) -> impl FnMut(Error) + Send + 'static {
    let (mut callbacks, mut in_a_row) = (0, 0_u32);
    let mut first = true;
    move |error| {
        if std::mem::take(&mut first) {
            // This thread is the device's.
            let _quiet = chatter::keep();
        }
        let gone = match error.kind() {
            // Nothing is wrong: the system has found another way, or gives no more than it must.
            ErrorKind::DeviceChanged | ErrorKind::RealtimeDenied => return,
            ErrorKind::DeviceNotAvailable | ErrorKind::HostUnavailable | ErrorKind::StreamInvalidated => true,
            _ => false,
        };
        complaints.complain(gone, || error.to_string());
        in_a_row = if complaints.callbacks() == callbacks { in_a_row.saturating_add(1) } else { 0 };
        callbacks = complaints.callbacks();
        if in_a_row >= PATIENCE {
            thread::sleep(SLOWER);
        }
    }
}

/// What the ALSA library writes to standard error by itself, several lines for each device that does not open: kept from
/// the screen, thread by thread.
#[cfg(target_os = "linux")]
mod chatter {
    use std::{cell::RefCell, rc::Rc};

    /// What it says from here on.
    pub(super) struct Kept(Option<Rc<RefCell<alsa::Output>>>);

    /// Keeps it, on this thread, until it ends.
    pub(super) fn keep() -> Kept {
        Kept(alsa::Output::local_error_handler().ok())
    }

    impl Kept {
        /// The last line, without the name of the library's function.
        pub(super) fn last(&self) -> Option<String> {
            let text = self.0.as_ref()?.borrow().to_string();
            let line = text.lines().rfind(|line| !line.trim().is_empty())?;
            Some(line.split_once(": ").map_or(line, |(_, said)| said).trim().to_owned())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod chatter {
    pub(super) struct Kept;

    pub(super) fn keep() -> Kept {
        Kept
    }

    impl Kept {
        pub(super) fn last(&self) -> Option<String> {
            None
        }
    }
}
