//! What 20 ms of audio cost: changes of rate, G.711, Opus, and whole lanes; and how fast recordings are cut into pieces.
//! `cargo bench --bench audio`.
//!
//! A thousand calls that talk in one direction do each of these 50,000 times a second: 20 us are one core.
use std::{fs, hint::black_box, io::Cursor, path::Path, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opus_pure::{OggOpusWriter, OpusHead, OpusTags};
use voxrelay::{
    audio::{
        Codec, Format,
        decode::decode_file,
        g711::Law,
        lane::{Downlink, Uplink},
        opus::{DEFAULT_BITRATE, Decoder, ENCODER_FRAME, Encoder},
        resample::Resampler,
    },
    batch::cut::{Limits, Plan, plan},
};

/// Of the client protocol, and the odd ones of a telephone.
const RATES: [u32; 6] = [8_000, 16_000, 24_000, 48_000, 44_100, 192_000];

/// Two seconds of speech at `rate` Hz.
fn speech(rate: u32) -> Vec<i16> {
    let hello = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/hello.wav");
    let mut samples = decode_file(hello, rate).expect("assets/hello.wav is part of the repository").samples;
    samples.truncate(rate as usize * 2);
    samples
}

fn resampling(c: &mut Criterion) {
    let mut group = c.benchmark_group("resample 20 ms");
    for from in RATES {
        for to in RATES.into_iter().filter(|to| *to != from) {
            let speech = speech(from);
            let mut pieces = speech.chunks_exact(from as usize / 50).cycle();
            let mut resampler = Resampler::new(from, to).expect("rates that somebody has");
            let mut out = Vec::with_capacity(960);
            group.bench_function(format!("{from} to {to}"), |b| {
                b.iter(|| {
                    out.clear();
                    resampler.push(black_box(pieces.next().unwrap_or_default()), &mut out);
                    out.last().copied()
                });
            });
        }
    }
    group.bench_function("a new one, 24000 to 8000", |b| b.iter(|| Resampler::new(24_000, 8_000)));
}

fn g711(c: &mut Criterion) {
    let mut group = c.benchmark_group("G.711 20 ms");
    let samples: Vec<i16> = speech(8_000).into_iter().skip(4_000).take(160).collect();
    for law in [Law::Mu, Law::A] {
        let mut codes = Vec::with_capacity(160);
        law.encode_into(&samples, &mut codes);
        let mut out = Vec::with_capacity(160);
        group.bench_function(format!("encode {law:?}"), |b| {
            b.iter(|| {
                out.clear();
                law.encode_into(black_box(&samples), &mut out);
                out.last().copied()
            });
        });
        let mut out = Vec::with_capacity(160);
        group.bench_function(format!("decode {law:?}"), |b| {
            b.iter(|| {
                out.clear();
                law.decode_into(black_box(&codes), &mut out);
                out.last().copied()
            });
        });
    }
}

fn opus(c: &mut Criterion) {
    let mut group = c.benchmark_group("Opus 20 ms");
    let speech = speech(24_000);
    let mut encoder = Encoder::new(DEFAULT_BITRATE).expect("the default is allowed");
    let packets: Vec<Vec<u8>> = speech
        .chunks_exact(ENCODER_FRAME)
        .map(|frame| {
            let mut packet = Vec::new();
            encoder.encode(frame, &mut packet).expect("a frame is 20 ms");
            packet
        })
        .collect();
    let mut frames = speech.chunks_exact(ENCODER_FRAME).cycle();
    let mut packet = Vec::with_capacity(1_500);
    group.bench_function("encode", |b| {
        b.iter(|| {
            packet.clear();
            encoder.encode(black_box(frames.next().unwrap_or_default()), &mut packet)
        });
    });
    let mut decoder = Decoder::new(24_000).expect("24 kHz is a rate");
    let mut incoming = packets.iter().cycle();
    let mut out = Vec::with_capacity(480);
    group.bench_function("decode", |b| {
        b.iter(|| {
            out.clear();
            decoder.decode(black_box(incoming.next().map_or(&[], Vec::as_slice)), &mut out)
        });
    });
    group.bench_function("a new encoder", |b| b.iter(|| Encoder::new(DEFAULT_BITRATE)));
    group.bench_function("a new decoder", |b| b.iter(|| Decoder::new(24_000)));
}

fn lanes(c: &mut Criterion) {
    let mut group = c.benchmark_group("lane 20 ms");
    let upstream: Vec<u8> = speech(24_000).iter().flat_map(|sample| sample.to_le_bytes()).collect();
    for rate in RATES {
        let client = Format { codec: Codec::Pcm16, rate };
        let message: Vec<u8> =
            speech(rate).iter().skip(rate as usize).take(rate as usize / 50).flat_map(|s| s.to_le_bytes()).collect();
        let (mut up, mut down) = (Uplink::new(client), Downlink::new(client));
        let mut out = Vec::with_capacity(2_000);
        group.bench_function(format!("up {client}"), |b| {
            b.iter(|| {
                out.clear();
                up.push(black_box(&message), &mut out)
            });
        });
        let mut frames = upstream.chunks_exact(960).cycle();
        group.bench_function(format!("down {client}"), |b| {
            b.iter(|| {
                out.clear();
                down.frame(black_box(frames.next().unwrap_or_default()), &mut out)
            });
        });
    }
    let mut down = Downlink::new(Format::MULAW);
    group.bench_function("down mulaw@8000", |b| {
        let mut out = Vec::with_capacity(160);
        b.iter(|| {
            out.clear();
            down.frame(black_box(&[0x7F; 160]), &mut out)
        });
    });
}

criterion_group!(benches, resampling, g711, opus, lanes);
criterion_main!(benches);
