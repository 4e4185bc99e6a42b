//! `voxrelay say`: a recording goes into a call as a phone would send it, and the answer into a file.
//!
//! Stands on [`crate::caller`] alone: what it shows is what any client of the relay would see. The recording is read and
//! encoded before the call, so nothing but a frame is sent while the clock runs.
use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use secrecy::{ExposeSecret as _, SecretString};

use super::{Authorities, Usage};
use crate::{
    audio::{Codec, Format, decode::decode_file},
    caller::{self, ConnectError, Options, Pace, Turns},
};

mod codec;
pub(in crate::cli) mod conversation;
pub(in crate::cli) mod narrate;
pub(in crate::cli) mod screen;
mod table;
pub(in crate::cli) mod talk;

use codec::{Speech, recording_rate};
use conversation::Patience;
use screen::Screen;
use talk::Talk;

/// Say a recording to a relay, in real time, and save the answer
///
/// Sends FILE as a phone would, 20 ms at a time, prints what both sides say, and then a table of where the milliseconds
/// went. Exit code 0: it was answered; 1: the call failed; 2: the command was wrong.
#[derive(Debug, clap::Args)]
#[command(override_usage = "voxrelay say [OPTIONS] <FILE>\n       voxrelay say [OPTIONS] --text <TEXT>")]
#[command(after_help = "Examples:
  voxrelay say assets/hello.wav
  voxrelay say question.mp3 --manual --out answer.wav
  voxrelay say question.flac --url ws://127.0.0.1:8080/v1/voice --format mulaw
  voxrelay say --text 'What is the weather like?'")]
pub struct SayArgs {
    /// The recording: wav, flac, mp3, m4a, aac, ogg or webm (Vorbis, Opus)
    #[arg(value_name = "FILE", required_unless_present = "text", conflicts_with = "text")]
    pub file: Option<PathBuf>,

    /// Type this instead of saying a recording
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,

    /// The relay to call [default: one that runs inside of this command, with a simulated service]
    #[arg(long, value_name = "WS_URL")]
    pub url: Option<String>,

    /// Where the answer goes, as wav: every reply in its order, as far as it was heard
    #[arg(long, value_name = "FILE", default_value = "reply.wav")]
    pub out: PathBuf,

    /// How the recording is sent
    #[arg(long, value_name = "FORMAT", default_value = "pcm16", value_parser = codecs())]
    pub format: Codec,

    /// Its rate, Hz [default: pcm16 24000, mulaw and alaw 8000, opus 48000]
    #[arg(long, value_name = "HZ", value_parser = rate)]
    pub rate: Option<u32>,

    /// How the answer shall come [default: as --format]
    #[arg(long, value_name = "FORMAT", value_parser = codecs())]
    pub out_format: Option<Codec>,

    /// Its rate, Hz [default: as --rate where that is possible]
    #[arg(long, value_name = "HZ", value_parser = rate)]
    pub out_rate: Option<u32>,

    /// Push-to-talk: the whole recording is one turn, whatever pauses are in it
    #[arg(long)]
    pub manual: bool,

    /// Who answers: an agent of the relay's configuration
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,

    /// Tenant key or call token
    #[arg(long, value_name = "TOKEN", env = "VOXRELAY_TOKEN", hide_env_values = true)]
    pub token: Option<SecretString>,

    /// Trust this authority too (PEM), such as a relay's self-signed certificate
    #[arg(long, value_name = "FILE", env = "VOXRELAY_CA_FILE")]
    pub ca: Option<Authorities>,

    /// How fast the relay shall send the answer: at playing speed, or as it comes
    #[arg(long, value_name = "PACE", default_value = "realtime", value_parser = paces())]
    pub pace: Pace,

    /// Give up when nothing has come for so long after the recording's end
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub wait: u64,

    /// Give up so long after the recording's end, whatever still comes
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub deadline: u64,
}

fn codecs() -> impl clap::builder::TypedValueParser<Value = Codec> {
    PossibleValuesParser::new(Codec::ALL.map(Codec::name)).try_map(|name| name.parse::<Codec>())
}

fn rate(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "allowed: 8000, 16000, 24000, 48000, as far as the format has them".to_owned())
}

fn paces() -> impl clap::builder::TypedValueParser<Value = Pace> {
    let all = [Pace::Realtime, Pace::Fast];
    PossibleValuesParser::new(all.map(Pace::name))
        .map(move |name| all.into_iter().find(|pace| pace.name() == name).unwrap_or(Pace::Realtime))
}

/// Does what `args` say on the relay at `url`.
///
/// # Errors
/// [`Usage`] where the arguments or the file can never work; anything else is a call that failed.
pub async fn run(args: SayArgs, url: &str) -> anyhow::Result<ExitCode> {
    caller::check_url(url).map_err(|error| Usage(format!("--url: {error}")))?;
    let plan = Plan::new(&args).map_err(|error| Usage(super::text(&error)))?;
    let stdout = io::stdout();
    // Not locked: a relay in the same process may log to it.
    let live = stdout.is_terminal();
    let mut screen = Screen::new(stdout, live);
    let result = plan.call(url, &mut screen).await;
    screen.erase()?;
    result.map(|()| ExitCode::SUCCESS)
}

/// Everything that can be known before the call.
struct Plan {
    options: Options,
    what: What,
    out: PathBuf,
    patience: Patience,
}

enum What {
    Recording { name: String, speech: Speech, length: Duration, truncated: bool, manual: bool },
    Text(String),
}

impl Plan {
    fn new(args: &SayArgs) -> anyhow::Result<Self> {
        let input = Format::new(args.format, args.rate).context("--rate")?;
        let out_codec = args.out_format.unwrap_or(input.codec);
        let same_rate = Some(input.rate).filter(|rate| out_codec.rates().contains(rate));
        let output = Format::new(out_codec, args.out_rate.or(same_rate)).context("--out-rate")?;
        check_out(&args.out)?;
        let what = match (&args.file, &args.text) {
            (Some(file), _) => read(file, input, args.manual)?,
            (None, Some(text)) if !text.trim().is_empty() => What::Text(text.clone()),
            (None, _) => bail!("--text is empty; there is nothing to say"),
        };
        Ok(Self {
            options: Options {
                format: Some(input.codec),
                rate: Some(input.rate),
                out_format: Some(output.codec),
                out_rate: Some(output.rate),
                turns: Some(if args.manual { Turns::Manual } else { Turns::Auto }),
                pace: Some(args.pace),
                agent: args.agent.clone(),
                token: args.token.clone().filter(|token| !token.expose_secret().is_empty()),
                roots: args.ca.clone().map(|ca| ca.0).unwrap_or_default(),
                ..Options::default()
            },
            what,
            out: args.out.clone(),
            patience: Patience { quiet: Duration::from_secs(args.wait), total: Duration::from_secs(args.deadline) },
        })
    }

    async fn call<W: Write>(self, url: &str, screen: &mut Screen<W>) -> anyhow::Result<()> {
        let shown = url.split('?').next().unwrap_or_default();
        screen.line(&format!("calling {shown}"))?;
        let call = caller::connect(url, &self.options).await.map_err(|error| match error {
            ConnectError::Token => Usage(format!("--token: {error}")).into(),
            error => anyhow::Error::new(error),
        })?;
        let ready = call.ready();
        screen.line(&format!(
            "{} with agent {}: sending {}, getting {}, {} turns",
            ready.call,
            ready.agent,
            ready.audio.input,
            ready.audio.output,
            self.options.turns.unwrap_or(Turns::Auto).name(),
        ))?;
        let mut talk = Talk::begin(call, self.what, self.patience, screen)?;
        let verdict = Box::pin(talk.listen()).await?;
        talk.finish(verdict, &self.out).await
    }
}

/// A file that cannot be written is better found before the call than after it.
pub(in crate::cli) fn check_out(out: &Path) -> anyhow::Result<()> {
    ensure!(!out.is_dir(), "--out: {} is a folder; a file is wanted", out.display());
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "--out: there is no folder {}", folder.display());
    let mut open = OpenOptions::new();
    // Neither empties what is there nor leaves an empty file behind.
    let tried = match open.write(true).open(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            open.create_new(true).open(out).and_then(|_| fs::remove_file(out))
        }
        tried => tried.map(drop),
    };
    tried.with_context(|| format!("--out: {} cannot be written", out.display()))
}

fn read(file: &Path, format: Format, manual: bool) -> anyhow::Result<What> {
    let recording = decode_file(file, recording_rate(format))?;
    let length = recording.duration();
    ensure!(!length.is_zero(), "{} holds no audio", file.display());
    let speech = Speech::encode(&recording.samples, format)?;
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    Ok(What::Recording { name, speech, length, truncated: recording.truncated, manual })
}

#[cfg(test)]
mod tests;
