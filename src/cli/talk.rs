//! `voxrelay talk`: this computer's microphone and loudspeaker on a call.
//!
//! The devices and the call are [`crate::desktop`]'s; what is printed is told by the same narrator as `say`'s. Here are the
//! arguments, the keys and the line that changes.
use std::{
    io::{self, IsTerminal as _, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

use super::{
    Authorities, Usage,
    say::{
        check_out,
        conversation::{Ask, Patience, Verdict},
        narrate::{Narrator, answered},
        screen::Screen,
        talk::{GOODBYE, NO_TOOLS},
    },
};
use crate::{
    audio::{Codec, Format},
    caller::{self, Call, ConnectError, Event, Options, Pace, Turns},
    client::wire::{ClientMsg, ServerMsg},
    desktop::{AudioIo, DeviceError, Setup, Side, Station, Step, Want, file::FileIo, mic, station::Pressed},
};

/// How often the changing line changes while nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// Characters of the level meter.
const METER: usize = 12;
/// Lines typed ahead.
const KEYS: usize = 8;
/// What a name must end with to be a recording, if it is not one already.
const RECORDINGS: [&str; 9] = ["wav", "flac", "mp3", "m4a", "aac", "ogg", "opus", "webm", "mkv"];
/// What is said where there is no sound card in this program.
#[cfg(not(feature = "desktop"))]
const NO_CARDS: &str = "this voxrelay was built without sound: `cargo build --release --features desktop` builds it with \
     (on Debian it needs libasound2-dev); without, --input and --output take audio files";

/// Talk to a relay with this computer's microphone and loudspeaker
///
/// Speak, and the agent answers; speak again, and it stops. Prints what both sides say, and at the end, which is Ctrl-C, a
/// table of where the milliseconds went. Exit code 0: you hung up, or the recording was answered; 1: the call failed;
/// 2: the command was wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys, each with Enter:
  (nothing)  with --manual: ends your turn; else: stops the reply
  m          mutes the microphone, or no longer
  q          hangs up, as Ctrl-C does

Echo: with loudspeakers in the open, the agent hears itself and takes that for you. Use headphones, or --half-duplex.

Examples:
  voxrelay talk
  voxrelay talk --list-devices
  voxrelay talk --url wss://relay.example/v1/voice --input Headset --output Headset
  voxrelay talk --half-duplex
  voxrelay talk --input question.wav --output answer.wav")]
pub struct TalkArgs {
    /// The relay to call [default: one that runs inside of this command, with a simulated service]
    #[arg(long, value_name = "WS_URL")]
    url: Option<String>,

    /// Who answers: an agent of the relay's configuration
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,

    /// Tenant key or call token
    #[arg(long, value_name = "TOKEN", env = "VOXRELAY_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,

    /// Trust this authority too (PEM), such as a relay's self-signed certificate
    #[arg(long, value_name = "FILE", env = "VOXRELAY_CA_FILE")]
    ca: Option<Authorities>,

    /// Print the microphones and loudspeakers that there are, and do nothing else
    #[arg(long)]
    list_devices: bool,

    /// The microphone: its name, its id, or a part of them that only one has; or a recording [default: the system's]
    #[arg(long, value_name = "NAME|FILE")]
    input: Option<String>,

    /// The loudspeaker: likewise; or a wav file to be written [default: the system's]
    #[arg(long, value_name = "NAME|FILE.wav")]
    output: Option<String>,

    /// The microphone is not sent while a reply sounds, nor 0.3 s after it: for loudspeakers without headphones
    #[arg(long)]
    half_duplex: bool,

    /// Push-to-talk: Enter ends your turn, whatever pauses are in it
    #[arg(long)]
    manual: bool,

    /// Begin with the microphone muted
    #[arg(long)]
    mute: bool,

    /// Audio per callback of a device, roughly; a stream that cannot keep up gets more by itself
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=200))]
    buffer: u64,

    /// A recording as the microphone: give up when nothing has come for so long after its end
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: u64,
}

/// Does what `args` say.
///
/// # Errors
/// [`Usage`] where the arguments can never work, or a device does not exist; anything else is a call that failed.
pub async fn run(args: TalkArgs) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    if args.list_devices {
        return list_devices(stdout).map(|()| ExitCode::SUCCESS);
    }
    if let Some(url) = &args.url {
        caller::check_url(url).map_err(|error| Usage(format!("--url: {error}")))?;
    }
    // What can go wrong before the call shall.
    let setup = args.setup()?;
    for (name, io, side, want) in [
        ("--input", &setup.microphone, Side::Microphone, &setup.input),
        ("--output", &setup.loudspeaker, Side::Loudspeaker, &setup.output),
    ] {
        io.check(side, want).map_err(|error| refused(name, error))?;
    }
    let live = stdout.is_terminal();
    super::on_relay(args.url.clone(), async |url| {
        let mut screen = Screen::new(stdout, live);
        let result = args.call(url, setup, &mut screen).await;
        screen.erase()?;
        result.map(|()| ExitCode::SUCCESS)
    })
    .await
}

/// A device that does not exist is a wrong command; one that does not work is not.
fn refused(option: &str, error: DeviceError) -> anyhow::Error {
    match error {
        error @ (DeviceError::NotFound { .. } | DeviceError::Ambiguous { .. }) => {
            Usage(format!("{option}: {error} (--list-devices)")).into()
        }
        error => error.into(),
    }
}

/// The path, if this is a recording's name and not a device's.
fn recording(name: &str) -> Option<&Path> {
    let path = Path::new(name);
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
    (path.is_file() || ending.is_some_and(|ending| RECORDINGS.contains(&ending.as_str()))).then_some(path)
}

#[cfg(feature = "desktop")]
#[expect(clippy::unnecessary_wraps, reason = "without the feature it fails")]
fn cards() -> Result<Arc<dyn AudioIo>, Usage> {
    Ok(Arc::new(crate::desktop::card::Cards))
}

#[cfg(not(feature = "desktop"))]
fn cards() -> Result<Arc<dyn AudioIo>, Usage> {
    Err(Usage(NO_CARDS.to_owned()))
}

#[cfg(feature = "desktop")]
fn list_devices(mut out: impl Write) -> anyhow::Result<()> {
    for side in [Side::Microphone, Side::Loudspeaker] {
        let (devices, default) = crate::desktop::card::Cards::list(side)?;
        writeln!(out, "{side}s (default: {}):", default.as_deref().unwrap_or("none"))?;
        for device in devices {
            writeln!(out, "  {} ({})", device.name, device.id)?;
        }
    }
    Ok(())
}

#[cfg(not(feature = "desktop"))]
fn list_devices(_out: impl Write) -> anyhow::Result<()> {
    Err(Usage(NO_CARDS.to_owned()).into())
}

impl TalkArgs {
    fn setup(&self) -> anyhow::Result<Setup> {
        let want = |device: Option<String>| Want { device, period: Duration::from_millis(self.buffer) };
        let (microphone, input): (Arc<dyn AudioIo>, _) = match self.input.as_deref().and_then(recording) {
            Some(path) => {
                let file = FileIo::microphone(path, mic::RATE);
                (Arc::new(file.map_err(|error| Usage(format!("--input: {error}")))?), None)
            }
            None => (cards()?, self.input.clone()),
        };
        let (loudspeaker, output): (Arc<dyn AudioIo>, _) = match self.output.as_deref().and_then(recording) {
            Some(path) => {
                check_out(path).map_err(|error| Usage(super::text(&error).replacen("--out:", "--output:", 1)))?;
                let file = FileIo::loudspeaker(path, mic::RATE);
                (Arc::new(file.with_context(|| format!("--output: {} cannot be written", path.display()))?), None)
            }
            None => (cards()?, self.output.clone()),
        };
        let (input, output) = (want(input), want(output));
        let (manual, half_duplex) = (self.manual, self.half_duplex);
        Ok(Setup { microphone, input, loudspeaker, output, manual, half_duplex })
    }

    fn options(&self) -> Options {
        let Format { codec, rate } = Format::PCM_24K;
        Options {
            format: Some(codec),
            rate: Some(rate),
            out_format: Some(codec),
            out_rate: Some(rate),
            turns: Some(if self.manual { Turns::Manual } else { Turns::Auto }),
            pace: Some(Pace::Realtime),
            agent: self.agent.clone(),
            token: self.token.clone().filter(|token| !token.expose_secret().is_empty()),
            roots: self.ca.clone().map(|ca| ca.0).unwrap_or_default(),
            ..Options::default()
        }
    }

    async fn call<W: Write>(&self, url: &str, setup: Setup, screen: &mut Screen<W>) -> anyhow::Result<()> {
        screen.line(&format!("calling {}", url.split('?').next().unwrap_or_default()))?;
        let call = caller::connect(url, &self.options()).await.map_err(|error| match error {
            ConnectError::Token => Usage(format!("--token: {error}")).into(),
            error => anyhow::Error::new(error),
        })?;
        let ready = call.ready().clone();
        let heard = ready.audio.output;
        if heard != Format::PCM_24K {
            bail!("the relay answers in {heard}, though {} was asked for", Format { codec: Codec::Pcm16, ..heard });
        }
        screen.line(&format!("{} with agent {}", ready.call, ready.agent))?;
        let station = Station::start(call, setup).await.map_err(|error| refused("devices", error))?;
        let patience = Patience { quiet: Duration::from_secs(self.wait), total: Duration::MAX };
        let narrator = Narrator::new(!self.manual, patience);
        let mut talk = Talk { station, narrator, screen, manual: self.manual, recorded: false };
        talk.recorded = self.input.as_deref().and_then(recording).is_some();
        if self.mute {
            talk.station.toggle_mute();
        }
        talk.greet(self.half_duplex)?;
        let verdict = Box::pin(talk.listen()).await?;
        talk.finish(verdict).await
    }
}

/// A call in progress.
struct Talk<'a, W> {
    station: Station<Call>,
    narrator: Narrator,
    screen: &'a mut Screen<W>,
    manual: bool,
    /// The microphone is a recording: the call is over when that is answered.
    recorded: bool,
}

impl<W: Write> Talk<'_, W> {
    fn greet(&mut self, half_duplex: bool) -> anyhow::Result<()> {
        if !self.recorded {
            if !half_duplex && !self.manual {
                self.screen.line(
                    "echo: use headphones; with loudspeakers in the open the agent interrupts itself, which \
                     --half-duplex prevents",
                )?;
            }
            let enter = if self.manual { "Enter ends your turn" } else { "Enter stops the reply" };
            self.screen.line(&format!("keys: {enter}, m Enter mutes, q Enter or Ctrl-C hangs up"))?;
        }
        Ok(())
    }

    /// Until the call is over. `None`: the caller has hung up.
    async fn listen(&mut self) -> anyhow::Result<Option<Verdict>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut keys = keys();
        loop {
            let (now, sounding) = (self.station.now(), self.station.is_sounding());
            if sounding {
                self.narrator.conversation.playing(now);
            }
            match self.narrator.conversation.verdict(now) {
                // The relay may think that all has been heard a moment before it has.
                Some(Verdict::Answered | Verdict::NoSpeech | Verdict::Failed(_)) if sounding => {}
                Some(verdict) => return Ok(Some(verdict)),
                None => {}
            }
            self.status()?;
            let step = tokio::select! {
                _ = interrupt.recv() => return Ok(None),
                _ = terminate.recv() => return Ok(None),
                Some(key) = keys.recv() => {
                    if self.key(key.trim())? {
                        return Ok(None);
                    }
                    continue;
                }
                step = timeout(TICK, self.station.next()) => step,
            };
            match step {
                Ok(Some((now, step))) => self.step(now, step)?,
                Ok(None) => bail!("the call is over"),
                Err(_tick) => {}
            }
        }
    }

    fn step(&mut self, now: Duration, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Spoken => {
                self.screen.at(now, "the recording is through")?;
                if self.manual {
                    self.press(now)?;
                }
                self.narrator.conversation.spoken(now);
            }
            Step::Note(note) => self.screen.at(now, &note.to_string())?,
            Step::Event(event) => {
                let station = &self.station;
                self.narrator.event(self.screen, now, &event, |reply| station.position(reply))?;
                if let Event::Message(message) = &event
                    && let ServerMsg::ToolCall { call_id, .. } = message.as_ref()
                {
                    self.narrator.conversation.ask(now, Ask::Tool);
                    let output = NO_TOOLS.to_owned();
                    self.station.say(&ClientMsg::ToolResult { call_id: call_id.clone(), output });
                }
            }
        }
        Ok(())
    }

    /// A line that was typed. `true`: the caller hangs up.
    fn key(&mut self, key: &str) -> anyhow::Result<bool> {
        let now = self.station.now();
        match key {
            "" => self.press(now)?,
            "m" => {
                let muted = if self.station.toggle_mute() { "muted" } else { "open" };
                self.screen.at(now, &format!("the microphone is {muted}"))?;
            }
            "q" => return Ok(true),
            _ => self.screen.at(now, "keys: Enter, m Enter, q Enter; see --help")?,
        }
        Ok(false)
    }

    fn press(&mut self, now: Duration) -> anyhow::Result<()> {
        match self.station.press() {
            Pressed::Committed => {
                self.narrator.conversation.ask(now, Ask::Commit);
                self.screen.at(now, "your turn is over: commit")?;
            }
            Pressed::Interrupted if self.manual => self.screen.at(now, "the reply is stopped; it is your turn")?,
            Pressed::Interrupted => self.screen.at(now, "the reply is stopped")?,
            Pressed::Word => self.screen.at(now, "it is your turn")?,
            Pressed::Nothing => {}
        }
        Ok(())
    }

    /// The changing line: how loud the microphone is, what plays, what is being said.
    fn status(&mut self) -> anyhow::Result<()> {
        if !self.screen.is_live() {
            return Ok(());
        }
        let microphone = match self.station.level() {
            None => "no microphone".to_owned(),
            Some(_) if self.station.is_muted() => "muted".to_owned(),
            Some(_) if self.manual && !self.station.has_word() => "not your turn".to_owned(),
            Some(level) => meter(level),
        };
        let mut parts = vec![microphone];
        if let Some(reply) = self.station.playing() {
            let heard = self.station.position(reply);
            parts.push(format!("hearing {}, {:.1} s", self.narrator.name(reply), heard.as_secs_f64()));
        }
        parts.extend(self.narrator.saying());
        Ok(self.screen.status(&parts.join(" | "))?)
    }

    /// Hangs up and prints the table.
    async fn finish(self, verdict: Option<Verdict>) -> anyhow::Result<()> {
        let Self { station, narrator, screen, recorded, .. } = self;
        let (dry, dry_time) = station.underruns();
        let lost = station.lost() * 1_000 / u64::from(mic::RATE);
        let hiccups = station.hiccups();
        let call = station.stop().await;
        if !matches!(verdict, Some(Verdict::Over(_))) {
            let end = call.hang_up(GOODBYE).await;
            if !end.is_normal() {
                screen.line(&format!("warning: the call was not closed as asked for: {end}"))?;
            }
        }
        narrator.table(screen)?;
        if dry > 0 {
            screen.line(&format!("the loudspeaker ran dry {dry} times, {} ms in all", dry_time.as_millis()))?;
        }
        for (side, count, why) in hiccups {
            screen.line(&format!("errors that the {side} has recovered from: {count}, the first: {why}"))?;
        }
        if lost > 0 {
            screen.line(&format!("about {lost} ms of the microphone were lost: this computer was too busy"))?;
        }
        match verdict {
            None => Ok(()),
            Some(Verdict::Over(end)) if !recorded => bail!("the call ended: {end}"),
            Some(verdict) => answered(verdict, "this recording"),
        }
    }
}

/// `mic [######      ]`
fn meter(level: f32) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and METER")]
    let full = (level.clamp(0.0, 1.0) * METER as f32).round() as usize;
    format!("mic [{}{}]", "#".repeat(full), " ".repeat(METER.saturating_sub(full)))
}

/// Lines from standard input. Reading them cannot be stopped, so the thread ends with the process; nothing comes any more
/// where there is no standard input.
fn keys() -> mpsc::Receiver<String> {
    let (tx, rx) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        let interactive = io::stdin().is_terminal();
        for line in io::stdin().lines() {
            let Ok(line) = line else { break };
            if tx.blocking_send(line).is_err() {
                return;
            }
        }
        if interactive {
            // Ctrl-D.
            let _over = tx.blocking_send("q".to_owned());
        }
    });
    rx
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_is_as_wide_whatever_it_shows() {
        for (level, want) in [(0.0, 0), (0.04, 0), (0.5, 6), (1.0, METER), (7.0, METER), (-1.0, 0), (f32::NAN, 0)] {
            let shown = meter(level);
            assert_eq!((shown.matches('#').count(), shown.len()), (want, METER + 6), "{level}: {shown}");
        }
    }

    #[test]
    fn a_file_is_told_from_a_device() {
        for (name, want) in [
            ("Cargo.toml", true), // it is there, so it is meant
            ("not/there.wav", true),
            ("NOT/THERE.WAV", true),
            ("question.opus", true),
            ("Headset", false),
            ("hw:CARD=0,DEV=0", false),
            ("alsa_output.pci-0000_00_1f.3.analog-stereo", false),
            ("src", false),
        ] {
            assert_eq!(recording(name).is_some(), want, "{name}");
        }
    }

    #[test]
    fn a_device_that_is_missing_is_a_wrong_command_and_one_that_fails_is_not() {
        let missing = DeviceError::NotFound { side: Side::Microphone, wanted: "x".into(), names: vec!["y".into()] };
        let error = refused("--input", missing);
        assert!(error.is::<Usage>(), "{error}");
        assert_eq!(error.to_string(), "--input: there is no microphone `x`; there are: y (--list-devices)");
        assert!(!refused("--input", DeviceError::None { side: Side::Microphone }).is::<Usage>());
    }
}
