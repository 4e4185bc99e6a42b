//! Audio, cut anywhere and of any content: no byte is lost, samples stay whole, as many milliseconds come out as go in.
use std::time::Duration;

use voxrelay::audio::{
    Codec, Format,
    chunk::Chunker,
    lane::{Downlink, FRAME, Uplink, upstream_format, upstream_input},
    opus::{self, Decoder, Head},
    resample::Resampler,
};

use super::Script;

const FORMATS: [Format; 9] = [
    Format { codec: Codec::Pcm16, rate: 8_000 },
    Format { codec: Codec::Pcm16, rate: 16_000 },
    Format::PCM_24K,
    Format { codec: Codec::Pcm16, rate: 48_000 },
    Format::MULAW,
    Format::ALAW,
    Format::OPUS,
    Format { codec: Codec::Pcm16, rate: 44_100 },
    Format { codec: Codec::Pcm16, rate: 192_000 },
];
const RATES: [u32; 4] = [8_000, 16_000, 24_000, 48_000];

/// The chunker: what goes in comes out, in chunks of one length and never through a sample.
pub(super) fn chunks(bytes: &[u8]) {
    let mut script = Script(bytes);
    let format = script.one_of(&FORMATS[..6]);
    let length = Duration::from_millis(u64::from(script.byte()));
    let (sample, chunk) = (format.sample_bytes().unwrap(), format.bytes(length));
    let (mut chunker, mut given, mut taken) = (Chunker::new(format, length), Vec::new(), Vec::new());
    while !script.is_over() {
        match script.byte() % 8 {
            0 => {
                if let Some(rest) = chunker.rest() {
                    assert!(!rest.is_empty() && rest.len().is_multiple_of(sample) && rest.len() <= chunk.max(sample));
                    taken.extend_from_slice(&rest);
                }
            }
            1 => {
                chunker.clear();
                given.truncate(taken.len());
            }
            2 => chunker.shrink(),
            _ => {
                let number = script.number() % 2_000;
                let piece: Vec<u8> = script.take(16).iter().copied().cycle().take(number).collect();
                chunker.push(&piece);
                given.extend_from_slice(&piece);
            }
        }
        while let Some(whole) = chunker.whole() {
            assert_eq!(whole.len(), chunk.max(sample));
            taken.extend_from_slice(&whole);
        }
        assert_eq!(chunker.len(), given.len() - taken.len());
    }
    assert_eq!(given.get(..taken.len()), Some(taken.as_slice()));
}

/// A change of rate: the same samples however the stream is cut, and as many as the rates say.
pub(super) fn resample(bytes: &[u8]) {
    let mut script = Script(bytes);
    let (from, to) = match script.byte() % 4 {
        0 => (script.one_of(&[12_000, 44_100, 11_025, 96_000, 192_000]), script.one_of(&RATES)),
        _ => (script.one_of(&RATES), script.one_of(&RATES)),
    };
    let Ok(mut at_once) = Resampler::new(from, to) else { return };
    let mut pieces = Resampler::new(from, to).unwrap();
    let (mut input, mut cut) = (Vec::new(), Vec::new());
    while !script.is_over() {
        let (length, seed) = (script.number() % 1_500, script.number());
        let piece: Vec<i16> = (0..length).map(|n| sample(seed, n)).collect();
        pieces.push(&piece, &mut cut);
        input.extend_from_slice(&piece);
        assert_eq!(cut.len() as u64, (input.len() as u64 * u64::from(to)).div_ceil(u64::from(from)));
    }
    let mut whole = Vec::new();
    at_once.push(&input, &mut whole);
    assert_eq!((at_once.flush(&mut whole), whole), (pieces.flush(&mut cut), cut));
}

/// Loud, and different each time.
fn sample(seed: usize, n: usize) -> i16 {
    let mixed = (seed + 1).wrapping_mul(n + 7).wrapping_mul(0x9E37_79B9);
    let [low, high, ..] = mixed.to_le_bytes();
    i16::from_le_bytes([low, high])
}

/// From a client, in messages cut anywhere: whole samples come out, as long as what went in.
pub(super) fn uplink(bytes: &[u8]) {
    let mut script = Script(bytes);
    let (client, rate) = (script.one_of(&FORMATS), script.one_of(&RATES));
    let service = upstream_input(client, rate);
    let mut lane = Uplink::towards(client, rate);
    let (mut taken, mut out, mut length) = (0_usize, Vec::new(), Duration::ZERO);
    while !script.is_over() {
        let before = out.len();
        let most = script.number() % 3_000;
        let message = script.take(most);
        match lane.push(message, &mut out) {
            Ok(played) if client.codec == Codec::Opus => {
                assert_eq!(Ok(played), opus::duration(message));
                assert_eq!(service.duration(out.len() - before), played);
            }
            Ok(played) => {
                taken += message.len();
                length += played;
                let samples = taken / client.sample_bytes().unwrap();
                assert!(
                    length.abs_diff(client.duration(samples * client.sample_bytes().unwrap()))
                        <= Duration::from_nanos(1)
                );
                let made = (samples as u64 * u64::from(service.rate)).div_ceil(u64::from(client.rate));
                assert_eq!(out.len() as u64, made * service.sample_bytes().unwrap() as u64);
            }
            Err(error) => {
                assert!(client.codec == Codec::Opus && out.len() == before, "{error}");
            }
        }
    }
    lane.flush(&mut out);
    assert!(out.len().is_multiple_of(service.sample_bytes().unwrap()));
}

/// To a client, frame by frame: each makes one message of the same length, and a bad one none.
pub(super) fn downlink(bytes: &[u8]) {
    let mut script = Script(bytes);
    let client = script.one_of(&FORMATS);
    let service = upstream_format(client);
    let (mut lane, most) = (Downlink::new(client), service.bytes(FRAME));
    for _ in 0..64 {
        if script.is_over() {
            break;
        }
        let mut out = Vec::new();
        match script.byte() % 8 {
            0 => {
                if lane.flush(&mut out).unwrap() {
                    one_frame(client, &out);
                } else {
                    assert!(out.is_empty());
                }
            }
            1 => lane.reset(),
            _ => {
                let length = script.number() % (most + 3);
                let frame: Vec<u8> = script.take(64).iter().copied().chain([7]).cycle().take(length).collect();
                let fits = length <= most && length.is_multiple_of(service.sample_bytes().unwrap());
                assert_eq!(lane.frame(&frame, &mut out).is_ok(), fits);
                if fits { one_frame(client, &out) } else { assert!(out.is_empty()) }
            }
        }
    }
}

fn one_frame(client: Format, message: &[u8]) {
    match client.codec {
        Codec::Opus => assert_eq!(opus::duration(message), Ok(FRAME)),
        _ => assert_eq!(client.duration(message.len()), FRAME),
    }
}

/// Opus of any content: packets (two bytes say how long each is), a head, and a whole file in Ogg.
pub(super) fn opus(bytes: &[u8]) {
    let _ = Head::parse(bytes);
    if bytes.starts_with(b"OggS") {
        if let Ok(mut file) = opus::OggReader::new(bytes) {
            let mut samples = 0;
            while let Some(packet) = file.read() {
                samples += packet.len();
            }
            assert!(samples <= bytes.len() * 5_760, "at most 120 ms of each byte");
        }
        return;
    }
    let mut script = Script(bytes);
    let rate = script.one_of(&RATES);
    let mut decoder = Decoder::new(rate).unwrap();
    let mut out = Vec::new();
    while !script.is_over() {
        let before = out.len();
        let length = script.number() % 1_400;
        let packet = script.take(length);
        match decoder.decode(packet, &mut out) {
            Ok(length) => {
                assert!(length <= Duration::from_millis(120));
                assert_eq!((out.len() - before) as u128 * 1_000_000_000, length.as_nanos() * u128::from(rate));
            }
            Err(_) => assert_eq!(out.len(), before),
        }
        if packet.len() % 5 == 0 {
            decoder.conceal(&mut out).unwrap();
        }
    }
}
