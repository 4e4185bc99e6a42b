use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::audio::{
    decode::decode_file,
    testing::{file, hello_at},
};

fn clip(name: &str) -> PathBuf {
    file("tests/clips").join(name)
}

/// Nobody stops it.
fn on() -> CancellationToken {
    CancellationToken::new()
}

/// No file is too short.
fn any_length() -> Limits {
    Limits { shortest: Duration::ZERO, ..Limits::default() }
}

fn pieces_of(plan: Plan) -> Pieces {
    match plan {
        Plan::Pieces(pieces) => pieces,
        other => panic!("{other:?}"),
    }
}

/// All pieces, with their samples as a reader of wav files has them.
fn all(pieces: &mut Pieces) -> Vec<(Piece, Vec<i16>)> {
    let mut made = Vec::new();
    loop {
        let mut wav = Cursor::new(Vec::new());
        let Some(piece) = pieces.write_next(&mut wav).unwrap() else { return made };
        let bytes = wav.into_inner();
        let mut wav = hound::WavReader::new(bytes.as_slice()).unwrap();
        let spec = wav.spec();
        assert_eq!((spec.sample_rate, spec.channels, spec.bits_per_sample), (PIECE_RATE, 1, 16));
        let samples: Vec<i16> = wav.samples().map(Result::unwrap).collect();
        assert_eq!(bytes.len() as u64, WAV_HEAD + 2 * samples.len() as u64);
        assert_eq!(time(samples.len() as u64), piece.length);
        made.push((piece, samples));
    }
}

/// What the pieces are pieces of; they must fit onto each other.
fn together(made: &[(Piece, Vec<i16>)]) -> Vec<i16> {
    let mut whole: Vec<i16> = Vec::new();
    for (index, (piece, samples)) in made.iter().enumerate() {
        let overlap = usize::try_from(super::samples(piece.overlap)).unwrap();
        assert_eq!((piece.index, piece.last), (index, index + 1 == made.len()));
        assert_eq!(time((whole.len() - overlap) as u64), piece.start);
        assert!(whole.ends_with(&samples[..overlap]));
        whole.extend_from_slice(&samples[overlap..]);
    }
    whole
}

/// A sound that is made while it is read.
struct Made<F> {
    left: u64,
    block: F,
}

impl<F: FnMut(&mut Vec<i16>) + Send> Samples for Made<F> {
    fn read(&mut self, out: &mut Vec<i16>) -> Result<bool, DecodeError> {
        let before = out.len();
        if self.left > 0 {
            (self.block)(out);
            let made = (out.len() - before) as u64;
            out.truncate(out.len() - usize::try_from(made.saturating_sub(self.left)).unwrap());
            self.left = self.left.saturating_sub(made);
        }
        Ok(out.len() > before)
    }

    fn truncated(&self) -> bool {
        false
    }
}

fn made(seconds: u64, block: impl FnMut(&mut Vec<i16>) + Send + 'static, longest: u64) -> Pieces {
    let limits = Limits { longest: Duration::from_secs(longest), ..Limits::default() };
    let sound = Box::new(Made { left: seconds * u64::from(PIECE_RATE), block });
    Pieces::new(Path::new("made.wav"), sound, limits.samples().unwrap(), None)
}

/// The sentence again and again: pauses after 1.88 and 4.62 s of each 5.4.
fn chatter() -> impl FnMut(&mut Vec<i16>) + Send + 'static {
    let said = hello_at(PIECE_RATE);
    move |out| out.extend_from_slice(&said)
}

/// Noise without a pause.
fn noise() -> impl FnMut(&mut Vec<i16>) + Send + 'static {
    let mut seed = 1_u32;
    move |out| {
        out.extend((0..1_600).map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((seed >> 16) as u16 as i16) / 4
        }));
    }
}

#[test]
fn a_file_within_the_limits_goes_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let named = |clip_name: &str, name: &str| {
        let path = folder.path().join(name);
        fs::copy(clip(clip_name), &path).unwrap();
        path
    };
    let table = [
        (clip("hello_question_24k.mp3"), "audio.mp3", "audio/mpeg"),
        (named("hello_question_24k.mp3", "voice note.wav"), "audio.mp3", "audio/mpeg"),
        (named("noisy_question_16k.wav", "call.mp3"), "audio.wav", "audio/wav"),
        (named("hello_question_opus.ogg", "1.opus"), "audio.ogg", "audio/ogg"),
        (named("hello_question_24k.m4a", "no_ending"), "audio.m4a", "audio/mp4"),
        (named("hello_question_8k.flac", "Gespräch 日.FLAC"), "audio.flac", "audio/flac"),
        (clip("hello_question_opus.webm"), "audio.webm", "audio/webm"),
        (clip("hello_question_opus_live.webm"), "audio.webm", "audio/webm"),
        (clip("film_with_sound.mp4"), "audio.mp4", "video/mp4"),
        // Nobody here can decode it; the service may.
        (clip("hello_word_alac.m4a"), "audio.m4a", "audio/mp4"),
    ];
    for (path, want, media_type) in table {
        let Plan::Whole(whole) = plan(&path, &any_length(), &on()).unwrap() else { panic!("{}", path.display()) };
        assert_eq!((whole.name.as_str(), whole.media_type), (want, media_type));
        assert_eq!((whole.bytes, &whole.path), (fs::metadata(&path).unwrap().len(), &path));
        if let Ok(recording) = decode_file(&path, PIECE_RATE) {
            assert!(whole.length.abs_diff(recording.duration()) < Duration::from_millis(50), "{want}: {whole:?}");
        }
    }
}

#[test]
fn short_files_are_left() {
    for (name, seconds) in [
        ("tone_1k_-12dbfs_24k.wav", 1.0),
        ("silence_then_dither_24k.wav", 2.0),
        ("film_with_sound.mp4", 1.0),
        ("hello_word_8k_stereo_float.wav", 0.7),
        ("hello_word_alac.m4a", 0.5),
    ] {
        let Plan::TooShort { length } = plan(clip(name), &Limits::default(), &on()).unwrap() else { panic!("{name}") };
        assert!((length.as_secs_f64() - seconds).abs() < 0.05, "{name}: {length:?}");
    }
    let longer = Limits { shortest: Duration::from_secs(6), ..Limits::default() };
    for name in ["hello_question_24k.aac", "hello_question_opus_live.webm", "hello_question_24k.mp3"] {
        let Plan::TooShort { length } = plan(clip(name), &longer, &on()).unwrap() else { panic!("{name}") };
        assert!((length.as_secs_f64() - 5.4).abs() < 0.1, "{name}: {length:?}");
    }
}

#[test]
fn what_has_no_sound_in_it_is_no_piece() {
    let folder = tempfile::tempdir().unwrap();
    let file = |channels, sample_rate, samples| {
        let path = folder.path().join(format!("{channels}-{sample_rate}-{samples}.wav"));
        let spec =
            hound::WavSpec { channels, sample_rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
        let mut wav = hound::WavWriter::create(&path, spec).unwrap();
        (0..samples * channels).for_each(|_| wav.write_sample(1_i16).unwrap());
        wav.finalize().unwrap();
        path
    };
    for channels in [1, 8] {
        let error = plan(file(channels, 16_000, 0), &any_length(), &on()).unwrap_err();
        assert!(matches!(error, CutError::Decode(DecodeError::Damaged { .. })), "{error}");
    }
    for rate in [16_000, 48_000, 192_000] {
        let made = all(&mut pieces_of(plan(file(8, rate, 1), &any_length(), &on()).unwrap()));
        assert!(made.iter().all(|(piece, _)| !piece.length.is_zero()), "{rate}: {made:?}");
    }
}

#[test]
fn what_the_service_does_not_take_is_made_over() {
    let folder = tempfile::tempdir().unwrap();
    // Eight channels, of which one speaks.
    let eight = folder.path().join("meeting.wav");
    let spec = hound::WavSpec {
        channels: 8,
        sample_rate: PIECE_RATE,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(&eight, spec).unwrap();
    for sample in hello_at(PIECE_RATE) {
        (0..8).for_each(|channel| wav.write_sample(if channel == 5 { sample } else { 0 }).unwrap());
    }
    wav.finalize().unwrap();
    let halved = |name: &str| {
        let bytes = fs::read(clip(name)).unwrap();
        let path = folder.path().join(name);
        fs::write(&path, &bytes[..bytes.len() * 7 / 10]).unwrap();
        path
    };
    let large = folder.path().join("large.wav");
    let spec = hound::WavSpec { channels: 1, sample_rate: 48_000, ..spec };
    let mut wav = hound::WavWriter::create(&large, spec).unwrap();
    hello_at(48_000).iter().for_each(|sample| wav.write_sample(*sample).unwrap());
    wav.finalize().unwrap();
    // The file is over the limit, a piece of ten seconds is not.
    let small = Limits { bytes: 330_000, ..any_length() };
    let table = [
        (eight.clone(), any_length(), false),
        (clip("hello_question_24k.aac"), any_length(), false),
        (large, small, false),
        (halved("noisy_question_16k.wav"), any_length(), true),
        (halved("hello_question_24k.m4a"), any_length(), true),
        (halved("hello_question_opus.webm"), any_length(), true),
        (halved("hello_question_opus.ogg"), any_length(), true),
        (halved("hello_question_vorbis.ogg"), any_length(), true),
    ];
    for (path, limits, cut) in table {
        let mut pieces = pieces_of(plan(&path, &limits, &on()).unwrap());
        let made = all(&mut pieces);
        assert_eq!((made.len(), pieces.truncated()), (1, cut), "{}", path.display());
        assert!(together(&made) == decode_file(&path, PIECE_RATE).unwrap().samples, "{}", path.display());
    }
    let one: Vec<i16> = hello_at(PIECE_RATE).iter().map(|sample| sample / 8).collect();
    let mixed = decode_file(&eight, PIECE_RATE).unwrap().samples;
    assert!(mixed.iter().zip(&one).all(|(a, b)| a.abs_diff(*b) <= 1), "channels are mixed to one");
}

#[test]
fn what_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let noise: Vec<u8> = (0..40_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let wav = fs::read(clip("tone_1k_-12dbfs_24k.wav")).unwrap();
    let table = [
        (folder.path().join("nowhere.wav"), "no such file"),
        (folder.path().to_owned(), "cannot be read: "),
        (put("empty.wav", &[]), "the file is empty (0 bytes)"),
        (put("text.mp3", "To be, or not to be.\n".repeat(999).as_bytes()), "not an audio file"),
        (put("noise.mp3", &noise), "not an audio file"),
        (clip("film_without_sound.mp4"), "there is no audio track in this file"),
        (put("header.wav", &wav[..44]), "damaged or cut short, nothing in it can be decoded ("),
    ];
    for (path, want) in table {
        let error = plan(&path, &any_length(), &on()).unwrap_err().to_string();
        let rest = error.strip_prefix(&format!("{}: ", path.display())).expect("an error names its file");
        assert!(rest.starts_with(want), "{error}");
    }
    let mistaken = Limits { longest: Duration::from_secs(3), ..any_length() };
    let error = plan(clip("hello_question_24k.mp3"), &mistaken, &on()).unwrap_err().to_string();
    assert_eq!(error, "pieces of at most 24900000 bytes and 3 s; allowed: from 320044 bytes and 10 s on");
}

#[test]
fn a_full_disk_ends_it() {
    let mut disk = [0_u8; 5_000];
    let mut pieces = made(30, chatter(), 20);
    let error = pieces.write_next(&mut Cursor::new(disk.as_mut_slice())).unwrap_err().to_string();
    assert!(error.starts_with("a piece of made.wav: cannot be written: "), "{error}");
    assert!(pieces.write_next(&mut Cursor::new(Vec::new())).unwrap().is_none());
}

#[test]
fn speech_is_cut_in_its_pauses() {
    let mut pieces = made(300, chatter(), 60);
    let parts = all(&mut pieces);
    let said = hello_at(PIECE_RATE);
    let whole: Vec<i16> = said.iter().copied().cycle().take(300 * 16_000).collect();
    assert!(together(&parts) == whole);
    assert!(parts.len() >= 5 && parts.len() <= 8, "{}", parts.len());
    let sentence = said.len() as f64 / f64::from(PIECE_RATE);
    for (piece, _) in parts.iter().skip(1) {
        let within = piece.start.as_secs_f64() % sentence;
        let silent = within < 0.25 || (1.86..2.28).contains(&within) || within > 4.6;
        assert!(silent && piece.overlap.is_zero(), "cut at {within:.2} s of the sentence");
        assert!(piece.length <= Duration::from_secs(60));
    }
    assert!(parts.last().unwrap().0.length >= Duration::from_secs(10), "the last piece is worth a request");
}

#[test]
fn where_nobody_stops_the_pieces_overlap() {
    let parts = all(&mut made(100, noise(), 30));
    assert!(parts.len() >= 4);
    for (piece, _) in parts.iter().skip(1) {
        assert_eq!(piece.overlap, OVERLAP);
    }
    assert_eq!(together(&parts).len(), 100 * 16_000);
}

#[test]
fn a_job_goes_on_where_it_was() {
    let parts = all(&mut made(300, chatter(), 40));
    let mut again = made(300, chatter(), 40);
    for (piece, _) in &parts[..3] {
        assert_eq!(again.skip().unwrap(), Some(*piece));
    }
    assert!(all(&mut again) == parts[3..]);
    assert!(again.skip().unwrap().is_none());
}

/// Takes what is written and keeps none of it.
struct Nowhere(u64);

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Nowhere {
    fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
        Ok(0)
    }
}

#[test]
fn ten_hours_need_no_more_memory_than_ten_minutes() {
    let mut length = Duration::ZERO;
    let mut pieces = made(36_000, chatter(), 600);
    let used = allocation_counter::measure(|| {
        // The first in full, the others only cut.
        let first = pieces.write_next(&mut Nowhere(0)).unwrap().unwrap();
        length = first.start + first.length;
        while let Some(piece) = pieces.skip().unwrap() {
            length = piece.start + piece.length;
        }
    });
    assert_eq!(length, Duration::from_secs(36_000));
    println!("{} kB at most", used.bytes_max / 1_000);
    assert!(used.bytes_max < 8_000_000, "{} bytes", used.bytes_max);
}

#[test]
fn a_long_file_is_never_in_memory() {
    // 20 minutes of a telephone line, 9.6 MB on the disk and 38 MB decoded.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.wav");
    let clip = fs::read(clip("hello_question_8k_alaw.wav")).unwrap();
    let data = clip.windows(4).position(|id| id == b"data").unwrap() + 8;
    let sound = clip[data..data + 43_196].repeat(222);
    let mut bytes = clip[..data].to_vec();
    bytes[4..8].copy_from_slice(&u32::try_from(data - 8 + sound.len()).unwrap().to_le_bytes());
    bytes[data - 4..].copy_from_slice(&u32::try_from(sound.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&sound);
    fs::write(&path, &bytes).unwrap();
    let seconds = sound.len() as f64 / 8_000.0;
    let mut end = Duration::ZERO;
    let used = allocation_counter::measure(|| {
        let mut pieces = pieces_of(plan(&path, &Limits::default(), &on()).unwrap());
        assert!((pieces.about().unwrap().as_secs_f64() - seconds).abs() < 0.01);
        while let Some(piece) = pieces.skip().unwrap() {
            end = piece.start + piece.length;
        }
        assert!(!pieces.truncated());
    });
    assert!((end.as_secs_f64() - seconds).abs() < 0.01, "{end:?}");
    println!("{} kB at most", used.bytes_max / 1_000);
    assert!(used.bytes_max < 8_000_000, "{} bytes", used.bytes_max);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn pieces_always_make_the_whole(
        seconds in 1_u64..90, more in 0_u64..16_000, longest in 10_u64..40, talk in any::<bool>(),
        gaps in proptest::collection::vec((0_usize..40_000, 0_usize..12_000), 1..12),
    ) {
        let mut turn = gaps.into_iter().cycle();
        let mut voice = noise();
        let mixed = move |out: &mut Vec<i16>| {
            let (spoken, silent) = turn.next().unwrap_or_default();
            if talk {
                (0..spoken / 1_600).for_each(|_| voice(out));
            }
            out.extend(std::iter::repeat_n(0, silent + 1));
        };
        let mut pieces = made(seconds, mixed, longest);
        pieces.most -= usize::try_from(more).unwrap();
        let most = pieces.most;
        let parts = all(&mut pieces);
        prop_assert_eq!(together(&parts).len() as u64, seconds * 16_000);
        for (piece, samples) in &parts {
            prop_assert!(samples.len() <= most && piece.overlap < piece.length);
            prop_assert!(parts.len() == 1 || samples.len() >= most / 4, "{piece:?} of {most}");
        }
    }
}
