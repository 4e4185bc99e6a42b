//! `voxrelay phone`: a telephone provider, played against a running relay.
//!
//! Stands on [`crate::provider`]: asks the voice webhook as the provider would, opens the stream that the answer names, says a
//! recording as the caller, and tells what the caller's ear has heard.
use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::{
    Authorities, Usage,
    say::{check_out, screen::Screen},
};
use crate::{
    audio::decode::decode_file,
    caller::{UrlError, check_url},
    provider::{
        Action, Address, Coding, Direction, Line, Media, Message, Network, Person, Provider, Reach, ReachError, Setup,
        What, When, drive, reach::split, webhook::WebhookError,
    },
    wall,
};

mod narrate;
mod refused;

use narrate::{injected, narrate, summary};

/// How long an agent that greets is silent before it is answered.
const GREETED: Duration = Duration::from_secs(1);

/// Arguments of `phone`.
#[derive(Debug, clap::Args)]
pub struct PhoneArgs {
    #[command(subcommand)]
    command: PhoneCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PhoneCommand {
    /// Call a relay as a provider does, say a recording, and save what the caller hears
    Simulate(Box<SimulateArgs>),
}

/// Call a relay as a provider does, say a recording, and save what the caller hears
///
/// Plays twilio, signalwire, telnyx, plivo, vonage, jambonz, freeswitch, asterisk (chan_websocket) or audiosocket, with the
/// playout buffer that each of them has. Exit code 0: a reply was heard and no rule of the provider's was broken; 1: not so;
/// 2: the command was wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  voxrelay phone simulate twilio --audio question.wav --voice-url http://127.0.0.1:8080/phone/main/voice
  voxrelay phone simulate telnyx --audio question.wav --url ws://127.0.0.1:8080/phone/main/stream --token T --codec alaw
  voxrelay phone simulate asterisk --audio question.wav --voice-url http://127.0.0.1:8080/phone/asterisk/voice --stream-password P
  voxrelay phone simulate audiosocket --audio question.wav --voice-url http://127.0.0.1:8080/phone/asterisk/voice --stream-password P --tcp 127.0.0.1:9092
  voxrelay phone simulate vonage --audio question.wav --voice-url http://127.0.0.1:8080/phone/v/voice --interrupt-after 800")]
struct SimulateArgs {
    /// Whose side is played
    #[arg(value_name = "PROVIDER")]
    provider: Provider,

    /// What the caller says: wav, flac, mp3, m4a, aac, ogg or webm
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,

    /// Ask this voice webhook first, and connect the stream that it names
    #[arg(long, value_name = "HTTP_URL", required_unless_present_any = ["url", "tcp"])]
    voice_url: Option<String>,

    /// Connect this stream, and ask no webhook; for asterisk and freeswitch, whose dialplan names it, with --voice-url too
    #[arg(long, value_name = "WS_URL", conflicts_with = "tcp")]
    url: Option<String>,

    /// Connect this AudioSocket
    #[arg(long, value_name = "HOST:PORT")]
    tcp: Option<String>,

    /// The UUID of an AudioSocket call [default: what the webhook gives, else a random one]
    #[arg(long, value_name = "UUID", requires = "tcp", conflicts_with = "voice_url")]
    uuid: Option<String>,

    /// How the world knows the relay: signatures are over this address, and a stream there is reached where the webhook is
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,

    /// Signs the webhook and Twilio's stream: Twilio's, SignalWire's or Plivo's auth token, Telnyx' private key in base64, Vonage's or
    /// jambonz' secret
    #[arg(long, value_name = "KEY", env = "VOXRELAY_PHONE_AUTH_TOKEN", hide_env_values = true)]
    auth_token: Option<SecretString>,

    /// Shown by asterisk, audiosocket and freeswitch at the webhook and the stream; by signalwire and jambonz at the stream, where
    /// no markup says it
    #[arg(long, value_name = "PASSWORD", env = "VOXRELAY_PHONE_STREAM_PASSWORD", hide_env_values = true)]
    stream_password: Option<SecretString>,

    /// The account at the provider; with vonage the application's id [default: an invented one]
    #[arg(long, value_name = "ID")]
    account: Option<String>,

    /// The call token to show, where no webhook gives one
    #[arg(long, value_name = "TOKEN", env = "VOXRELAY_PHONE_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,

    /// A further parameter of the stream; may be given more than once
    #[arg(long = "parameter", value_name = "NAME=VALUE", value_parser = pair)]
    parameters: Vec<(String, String)>,

    /// A further header of the upgrade; may be given more than once
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, SecretString)>,

    /// The number that is called
    #[arg(long, value_name = "NUMBER", default_value = "+13125550101")]
    number: String,

    /// Who calls
    #[arg(long, value_name = "NUMBER", default_value = "+15005550006")]
    from: String,

    /// The caller's audio on the wire: mulaw, alaw, l16 or l16be [default: the provider's]
    #[arg(long, value_name = "CODEC", value_parser = coding)]
    codec: Option<Coding>,

    /// Its rate, Hz [default: the provider's]
    #[arg(long, value_name = "HZ")]
    rate: Option<u32>,

    /// What the relay sends, where no markup says it; Telnyx' directions may differ [default: as --codec]
    #[arg(long, value_name = "CODEC", value_parser = coding)]
    reply_codec: Option<Coding>,

    /// Asterisk's control messages are plain words instead of JSON
    #[arg(long)]
    plain: bool,

    /// FreeSWITCH's module is one of those that play what comes back
    #[arg(long)]
    plays_back: bool,

    /// Let the agent greet before the caller speaks
    #[arg(long)]
    greeting: bool,

    /// Speak again when the reply has sounded for so long, ms
    #[arg(long, value_name = "MS")]
    interrupt_after: Option<u64>,

    /// What to interrupt with [default: the recording of --audio]
    #[arg(long, value_name = "FILE", requires = "interrupt_after")]
    interrupt_with: Option<PathBuf>,

    /// Press these keys after the recording
    #[arg(long, value_name = "DIGITS", value_parser = digits)]
    press: Option<String>,

    /// Hang up when nothing has sounded for so long after a reply
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    quiet: u64,

    /// Hang up after so long, whatever still sounds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// A habit that is in no reference, to try a relay with; may be given more than once: pauses, duplicate=N, swap=N, no-stop, stop-twice, early-media=N, wrong-stream-ids, late-start=MS, holds=MS
    #[arg(long = "quirk", value_name = "QUIRK")]
    quirks: Vec<String>,

    /// The network's delay between provider and relay, each way, ms
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,

    /// Up to so much more of it, each message anew, ms
    #[arg(long, value_name = "MS", default_value_t = 0)]
    jitter: u64,

    /// Where goes what the caller hears, as wav, pauses included
    #[arg(long, value_name = "FILE", default_value = "heard.wav")]
    out: PathBuf,

    /// Keep every message both ways in this file, a JSON object a line; it holds the call token and the speech
    #[arg(long, value_name = "FILE")]
    wire: Option<PathBuf>,

    /// Trust this authority too (PEM), such as a relay's self-signed certificate
    #[arg(long, value_name = "FILE", env = "VOXRELAY_CA_FILE")]
    ca: Option<Authorities>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("wanted: NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn header(text: &str) -> Result<(String, SecretString), String> {
    let (name, value) = text.split_once(':').ok_or("wanted: 'NAME: VALUE'")?;
    Ok((name.trim().to_owned(), value.trim().into()))
}

fn coding(text: &str) -> Result<Coding, String> {
    Ok(match text {
        "mulaw" => Coding::Mulaw,
        "alaw" => Coding::Alaw,
        "l16" => Coding::L16,
        "l16be" => Coding::L16Be,
        _ => return Err("allowed: mulaw, alaw, l16, l16be".to_owned()),
    })
}

fn digits(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '*' || c == '#');
    if good { Ok(text.to_owned()) } else { Err("allowed: 0-9 * #".to_owned()) }
}

/// Does what `args` say.
///
/// # Errors
/// [`Usage`] where the arguments or a file can never work; anything else is a call that failed.
pub async fn run(args: PhoneArgs) -> anyhow::Result<ExitCode> {
    let PhoneCommand::Simulate(args) = args.command;
    let call = Call::new(&args).map_err(|error| Usage(super::text(&error)))?;
    let stdout = io::stdout();
    let live = stdout.is_terminal();
    let mut screen = Screen::new(stdout, live);
    Box::pin(call.run(&args, &mut screen)).await
}

/// A call, before the relay has been asked anything.
struct Call {
    setup: Setup,
    roots: Vec<rustls::pki_types::CertificateDer<'static>>,
}

impl Call {
    fn new(args: &SimulateArgs) -> anyhow::Result<Self> {
        check_out(&args.out)?;
        ensure!(args.audio.is_file(), "--audio: {}: no such file", args.audio.display());
        let is_tcp = args.provider == Provider::AudioSocket;
        ensure!(is_tcp == args.tcp.is_some(), "--tcp is for audiosocket, and audiosocket wants it");
        let has_dialplan = matches!(args.provider, Provider::ChanWebSocket | Provider::AudioFork);
        let one = has_dialplan || args.url.is_none() || args.voice_url.is_none();
        ensure!(one, "--url: the webhook's answer names the stream of {}", args.provider.name());
        if let Some(url) = &args.url {
            check_url(url).map_err(|error: UrlError| error).context("--url")?;
        }
        for (name, url) in [("--voice-url", &args.voice_url), ("--public-url", &args.public_url)] {
            let good =
                url.as_ref().is_none_or(|url| split(url).is_some_and(|(scheme, _, _)| scheme.starts_with("http")));
            ensure!(good, "{name}: an address that begins with http:// or https:// is wanted");
        }
        let mut setup = Setup::new(args.provider, rand::random());
        (setup.from, setup.to) = (args.from.clone(), args.number.clone());
        setup.epoch_ms = wall::unix_now_ms();
        (setup.json_control, setup.plays_back) = (!args.plain, args.plays_back);
        if let Some(account) = &args.account {
            setup.ids.account.clone_from(account);
        }
        setup.journal = args.wire.is_some();
        setup.parameters = args.parameters.clone();
        for quirk in &args.quirks {
            setup.quirks.add(quirk).map_err(|error| anyhow::anyhow!("--quirk: {error}"))?;
        }
        let (delay, jitter) = (Duration::from_millis(args.delay), Duration::from_millis(args.jitter));
        setup.network = Network { to_relay: delay, from_relay: delay, jitter };
        if let Some(token) = &args.token {
            setup.parameters.insert(0, ("token".to_owned(), token.expose_secret().to_owned()));
        }
        if let Some(uuid) = &args.uuid {
            let hex = uuid.chars().filter(|c| *c != '-');
            ensure!(hex.clone().count() == 32 && hex.clone().all(|c| c.is_ascii_hexdigit()), "--uuid: not a UUID");
            setup.ids.stream = uuid.clone();
        }
        let default = setup.media;
        let coding = args.codec.unwrap_or(if args.rate.is_some_and(|rate| rate != 8_000) {
            Coding::L16
        } else {
            default.coding
        });
        let g711 = matches!(coding, Coding::Mulaw | Coding::Alaw);
        let rate = args.rate.unwrap_or(if g711 { 8_000 } else { default.rate });
        let mut setup = setup.with_media(Media { coding, rate }).context("--codec, --rate")?;
        if let Some(coding) = args.reply_codec {
            setup.reply.coding = coding;
            setup.check().context("--reply-codec")?;
        }
        Ok(Self { setup, roots: args.ca.clone().map(|ca| ca.0).unwrap_or_default() })
    }

    async fn run<W: io::Write>(mut self, args: &SimulateArgs, screen: &mut Screen<W>) -> anyhow::Result<ExitCode> {
        let address = self.ask(args, screen).await?;
        let person = self.person(args)?;
        let shown = match &address {
            Address::Tcp(to) => to.as_str(),
            Address::WebSocket { url, .. } => url.split('?').next().unwrap_or_default(),
        };
        screen.line(&format!(
            "{} calls {} as {}: stream to {shown}, {}",
            self.setup.from,
            self.setup.to,
            self.setup.provider.name(),
            self.setup.media
        ))?;
        for (name, value) in &self.setup.parameters {
            let is_token = name.eq_ignore_ascii_case("token");
            let shown = if is_token { format!("({} characters)", value.len()) } else { value.clone() };
            screen.line(&format!("  {name} {shown}"))?;
        }
        let longest = Duration::from_secs(args.seconds);
        let mut failed = None;
        let outcome = drive(&address, self.setup, person, longest, |at, told| {
            if let Err(error) = narrate(screen, at, &told) {
                failed.get_or_insert(error);
            }
        });
        let outcome = Box::pin(outcome).await?;
        failed.map_or(Ok(()), Err)?;
        outcome.line.ear().write_wav(&args.out, outcome.summary.ended.at)?;
        if let Some(file) = &args.wire {
            write_wire(file, &outcome.line).with_context(|| format!("--wire: {}", file.display()))?;
        }
        summary(screen, &outcome.summary, &args.out)?;
        if !args.quirks.is_empty() {
            injected(screen, outcome.line.injected())?;
        }
        let good = outcome.summary.first_sound.is_some() && outcome.summary.violations.is_empty();
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Asks the voice webhook, if there is one; the stream that it names, with what it gives to it.
    async fn ask<W: io::Write>(&mut self, args: &SimulateArgs, screen: &mut Screen<W>) -> anyhow::Result<Address> {
        let reach = Reach {
            voice_url: args.voice_url.clone(),
            stream_url: args.url.clone(),
            tcp: args.tcp.clone(),
            public_url: args.public_url.clone(),
            auth_token: args.auth_token.clone(),
            stream_password: args.stream_password.clone(),
            headers: args.headers.clone(),
            roots: self.roots.clone(),
        };
        if let Some(voice) = &args.voice_url {
            screen.line(&format!("asking {voice} ({})", reach.shows(args.provider)))?;
        }
        let reached = reach.reach(&mut self.setup, wall::unix_now()).await.map_err(|error| match error {
            ReachError::Webhook(WebhookError::Key { .. }) => Usage(error.to_string()).into(),
            error => match refused::check(&error, args.provider, &args.number) {
                Some(check) => anyhow::anyhow!("{error}\n{check}"),
                None => anyhow::Error::new(error),
            },
        })?;
        for note in &reached.notes {
            screen.line(&format!("note: {note}"))?;
        }
        Ok(reached.address)
    }

    fn person(&self, args: &SimulateArgs) -> anyhow::Result<Person> {
        let media = self.setup.media;
        let recording = |file: &Path| -> anyhow::Result<Vec<i16>> {
            let samples = decode_file(file, media.rate)?.samples;
            ensure!(!samples.is_empty(), "{} holds no audio", file.display());
            Ok(samples)
        };
        let samples = recording(&args.audio)?;
        let begin = if args.greeting { When::Quiet(GREETED) } else { When::At(Duration::ZERO) };
        let mut script = vec![Action { when: begin, what: What::Say(samples.clone()) }];
        if let Some(keys) = &args.press {
            script.push(Action { when: When::Said, what: What::Press(keys.clone()) });
        }
        if let Some(after) = args.interrupt_after {
            let samples = args.interrupt_with.as_deref().map_or(Ok(samples), recording)?;
            let heard = When::Heard(Duration::from_millis(after.max(1)));
            script.push(Action { when: heard, what: What::Say(samples) });
        }
        let quiet = When::Quiet(Duration::from_secs(args.quiet));
        script.push(Action { when: quiet, what: What::HangUp });
        Ok(Person::new(media, script))
    }
}

/// Every message, in the form of the transcripts in `tests/golden/phone`.
fn write_wire(file: &Path, line: &Line) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(fs::File::create(file)?);
    for entry in line.journal() {
        let dir = match entry.direction {
            Direction::ToRelay => "provider->app",
            Direction::FromRelay => "app->provider",
        };
        let (op, data) = match &entry.message {
            Message::Text(text) => ("text", text.clone()),
            Message::Binary(bytes) => ("binary", STANDARD.encode(bytes)),
            Message::Close { code } => ("close", code.to_string()),
        };
        let row = json!({ "t_ms": u64::try_from(entry.at.as_millis())?, "dir": dir, "op": op, "data": data });
        writeln!(out, "{row}")?;
    }
    Ok(out.flush()?)
}
