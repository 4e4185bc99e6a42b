//! What 20 ms of audio cost: changes of rate, G.711, Opus, and whole lanes; and how fast recordings are cut into pieces.
//! `cargo bench --bench audio`.
//!
//! A thousand calls that talk in one direction do each of these 50,000 times a second: 20 us are one core.
use std::{fs, hint::black_box, io::Cursor, path::Path, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opus_pure::{OggOpusReader, OggOpusWriter};
use tokio_util::sync::CancellationToken;
use voxrelay::{
    audio::{
        Codec, Format,
        decode::decode_file,
        g711::Law,
        lane::{Downlink, Uplink},
        opus::{DEFAULT_BITRATE, Decoder, ENCODER_FRAME, Encoder},
        resample::Resampler,
    },
    batch::cut::{Limits, PIECE_RATE, Plan, plan},
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

/// A recording of about `seconds` in each of the usual formats, made of a short one again and again.
fn long_recordings(seconds: usize) -> [(&'static str, Vec<u8>); 5] {
    let clip = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clips").join(name);
        fs::read(path).expect("the clips are part of the repository")
    };
    let times = seconds * 10 / 54;
    let wav = |name: &str| {
        let mut file = clip(name);
        let data = file.windows(4).position(|id| id == b"data").expect("a wav has data") + 8;
        let sound = file.split_off(data).repeat(times);
        let length = u32::try_from(sound.len()).expect("minutes are below 4 GiB");
        file.splice(data - 4.., length.to_le_bytes());
        let whole = u32::try_from(data - 8).unwrap_or_default() + length;
        file.splice(4..8, whole.to_le_bytes());
        file.extend(sound);
        file
    };
    // Frames only: the encoder's own frame in front says how long the short one is.
    let mp3 = clip("hello_question_24k.mp3");
    let header = mp3.windows(2).position(|sync| sync == [0xFF, 0xF3]).expect("an mp3 has frames");
    let sound = mp3.windows(2).skip(header + 1).position(|sync| sync == [0xFF, 0xF3]).expect("and a second one");
    let mp3 = mp3.get(header + 1 + sound..).unwrap_or_default().repeat(times);
    let aac = clip("hello_question_24k.aac").repeat(times);
    let opus = clip("hello_question_opus.ogg");
    let mut reader = OggOpusReader::new(opus.as_slice()).expect("it is Ogg Opus");
    let mut ogg = OggOpusWriter::new(Vec::new(), reader.head().clone()).expect("a head that was read can be written");
    let packets: Vec<_> = reader.packets().flatten().collect();
    for packet in std::iter::repeat_n(&packets, times).flatten() {
        ogg.write_packet(&packet.data).expect("a packet that was read can be written");
    }
    let ogg = ogg.finish().expect("memory takes all");
    [
        ("wav", wav("noisy_question_16k.wav")),
        ("wav A-law", wav("hello_question_8k_alaw.wav")),
        ("mp3", mp3),
        ("aac", aac),
        ("ogg opus", ogg),
    ]
}

/// Elements are seconds of sound: what is written as elem/s is how many times faster than real time it is, on one core.
fn cutting(c: &mut Criterion) {
    const SECONDS: usize = 300;
    let mut group = c.benchmark_group("decode and cut");
    group.sample_size(10).throughput(Throughput::Elements(SECONDS as u64));
    let folder = tempfile::tempdir().expect("there is room for a minute of sound");
    let limits = Limits { bytes: 2_000_000, longest: Duration::from_secs(60), ..Limits::default() };
    let cut = |path: &Path| {
        let Plan::Pieces(mut pieces) = plan(path, &limits, &CancellationToken::new()).expect("it can be read") else {
            return Duration::ZERO;
        };
        let (mut kept, mut end) = (Vec::new(), Duration::ZERO);
        while let Ok(Some(piece)) = pieces.write_next(&mut Cursor::new(&mut kept)) {
            end = piece.start + piece.length;
            kept.clear();
        }
        end
    };
    // There is no long FLAC: its frames are numbered. What one costs is that of a short one, mostly of decoding it.
    for (name, bytes) in long_recordings(SECONDS) {
        let path = folder.path().join("long");
        fs::write(&path, bytes).expect("there is room for it");
        let length = cut(&path).as_secs_f64() / SECONDS as f64;
        assert!((0.95..1.05).contains(&length), "{name}: {length} of what it should be");
        group.bench_function(name, |b| b.iter(|| cut(black_box(&path))));
    }
    let flac = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clips/long_turn_pause_24k.flac");
    group.throughput(Throughput::Elements(9));
    group.bench_function("flac, 9 s, without cutting", |b| b.iter(|| decode_file(black_box(&flac), PIECE_RATE)));
}

criterion_group!(benches, resampling, g711, opus, lanes, cutting);
criterion_main!(benches);
