//! Whole calls on a paused clock: recordings as devices, and a script as the relay.
use std::{path::PathBuf, sync::Mutex};

use tempfile::TempDir;

use super::*;
use crate::{
    audio::{Codec, Format, decode::write_wav},
    desktop::file::{Fate, FileIo, Loss},
};

const fn t(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the relay does, and when.
#[derive(Debug)]
struct Relay {
    began: Instant,
    over: bool,
    script: VecDeque<(Duration, Event)>,
    sent: Arc<Mutex<Vec<(u128, Sent)>>>,
}

/// What it gets.
#[derive(Debug, Clone, PartialEq)]
enum Sent {
    Audio(Vec<i16>),
    Message(ClientMsg),
}

impl Relay {
    fn note(&self, what: Sent) {
        self.sent.lock().unwrap().push((self.began.elapsed().as_millis(), what));
    }
}

impl Line for Relay {
    fn audio(&mut self, data: Bytes) {
        self.note(Sent::Audio(data.as_chunks::<2>().0.iter().map(|bytes| i16::from_le_bytes(*bytes)).collect()));
    }

    fn say(&mut self, message: &ClientMsg) {
        self.note(Sent::Message(message.clone()));
    }

    async fn next(&mut self) -> Option<Event> {
        match self.script.front() {
            Some((at, _)) => sleep_until(self.began + *at).await,
            None if self.over => return None,
            None => future::pending().await,
        }
        let (_, event) = self.script.pop_front()?;
        self.over = matches!(event, Event::Ended(_));
        Some(event)
    }
}

fn message(json: &str) -> Event {
    Event::Message(Box::new(serde_json::from_str(json).unwrap()))
}

fn started(reply: &str) -> Event {
    message(&format!(r#"{{"type":"reply_started","reply":"{reply}"}}"#))
}

fn ended(reply: &str) -> Event {
    message(&format!(
        r#"{{"type":"reply_ended","reply":"{reply}","status":"completed","audio_ms":1,"heard_ms":1,"latency":{{}}}}"#
    ))
}

fn clear(reply: &str) -> Event {
    message(&format!(r#"{{"type":"clear","reply":"{reply}"}}"#))
}

/// `ms` of `reply`, every sample of this value.
fn audio(reply: &str, ms: usize, value: i16) -> Event {
    Event::Audio { reply: Some(reply.into()), data: value.to_le_bytes().repeat(ms * 24).into() }
}

fn played(reply: &str, ms: u64) -> Sent {
    Sent::Message(ClientMsg::Played { reply: reply.into(), ms })
}

/// A station on files.
struct Rig {
    folder: TempDir,
    microphone: FileIo,
    loudspeaker: FileIo,
    manual: bool,
    half_duplex: bool,
    named: Option<String>,
    period: Duration,
}

/// What the caller does.
type Hand = fn(&mut Station<Relay>);

/// What came of it.
struct Outcome {
    sent: Vec<(u128, Sent)>,
    steps: Vec<(u128, Step)>,
    tape: Vec<i16>,
}

impl Rig {
    /// A microphone that says `said`, and devices of these rates.
    fn new(said: &[i16], rates: [u32; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said.wav");
        let bytes: Vec<u8> = said.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        write_wav(&file, Format { codec: Codec::Pcm16, rate: rates[0] }, &bytes).unwrap();
        let microphone = FileIo::microphone(&file, rates[0]).unwrap();
        let loudspeaker = FileIo::loudspeaker(&folder.path().join("tape.wav"), rates[1]).unwrap();
        Self { folder, microphone, loudspeaker, manual: false, half_duplex: false, named: None, period: t(10) }
    }

    /// One that hears nothing.
    fn silent() -> Self {
        Self::new(&[0; 24], [24_000, 24_000])
    }

    fn tape(&self) -> PathBuf {
        self.folder.path().join("tape.wav")
    }

    async fn start(
        self,
        script: Vec<(u64, Event)>,
    ) -> (Station<Relay>, TempDir, PathBuf, Arc<Mutex<Vec<(u128, Sent)>>>) {
        let (tape, sent) = (self.tape(), Arc::default());
        let script = script.into_iter().map(|(at, event)| (t(at), event)).collect();
        let relay = Relay { began: Instant::now(), over: false, script, sent: Arc::clone(&sent) };
        let want = Want { device: self.named, period: self.period };
        let setup = Setup {
            microphone: Arc::new(self.microphone),
            input: want.clone(),
            loudspeaker: Arc::new(self.loudspeaker),
            output: want,
            manual: self.manual,
            half_duplex: self.half_duplex,
        };
        (Station::start(relay, setup).await.unwrap(), self.folder, tape, sent)
    }

    /// Runs `script` for so long, and does what `hands` says at its moments.
    async fn run(self, until: u64, script: Vec<(u64, Event)>, hands: &[(u64, Hand)]) -> Outcome {
        let (mut station, _folder, tape, sent) = self.start(script).await;
        let mut steps = Vec::new();
        let mut hands = hands.iter().peekable();
        let began = station.began;
        loop {
            let at = hands.peek().map_or(until, |(at, _)| *at);
            match tokio::time::timeout_at(began + t(at), station.next()).await {
                Ok(step) => steps.extend(step.map(|(now, step)| (now.as_millis(), step))),
                Err(_late) => match hands.next() {
                    Some((_, hand)) => hand(&mut station),
                    None => break,
                },
            }
        }
        station.stop().await;
        let tape = hound::WavReader::open(tape).unwrap().samples().collect::<Result<_, _>>().unwrap();
        let sent = sent.lock().unwrap().clone();
        Outcome { sent, steps, tape }
    }
}

impl Outcome {
    /// All audio that was sent.
    fn voice(&self) -> Vec<i16> {
        let audio = self.sent.iter().filter_map(|(_, sent)| match sent {
            Sent::Audio(samples) => Some(samples.as_slice()),
            Sent::Message(_) => None,
        });
        audio.flatten().copied().collect()
    }

    /// Messages and their moments.
    fn messages(&self) -> Vec<(u128, Sent)> {
        self.sent.iter().filter(|(_, sent)| matches!(sent, Sent::Message(_))).cloned().collect()
    }

    fn notes(&self) -> Vec<(u128, String)> {
        let notes = self.steps.iter().filter_map(|(at, step)| match step {
            Step::Note(note) => Some((*at, note.to_string())),
            _ => None,
        });
        notes.skip(2).collect() // both devices, opened at the start
    }

    /// How many samples of the tape have this value.
    fn count(&self, value: i16) -> usize {
        self.tape.iter().filter(|sample| **sample == value).count()
    }

    /// When a value was last on the tape, ms.
    fn last(&self, value: i16) -> usize {
        self.tape.iter().rposition(|sample| *sample == value).map_or(0, |at| at / 24 + 1)
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_goes_out_whole_and_in_real_time() {
    let said: Vec<i16> = (1..=2_000).collect();
    let outcome = Rig::new(&said, [24_000, 24_000]).run(400, vec![], &[]).await;
    let voice = outcome.voice();
    assert_eq!(voice[..2_000], said);
    assert!(voice[2_000..].iter().all(|sample| *sample == 0), "silence follows");
    for (n, (at, sent)) in outcome.sent.iter().enumerate() {
        // A frame of 20 ms is full when it has been said, and leaves at the next look into the ring.
        let full = (n as u128 + 1) * 20;
        assert!(
            matches!(sent, Sent::Audio(frame) if frame.len() == 480) && (full..=full + 20).contains(at),
            "{n}: {at}"
        );
    }
    let spoken: Vec<u128> = outcome.steps.iter().filter(|(_, step)| *step == Step::Spoken).map(|(at, _)| *at).collect();
    assert!(matches!(spoken[..], [at] if (84..=150).contains(&at)), "{spoken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_barge_in_stops_the_loudspeaker_within_50_ms_and_played_is_exact() {
    for (latency, period) in [(0, 10), (30, 10), (60, 20)] {
        let mut rig = Rig::silent();
        rig.period = t(period);
        rig.loudspeaker = rig.loudspeaker.with_latency(t(latency));
        let script =
            vec![(95, started("r1")), (100, audio("r1", 2_000, 7)), (600, clear("r1")), (610, audio("r1", 100, 7))];
        let outcome = rig.run(1_000, script, &[]).await;
        let heard = outcome.count(7);
        assert!(outcome.last(7) <= 620, "the last sample was given at {} ms", outcome.last(7));
        let reports = outcome.messages();
        let (at, last) = reports.last().unwrap();
        assert_eq!(*last, played("r1", heard as u64 / 24), "latency {latency}");
        assert!((600..=650).contains(at), "told at {at} ms");
        assert!((480..=500).contains(&(heard / 24)), "{heard}");
        // On the way every 100 ms, minus what is still in the device.
        let before = reports.iter().rfind(|(at, _)| *at < 600).unwrap();
        let Sent::Message(ClientMsg::Played { ms, .. }) = &before.1 else { panic!("{before:?}") };
        assert!(u128::from(*ms) + 100 + u128::from(latency) <= before.0 + 10, "{before:?}, latency {latency}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_button_stops_a_reply_where_it_was_heard() {
    let script = vec![(95, started("r1")), (100, audio("r1", 2_000, 7))];
    let outcome = Rig::silent()
        .run(
            900,
            script,
            &[(500, |station| {
                assert_eq!(station.press(), Pressed::Interrupted);
                assert_eq!(station.press(), Pressed::Nothing);
            })],
        )
        .await;
    let ms = outcome.count(7) as u64 / 24;
    let interrupt = ClientMsg::Interrupt { reply: Some("r1".into()), played_ms: Some(ms) };
    assert_eq!(outcome.messages().last().unwrap().1, Sent::Message(interrupt));
    assert!((380..=400).contains(&ms), "{ms}");
}

#[tokio::test(start_paused = true)]
async fn half_duplex_sends_silence_while_a_reply_sounds_and_a_little_longer() {
    for half_duplex in [true, false] {
        let mut rig = Rig::new(&vec![1_000; 24_000 * 2], [24_000, 24_000]);
        rig.half_duplex = half_duplex;
        let outcome = rig.run(1_500, vec![(300, started("r1")), (300, audio("r1", 400, 7))], &[]).await;
        for (at, sent) in &outcome.sent {
            let Sent::Audio(frame) = sent else { continue };
            let silent = frame.iter().all(|sample| *sample == 0);
            let sounds = (320..=990).contains(at);
            // At the edges both are right.
            if !(290..=320).contains(at) && !(980..=1_040).contains(at) {
                assert_eq!(silent, half_duplex && sounds, "{at} ms");
            }
        }
        assert_eq!(outcome.voice().len() / 480, 74, "as many frames as time, so that turns can end");
        assert_eq!(outcome.count(7), 400 * 24);
    }
}

#[tokio::test(start_paused = true)]
async fn a_muted_microphone_is_silence() {
    let rig = Rig::new(&vec![1_000; 24_000], [24_000, 24_000]);
    let toggle: Hand = |station| {
        assert!(station.level().unwrap() > 0.4, "the meter goes on");
        station.toggle_mute();
    };
    let outcome = rig.run(900, vec![], &[(300, toggle), (600, toggle)]).await;
    let voice = outcome.voice();
    let loud = voice.iter().filter(|sample| **sample == 1_000).count() / 480;
    assert_eq!((voice.len() / 480, loud), (44, 29), "15 of 44 frames");
}

#[tokio::test(start_paused = true)]
async fn with_push_to_talk_one_speaks_at_a_time() {
    let mut rig = Rig::new(&(1..=24_000).map(|n| n % 9_000).collect::<Vec<i16>>(), [24_000, 24_000]);
    rig.manual = true;
    let script = vec![
        (250, started("r1")),
        (260, audio("r1", 400, 7)),
        (700, ended("r1")),
        (850, message(r#"{"type":"error","error":{"code":"x","message":"m","retryable":false,"request_id":"q"}}"#)),
    ];
    let outcome = rig
        .run(
            1_000,
            script,
            &[
                (200, |station| assert_eq!((station.press(), station.has_word()), (Pressed::Committed, false))),
                (800, |station| assert_eq!((station.has_word(), station.press()), (true, Pressed::Committed))),
                (950, |station| assert_eq!((station.has_word(), station.press()), (true, Pressed::Committed))),
                (960, |station| assert_eq!((station.press(), station.has_word()), (Pressed::Word, true))),
            ],
        )
        .await;
    let sent: Vec<(u128, Option<&ClientMsg>)> = outcome
        .sent
        .iter()
        .map(|(at, sent)| match sent {
            Sent::Audio(_) => (*at, None),
            Sent::Message(message) => (*at, Some(message)),
        })
        .filter(|(_, message)| !matches!(message, Some(ClientMsg::Played { .. })))
        .collect();
    for (at, message) in &sent {
        let mine = *at <= 200 || (700..=800).contains(at) || (850..=950).contains(at) || *at >= 960;
        assert!(message.is_some() || mine, "audio at {at} ms");
    }
    let messages: Vec<(u128, &ClientMsg)> = sent.iter().filter_map(|(at, message)| Some((*at, (*message)?))).collect();
    let nothing = ClientMsg::Interrupt { reply: None, played_ms: None };
    let commit = &ClientMsg::Commit;
    assert_eq!(messages, [(200, commit), (800, commit), (950, commit), (960, &nothing)]);
    assert_eq!(outcome.count(7), 400 * 24);
}

#[tokio::test(start_paused = true)]
async fn with_push_to_talk_the_button_takes_the_word_from_a_reply() {
    let mut rig = Rig::silent();
    rig.manual = true;
    let script = vec![(100, started("r1")), (100, audio("r1", 2_000, 7)), (600, ended("r1"))];
    let outcome = rig
        .run(
            800,
            script,
            &[
                (50, |station| assert_eq!(station.press(), Pressed::Committed)),
                (400, |station| assert_eq!((station.press(), station.has_word()), (Pressed::Interrupted, true))),
                (500, |station| assert_eq!((station.press(), station.has_word()), (Pressed::Committed, false))),
                // The end of the reply that was stopped does not give the word back a second time.
                (700, |station| assert!(!station.has_word())),
            ],
        )
        .await;
    assert!(outcome.last(7) <= 420);
}

#[tokio::test(start_paused = true)]
async fn a_loudspeaker_that_disappears_is_replaced_and_nothing_of_the_reply_is_lost() {
    for (loss, says, within) in [
        (Loss::Gone, "is lost: the script says so", 20),
        (Loss::Storm, "is lost: too many errors: the script says so", 20),
        (Loss::Silence, "is lost: it has been silent for 4 s", 4_020),
    ] {
        let mut rig = Rig::silent();
        rig.loudspeaker = rig.loudspeaker.with_script([Fate::Lost(t(300), loss), Fate::Refused, Fate::Refused]);
        let script = vec![(100, started("r1")), (100, audio("r1", 800, 7))];
        let outcome = rig.run(8_000, script, &[]).await;
        let notes = outcome.notes();
        let [(lost, why), (missing, no), (back, again)] = notes.as_slice() else { panic!("{notes:?}") };
        assert!(why.contains(says) && (300..=310 + within).contains(lost), "{notes:?}");
        assert!(no.contains("no loudspeaker: ") && no.ends_with("it was told to; waiting for one"), "{no}");
        assert!(missing - lost < 20, "{notes:?}");
        assert!(
            again.starts_with("loudspeaker: ") && (740..=780).contains(&(back - lost)),
            "250 and 500 ms: {notes:?}"
        );
        assert_eq!(outcome.count(7), 800 * 24, "{loss:?}");
        let told = outcome.messages().last().unwrap().1.clone();
        assert_eq!(told, played("r1", 800));
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_named_device_stays_away_the_default_one_takes_over() {
    let mut rig = Rig::silent();
    rig.named = Some("Headset".to_owned());
    // The named one is lost and refuses; what opens then is the default.
    rig.loudspeaker = rig.loudspeaker.with_script([Fate::Lost(t(300), Loss::Gone), Fate::Refused]);
    let outcome = rig.run(1_000, vec![(100, started("r1")), (100, audio("r1", 500, 7))], &[]).await;
    let notes = outcome.notes();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[1].1.starts_with("loudspeaker: ") && notes[1].1.ends_with("it was told to"), "{notes:?}");
    assert!(notes[1].1.contains(" instead, since the loudspeaker "), "{notes:?}");
    assert!(notes[1].0 - notes[0].0 < 20, "at once: {notes:?}");
    assert_eq!(outcome.count(7), 500 * 24);
}

#[tokio::test(start_paused = true)]
async fn a_microphone_that_disappears_is_replaced() {
    let hiccups: Hand = |station| assert_eq!(station.hiccups(), [], "a lost stream is told of, and no longer counted");
    let mut rig = Rig::new(&vec![1_000; 24_000 * 2], [24_000, 24_000]);
    rig.microphone = rig.microphone.with_script([Fate::Lost(t(300), Loss::Gone), Fate::Refused]);
    let outcome = rig.run(1_000, vec![], &[(450, |station| assert_eq!(station.level(), None)), (900, hiccups)]).await;
    let notes: Vec<String> = outcome.notes().into_iter().map(|(_, note)| note).collect();
    assert!(notes[0].contains("the microphone") && notes[1].contains("no microphone"), "{notes:?}");
    assert!(notes[2].starts_with("microphone: "), "{notes:?}");
    let (before, after): (Vec<_>, Vec<_>) = outcome.sent.iter().partition(|(at, _)| *at < 560);
    assert!((14..=16).contains(&before.len()) && after.len() > 15, "{} {}", before.len(), after.len());
    assert!(outcome.voice().iter().all(|sample| *sample == 1_000));
}

#[tokio::test(start_paused = true)]
async fn any_rate_and_number_of_channels_will_do() {
    let (loud, quiet) = (9_000.0_f64, 3_000.0_f64);
    #[expect(clippy::cast_possible_truncation, reason = "below full scale")]
    let tone = |rate: f64, amplitude: f64, n: u32| {
        (amplitude * (f64::from(n) * 440.0 * std::f64::consts::TAU / rate).sin()) as i16
    };
    for rate in [8_000, 16_000, 44_100, 48_000, 96_000] {
        let said: Vec<i16> = (0..rate).map(|n| tone(f64::from(rate), loud, n)).collect();
        let mut rig = Rig::new(&said, [rate, rate]);
        rig.microphone = rig.microphone.with_channels(2);
        rig.loudspeaker = rig.loudspeaker.with_channels(6);
        let reply: Vec<u8> = (0..24_000).flat_map(|n| tone(24_000.0, quiet, n).to_le_bytes()).collect();
        let reply = Event::Audio { reply: Some("r1".into()), data: reply.into() };
        let outcome = rig.run(1_200, vec![(50, started("r1")), (50, reply)], &[]).await;
        let rms = |samples: &[i16]| {
            (samples.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>() / samples.len() as f64).sqrt()
        };
        let (voice, tape) = (outcome.voice(), outcome.tape);
        let said = rms(&voice[4_800..19_200]) / (loud / 2_f64.sqrt());
        let heard = rms(&tape[tape.len() / 4..tape.len() * 3 / 4]) / (quiet / 2_f64.sqrt());
        assert!((0.99..1.01).contains(&said) && (0.99..1.01).contains(&heard), "{rate}: {said} {heard}");
        let told = outcome.sent.iter().rev().find_map(|(_, sent)| match sent {
            Sent::Message(ClientMsg::Played { ms, .. }) => Some(*ms),
            _ => None,
        });
        assert_eq!(told, Some(1_000), "{rate}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_at_the_start_is_an_error() {
    let mut rig = Rig::silent();
    rig.loudspeaker = rig.loudspeaker.with_script([Fate::Refused]);
    let relay = Relay { began: Instant::now(), over: false, script: VecDeque::new(), sent: Arc::default() };
    let want = Want { device: None, period: t(10) };
    let (microphone, loudspeaker) = (Arc::new(rig.microphone), Arc::new(rig.loudspeaker));
    let (input, output) = (want.clone(), want.clone());
    let setup = Setup { microphone: microphone.clone(), input, loudspeaker, output, manual: false, half_duplex: false };
    let error = Station::start(relay, setup).await.unwrap_err();
    assert!(error.to_string().contains("tape.wav does not work: it was told to"), "{error}");
    let error = microphone.open_loudspeaker(&want).unwrap_err();
    assert_eq!(error, DeviceError::None { side: Side::Loudspeaker }, "a recording is no loudspeaker");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_call_is_the_end() {
    let end = crate::caller::CallEnd { code: 1000, reason: String::new(), error: None, not_resumed: None };
    let (mut station, _folder, ..) = Rig::silent().start(vec![(50, Event::Ended(end.clone()))]).await;
    let mut last = None;
    while let Some((_, step)) = station.next().await {
        last = Some(step);
    }
    assert_eq!((last, station.now()), (Some(Step::Event(Event::Ended(end))), t(50)));
}
