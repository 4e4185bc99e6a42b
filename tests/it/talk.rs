//! `talk` as a person types it, with recordings as devices: a real process, a real relay inside of it.
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;
use voxrelay::audio::decode::decode_file;

fn talk(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxrelay"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("talk").args(words).stdin(Stdio::null());
    for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "RUST_LOG", "VOXRELAY_TOKEN"] {
        command.env_remove(name);
    }
    command
}

/// Runs to the end: exit code, and what was printed to both outputs.
fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

fn samples(file: impl AsRef<Path>) -> Vec<i16> {
    decode_file(file, 24_000).unwrap().samples
}

/// Where the first sample is that is not silence.
fn begin(samples: &[i16]) -> usize {
    samples.iter().position(|sample| *sample != 0).expect("something was heard")
}

#[test]
fn a_recording_is_spoken_and_the_loudspeaker_plays_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("heard.wav");
    let (code, text) = run(&mut talk(&["--manual", "--input", "assets/hello.wav", "--output", path(&out)]));
    assert_eq!(code, 0, "{text}");
    for want in [
        "microphone: assets/hello.wav",
        "the recording is through",
        "your turn is over: commit",
        "agent: I heard 3.7 seconds of speech.",
        "reply 1 completed: 5.4",
        "first audio, measured here",
    ] {
        assert!(text.contains(want), "{want:?} in {text}");
    }
    assert!(!text.contains("ran dry"), "{text}");
    let (said, heard) = (samples("assets/hello.wav"), samples(&out));
    let (from, to) = (begin(&said), begin(&heard));
    assert!(to > from + said.len(), "in real time: the answer comes after the question");
    assert_eq!(heard[to - from..][..said.len()], said, "bit for bit");
}

#[test]
fn speaking_again_stops_the_loudspeaker() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("heard.wav");
    // Two sentences with a pause of 1.6 s between them: the second one is spoken into the first answer.
    let clip = "tests/clips/long_turn_pause_24k.flac";
    let (code, text) = run(&mut talk(&["--input", clip, "--output", path(&out)]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("reply 1 is cut off; ") && text.contains("reply 2 completed"), "{text}");
    let told = text.split("reply 1 interrupted: ").nth(1).unwrap().split(" s heard").next().unwrap();
    let told: f64 = told.parse().unwrap();
    let heard = samples(&out);
    let first = begin(&heard);
    // The answer is the caller's own words: up to the cut it is the same, and then there is nothing.
    let said = samples(clip);
    let same = heard[first..].iter().zip(&said[begin(&said)..]).take_while(|(heard, said)| heard == said).count();
    let lead = begin(&said) as f64 / 24_000.0;
    let played = same as f64 / 24_000.0;
    let cut = &heard[first + same..];
    let silence = cut.iter().take_while(|sample| **sample == 0).count();
    assert!(silence > 24_000, "{silence} samples of silence at the cut");
    // What the agent is told was heard is what left the loudspeaker, give or take a callback and the frames on the way. The
    // answer begins with as much silence as the service kept before the speech.
    assert!((-0.15..lead + 0.15).contains(&(told - played)), "heard {played:.3} s, told {told:.2} s\n{text}");
    assert!(told < 2.0, "{text}");
}

#[test]
fn half_duplex_lets_the_agent_finish() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("heard.wav");
    let clip = "tests/clips/long_turn_pause_24k.flac";
    let (code, text) = run(&mut talk(&["--half-duplex", "--input", clip, "--output", path(&out)]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("reply 1 completed") && !text.contains("cut off"), "{text}");
}

#[test]
fn keys_and_ctrl_c_end_a_live_call_well() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("heard.wav");
    let long = dir.path().join("long.wav");
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 24_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(&long, spec).unwrap();
    (0..24_000 * 60).for_each(|_| wav.write_sample(0_i16).unwrap());
    wav.finalize().unwrap();
    for (keys, signal) in [("m\nm\nwhat\nq\n", None), ("m\nm\nwhat\n", Some("-INT")), ("m\nm\nwhat\n", Some("-TERM"))] {
        let mut command = talk(&["--mute", "--input", path(&long), "--output", path(&out)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(keys.as_bytes()).unwrap();
        if let Some(signal) = signal {
            // When the last key has had its effect, the call goes on.
            wait_for(&out, Duration::from_secs(20));
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{signal:?}: {text}");
        if signal.is_none() {
            let (first, second) = (text.find("microphone is open"), text.find("microphone is muted"));
            assert!(first.is_some() && first < second && text.contains("keys: Enter"), "{text}");
        }
        std::fs::remove_file(&out).unwrap();
    }
}

/// Until a file has a second of sound in it.
fn wait_for(file: &PathBuf, patience: Duration) {
    let began = Instant::now();
    while std::fs::metadata(file).map_or(0, |file| file.len()) < 24_000 {
        assert!(began.elapsed() < patience, "{} does not grow", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_cannot_work_is_said_before_the_call() {
    let dir = tempfile::tempdir().unwrap();
    let folder = path(dir.path());
    let out = dir.path().join("heard.wav");
    for (words, want) in [
        (&["--input", "nowhere.wav", "--output", path(&out)][..], "--input: nowhere.wav: no such file"),
        (&["--input", "Cargo.toml", "--output", path(&out)], "--input: Cargo.toml: not an audio file"),
        (&["--input", "assets/hello.wav", "--output", &format!("{folder}/no/x.wav")], "--output: there is no folder"),
        (&["--url", "http://x", "--input", "assets/hello.wav", "--output", path(&out)], "--url: `http://x` is not"),
        (&["--buffer", "1"], "2..=200"),
        (&["--wait", "0"], "1..=86400"),
    ] {
        let (code, text) = run(&mut talk(words));
        assert!(code == 2 && text.contains(want), "{words:?}: {code} {text}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("ws://{nobody}/v1/voice");
    let (code, text) = run(&mut talk(&["--url", &url, "--input", "assets/hello.wav", "--output", path(&out)]));
    assert!(code == 1 && text.contains("cannot connect to"), "{code} {text}");
}

#[cfg(not(feature = "desktop"))]
#[test]
fn without_sound_cards_it_says_in_a_line_how_to_get_them() {
    for words in [&[][..], &["--list-devices"], &["--input", "Headset"], &["--input", "assets/hello.wav"]] {
        let (code, text) = run(&mut talk(words));
        assert_eq!((code, text.lines().count()), (2, 1), "{text}");
        assert!(text.contains("cargo build --release --features desktop") && text.contains("libasound2-dev"), "{text}");
    }
}
