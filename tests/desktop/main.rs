//! `voxrelay talk` on real streams: PulseAudio's null devices behind ALSA behind cpal. Run by `run.sh`, which brings what it
//! needs; a line per case, and how many passed.
//!
//! A null sink is a loudspeaker that nobody hears; what it plays can be recorded. Another one's monitor is the
//! microphone: what is played into that sink is what somebody says.
mod compare;
mod sound;

use std::{process::ExitCode, time::Duration};

use tokio::time::Instant;

use compare::{likeness, loud_stretch};
use sound::{Sound, Talk, clip, noise};

/// What a case says when it passes, or why it fails.
type Verdict = Result<String, String>;

/// Silence that the service keeps before what it takes for speech, seconds (`prefix_padding_ms`).
const PREFIX: f64 = 0.3;

/// What cpal says to an underrun, and `talk` at its end. On a loaded machine PulseAudio's plugin may fall into a loop of them,
/// in which nothing can be heard: then a case has a second try, once.
const TROUBLE: [&str; 2] = ["A buffer underrun or overrun occurred", "is lost: too many errors"];
/// Silence before somebody speaks: a stream needs a moment to begin.
const LEAD: Duration = Duration::from_millis(1_500);

type Case = (&'static str, fn(&mut Sound) -> Verdict);

const CASES: [Case; 6] = [
    ("devices are listed, and a wrong name is told which there are", devices),
    ("what is said comes back out of the loudspeaker", echo),
    ("the command of the documentation works", documented),
    ("speaking again stops the loudspeaker, and what was heard is told", barge_in),
    ("half duplex lets the agent finish", half_duplex),
    ("devices that disappear are replaced, at last by the default one", loss),
];

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut sound = match Sound::start() {
        Ok(sound) => sound,
        Err(why) => {
            println!("FAILED  no sound server: {why}\n0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES {
        if !only.is_empty() && !only.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let began = Instant::now();
        let mut verdict = case(&mut sound);
        if let Err(why) = &verdict
            && TROUBLE.iter().any(|words| why.contains(words))
            && sound.repair().is_ok()
        {
            println!("again   {name}: the sound server's streams were in trouble\n{why}");
            verdict = case(&mut sound);
        }
        let took = began.elapsed().as_secs_f32();
        match verdict {
            Ok(told) => {
                passed += 1;
                println!("ok      {name}: {told} ({took:.1} s)");
            }
            Err(why) => {
                failed += 1;
                println!("FAILED  {name} ({took:.1} s): {why}");
            }
        }
        if let Err(why) = sound.repair() {
            println!("FAILED  the sound server cannot be repaired: {why}");
            failed += 1;
            break;
        }
    }
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn devices(sound: &mut Sound) -> Verdict {
    let (code, text) = Talk::start(sound, &["--list-devices"])?.wait()?;
    for want in ["microphones (default: ", "loudspeakers (default: ", "Test microphone (test_mic)"] {
        check(code == 0 && text.contains(want), || format!("{want:?} is not in\n{text}"))?;
    }
    let (code, text) = Talk::start(sound, &["--input", "Trumpet"])?.wait()?;
    let want = "--input: there is no microphone `Trumpet`; there are: ";
    check(code == 2 && text.contains(want) && text.contains("Test microphone"), || format!("{code}\n{text}"))?;
    let (code, text) = Talk::start(sound, &["--output", "test"])?.wait()?;
    let want = "--output: `test` could be any of these loudspeakers: ";
    check(code == 2 && text.contains(want), || format!("{code}\n{text}"))?;
    Ok("both of them".to_owned())
}

fn echo(sound: &mut Sound) -> Verdict {
    let mut talk = Talk::start(sound, &["--input", "Test microphone", "--output", "test_speaker"])?;
    talk.until("loudspeaker: Test loudspeaker")?;
    answer(sound, talk, "spk")
}

fn documented(sound: &mut Sound) -> Verdict {
    let page = include_str!("../../docs/clients/desktop.md");
    let line = page.lines().find(|line| line.starts_with("target/release/voxrelay talk --manual"));
    let line = line.ok_or("the page has no such command any more")?;
    // As it stands there, but on the test's devices, and built as the tests are.
    let mut words: Vec<&str> = line.split_whitespace().skip(2).collect();
    words.extend(["--input", "test_mic", "--output", "test_speaker"]);
    let mut talk = Talk::start(sound, &words)?;
    talk.until("loudspeaker: Test loudspeaker")?;
    let ear = sound.record("spk")?;
    sound.speak(&clip(), LEAD)?;
    talk.press()?;
    talk.until("your turn is over: commit")?;
    talk.until("reply 1 completed")?;
    let heard = ear.stop()?;
    alike(&heard, &ended(talk, "commit")?)
}

/// Says the clip, and compares what `sink` plays with it.
fn answer(sound: &Sound, mut talk: Talk, sink: &str) -> Verdict {
    let ear = sound.record(sink)?;
    sound.speak(&clip(), LEAD)?;
    talk.until("reply 1 completed")?;
    let heard = ear.stop()?;
    alike(&heard, &ended(talk, "speech")?)
}

/// Hangs up: the table must be there.
fn ended(talk: Talk, asked_by: &str) -> Result<String, String> {
    let (code, text) = talk.interrupt()?;
    let table = text.contains("first audio, measured here") && text.contains(asked_by);
    check(code == 0 && table, || format!("exit code {code}\n{text}"))?;
    Ok(text)
}

fn alike(heard: &[i16], text: &str) -> Verdict {
    let (likeness, at) = likeness(&clip(), heard);
    // Something else would be 0 %; an underrun costs a tenth, and there may be some.
    check(likeness >= 0.5, || {
        format!("only {:.0} % of what was said is in what was heard, at {at:.2} s\n{text}", likeness * 100.0)
    })?;
    Ok(format!("{:.0} % of it is the same", likeness * 100.0))
}

fn barge_in(sound: &mut Sound) -> Verdict {
    let mut talk = Talk::start(sound, &["--input", "test_mic", "--output", "test_speaker"])?;
    talk.until("loudspeaker: Test loudspeaker")?;
    let ear = sound.record("spk")?;
    sound.speak(&noise(s(4)), LEAD)?;
    talk.until("reply 1 starts")?;
    // So that the second word comes into the middle of the reply.
    sound.speak(&noise(s(1)), LEAD)?;
    talk.until("reply 1 is cut off")?;
    let line = talk.until("reply 1 interrupted: ")?;
    talk.until("reply 2 starts")?;
    let heard = ear.stop()?;
    let text = ended(talk, "speech")?;
    let told = line.split("interrupted: ").nth(1).and_then(|rest| rest.split(' ').next());
    let told: f64 = told.and_then(|number| number.parse().ok()).ok_or_else(|| format!("no number in {line}"))?;
    let (_, played) = loud_stretch(&heard).ok_or_else(|| format!("nothing was heard\n{text}"))?;
    let off = told - PREFIX - played;
    check(off.abs() < 0.25 && played < 3.5, || {
        format!("{played:.2} s of it sounded, and {told:.2} s are said to have been heard\n{text}")
    })?;
    Ok(format!("{played:.2} s sounded of 4 s, and the relay was told {:.2} s", told - PREFIX))
}

fn half_duplex(sound: &mut Sound) -> Verdict {
    let mut talk = Talk::start(sound, &["--half-duplex", "--input", "test_mic", "--output", "test_speaker"])?;
    talk.until("loudspeaker: Test loudspeaker")?;
    sound.speak(&noise(s(4)), LEAD)?;
    talk.until("reply 1 starts")?;
    sound.speak(&noise(s(1)), LEAD)?;
    talk.until("reply 1 completed")?;
    let text = ended(talk, "speech")?;
    check(!text.contains("cut off") && !text.contains("reply 2"), || text)?;
    Ok("the microphone was deaf while it spoke".to_owned())
}

fn loss(sound: &mut Sound) -> Verdict {
    let mut talk = Talk::start(sound, &["--input", "test_mic", "--output", "test_speaker"])?;
    talk.until("loudspeaker: Test loudspeaker")?;
    sound.speak(&noise(s(3)), LEAD)?;
    talk.until("reply 1 starts")?;
    sound.unload()?;
    talk.until_all(&[
        "the loudspeaker Test loudspeaker is lost: ",
        "the microphone Test microphone is lost: ",
        "no loudspeaker: ",
    ])?;
    // The microphone comes back; the loudspeaker does not, but there is another one now.
    sound.load_microphone()?;
    sound.load_sink("other")?;
    let default = "loudspeaker: Default Audio Device instead, since the loudspeaker Test loudspeaker ";
    talk.until_all(&["microphone: Test microphone", default, "reply 1 completed"])?;
    let ear = sound.record("other")?;
    sound.speak(&clip(), LEAD)?;
    talk.until("reply 2 completed")?;
    let heard = ear.stop()?;
    let text = ended(talk, "speech")?;
    // The table and a dozen lines of what became of the devices; one line per error would be hundreds.
    check(text.lines().count() < 60, || format!("too many lines\n{text}"))?;
    alike(&heard, &text)
}

const fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn check(good: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if good { Ok(()) } else { Err(why()) }
}
