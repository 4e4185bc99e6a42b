//! `voxrelay transcribe` and `voxrelay extract`: many recordings to a table of texts, and texts to a table of facts.
//!
//! A client of a relay ([`crate::batch`]): of one that is named, or of one inside of this process, on the configured service. So what they
//! use is counted, paced and paid as calls are, after them.
use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use secrecy::SecretString;
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{self, Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

mod list;
mod signals;

use self::{list::Listing, signals::Signals};
use super::{Authorities, Usage, logs, relay, serve, tell};
use crate::{
    batch::{
        cut,
        engine::{Either, Engine, Wish},
        extract::batchapi::file::Limits as BatchLimits,
        facts::Facts,
        gate::Gate,
        realtime::Realtime,
        relay::Relay,
        rounds::{Afoot, Rounds},
        show::{NAMED, Progress, Summary},
        source::{self, PIECES, Remote, Search, Sources, Wanted},
        store::{Order, Params, State, Store, StoreError, Sums},
        table::{Format, Guard, Output, Subtitles, TableError, Written},
        width::Width,
        work::{Plans, Run, Stopped},
    },
    config::Config,
    wall::unix_now,
};

/// Requests at once at most, where nothing is said.
const MOST: usize = 128;
/// Longest answer to one request.
const LONGEST_ANSWER: Duration = Duration::from_secs(1_200);
/// A recording that is fetched is not larger, bytes.
const MAX_FETCHED: u64 = 16 << 30;
/// How often the line is drawn; and where nobody looks, written.
const DRAWN: Duration = Duration::from_millis(250);
const LOGGED: Duration = Duration::from_secs(10);
/// Longest reason of a failure that is shown, characters.
const SHOWN: usize = 200;

/// Write recordings down: folders of them, thousands, into one table
///
/// Recordings are sent through a relay, as many at once as its limits and the service's answers allow, after all calls. What is finished is
/// kept at once: stop it with Ctrl-C or in any other way, and --resume goes on without paying twice. Exit code 0: all were written down;
/// 1: some were not, or it was stopped; 2: the command was wrong.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  voxrelay transcribe recordings/ --out calls.csv
  voxrelay transcribe recordings/ --out calls.parquet --extract call-summary
  voxrelay transcribe a.mp3 'b/*.wav' --out texts --srt --url http://127.0.0.1:8080/v1
  find . -name '*.ogg' -print0 | voxrelay transcribe - --out calls.jsonl
  voxrelay transcribe --manifest calls.csv --out result.csv --resume")]
pub struct TranscribeArgs {
    /// Recordings: files, folders, patterns, URLs; `-`: a list of them on standard input
    #[arg(value_name = "FILES", required_unless_present_any = ["manifest", "resume"])]
    files: Vec<OsString>,
    /// A table of recordings (.csv, .tsv, .jsonl) with the columns `path` and, if you like, `id` and others, which come along
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    manifest: Option<PathBuf>,
    /// The model that writes recordings down
    #[arg(long, value_name = "NAME", default_value = "gpt-transcribe")]
    model: String,
    /// The language that is spoken, such as `de` [default: the model finds out]
    #[arg(long, value_name = "CODE")]
    language: Option<String>,
    /// Names and words that occur, or the style that is wanted
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Subtitles beside each text, as .srt; --out is a folder then
    #[arg(long)]
    srt: bool,
    /// The same as .vtt
    #[arg(long)]
    vtt: bool,
    /// Shorter recordings are left out, and listed as such, seconds
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    min_seconds: f64,
    /// How recordings are sent: as files, in sessions, or in sessions where there is no address for files
    #[arg(long, value_name = "HOW", default_value = "auto")]
    engine: Sent,
    /// Longer recordings are cut at pauses into pieces of at most so long, seconds
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    piece_seconds: u64,
    #[command(flatten)]
    extract: ExtractWish,
    #[command(flatten)]
    job: JobArgs,
}

/// Extract facts from texts: the shape of a JSON Schema, into one table
///
/// Each text file becomes one row. What is finished is kept at once, as with `transcribe`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  voxrelay extract texts/ --extract call-summary --out facts.csv
  voxrelay extract notes/*.txt --extract schema.json --instructions how.txt --out facts.jsonl")]
pub struct ExtractArgs {
    /// Texts: .txt files, folders of them, patterns; `-`: a list of them on standard input
    #[arg(value_name = "FILES", required_unless_present = "resume")]
    files: Vec<OsString>,
    #[command(flatten)]
    extract: ExtractWish,
    #[command(flatten)]
    job: JobArgs,
}

/// What is to be made of texts.
#[derive(Debug, Args)]
struct ExtractWish {
    /// Facts to take from each text: a JSON Schema (.json), a commented example (.jsonc), or one of call-summary, support-ticket, sales-call,
    /// survey
    #[arg(long, value_name = "SCHEMA")]
    extract: Option<String>,
    /// What to look out for, a text file
    #[arg(long, value_name = "FILE", requires = "extract")]
    instructions: Option<PathBuf>,
    /// The model that reads: a name, or auto, fast, best, expert
    #[arg(long, value_name = "NAME", default_value = "fast")]
    extract_model: String,
    /// Make a schema strict where it is not: all fields required, those that were optional may be null, no others
    #[arg(long, requires = "extract")]
    make_strict: bool,
    /// Tokens that the model can read and write at once
    #[arg(long, value_name = "N", default_value_t = 128_000)]
    context_tokens: u64,
    #[command(flatten)]
    batch: BatchWish,
}

/// What goes in batches, and how.
#[derive(Debug, Clone, Args)]
struct BatchWish {
    /// Send what is extracted in batches: half the price, and answers within a day; stop it, and --resume goes on with them
    #[arg(long, requires = "extract")]
    batch_api: bool,
    /// Cancel the batches of the job of --out: what they have done is taken along, and paid
    #[arg(long, requires = "resume", conflicts_with = "batch_api")]
    cancel_batch: bool,
    /// Repairs and mergers are sent directly where they are fewer than this
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch_few: u64,
    /// Tokens that a batch may read: the account's limit for what waits in batches [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batch_tokens: Option<u64>,
    /// Longest wait between two looks at a batch, seconds
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    batch_look: u64,
}

impl BatchWish {
    /// How batches are made in this job; none: no request goes in one. What is under way already goes on, asked for or not.
    fn rounds(&self, store: &Store) -> anyhow::Result<Option<Rounds>> {
        let live = store.live_batches()?;
        if self.cancel_batch && live.is_empty() {
            return Err(Usage("--cancel-batch: no batch of this job is under way".to_owned()).into());
        }
        if !self.batch_api && live.is_empty() {
            store.unpark()?;
            return Ok(None);
        }
        let limits = BatchLimits { tokens: self.batch_tokens.unwrap_or(u64::MAX), ..BatchLimits::default() };
        Ok(Some(Rounds::new(limits, self.batch_few, self.batch_look, self.cancel_batch)))
    }
}

/// Where from, where to, and how.
#[derive(Debug, Args)]
struct JobArgs {
    /// Where results go: a table (.csv, .jsonl, .parquet), or a folder with a text for each
    #[arg(long, value_name = "PATH", default_value = "transcripts")]
    out: PathBuf,
    /// Go on with the job of --out: what is done stays, what failed is tried again
    #[arg(long)]
    resume: bool,
    /// Requests at once, or auto: as many as limits and answers allow
    #[arg(long, value_name = "N", default_value = "auto", value_parser = jobs)]
    jobs: Jobs,
    /// The relay, or any service of the same shape [default: a relay inside of this command, on the configured service, or on the simulator]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Tenant key, or the service's
    #[arg(long, value_name = "KEY", env = "VOXRELAY_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,
    /// Trust this authority too (PEM)
    #[arg(long, value_name = "FILE", env = "VOXRELAY_CA_FILE")]
    ca: Option<Authorities>,
    /// Configuration of the relay inside (its service, limits, prices)
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_name = "HOW", default_value = "auto")]
    progress: Shown,
}

/// How recordings are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sent {
    /// As files, and in sessions where the first answer says that there is no address for files
    Auto,
    /// As files, to /v1/audio/transcriptions
    Rest,
    /// In Realtime transcription sessions, for services that have only those
    Realtime,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shown {
    /// A bar where somebody looks, lines where nobody does
    Auto,
    /// A line every ten seconds
    Lines,
    /// Not at all
    Never,
}

/// Requests at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Jobs {
    /// As many as limits and answers allow.
    Found,
    /// So many.
    Fixed(usize),
}

fn jobs(text: &str) -> Result<Jobs, String> {
    match text.parse::<usize>() {
        _ if text == "auto" => Ok(Jobs::Found),
        Ok(many) if (1..=1_000).contains(&many) => Ok(Jobs::Fixed(many)),
        _ => Err("allowed: auto, or 1 to 1000".to_owned()),
    }
}

/// A job, whatever its command is called.
struct Job {
    command: &'static str,
    files: Vec<OsString>,
    manifest: Option<PathBuf>,
    /// What it is made of besides, where that is a file: what that is.
    made_of: Vec<(&'static str, PathBuf)>,
    wish: Wish,
    limits: cut::Limits,
    subtitles: Subtitles,
    extract: Option<Facts>,
    batch: BatchWish,
    texts: bool,
    sent: Sent,
    args: JobArgs,
}

/// Runs `transcribe`.
///
/// # Errors
/// When it cannot begin.
pub async fn run(args: TranscribeArgs) -> anyhow::Result<ExitCode> {
    let TranscribeArgs {
        files,
        manifest,
        model,
        language,
        prompt,
        srt,
        vtt,
        min_seconds,
        engine,
        piece_seconds,
        extract,
        job,
    } = args;
    if !min_seconds.is_finite() || !(0.0..=3_600.0).contains(&min_seconds) {
        return Err(Usage(format!("--min-seconds: found {min_seconds}; allowed: 0 to 3600")).into());
    }
    let subtitles = Subtitles { srt, vtt };
    let wish = Wish { model, language, prompt, times: srt || vtt };
    let limits = cut::Limits {
        longest: Duration::from_secs(piece_seconds),
        shortest: Duration::from_secs_f64(min_seconds),
        ..cut::Limits::default()
    };
    let (batch, made_of) = (extract.batch.clone(), extract.files());
    let extract = extract.wanted()?;
    let (command, texts, sent) = ("transcribe", false, engine);
    let job =
        Job { command, files, manifest, made_of, wish, limits, subtitles, extract, batch, texts, sent, args: job };
    job.run().await
}

/// Runs `extract`.
///
/// # Errors
/// When it cannot begin.
pub async fn run_extract(args: ExtractArgs) -> anyhow::Result<ExitCode> {
    let ExtractArgs { files, extract, job } = args;
    let (batch, made_of) = (extract.batch.clone(), extract.files());
    let extract = extract
        .wanted()?
        .ok_or_else(|| Usage("--extract is missing: what is to be taken from the texts?".to_owned()))?;
    let wish = Wish { model: String::new(), language: None, prompt: None, times: false };
    let (limits, subtitles) = (cut::Limits::default(), Subtitles::default());
    let (command, texts, sent, manifest, extract) = ("extract", true, Sent::Auto, None, Some(extract));
    let job =
        Job { command, files, manifest, made_of, wish, limits, subtitles, extract, batch, texts, sent, args: job };
    job.run().await
}

impl ExtractWish {
    /// The files that facts depend on.
    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let schema = self.extract.as_ref().map(|what| ("the schema", PathBuf::from(what)));
        let instructions = self.instructions.clone().map(|file| ("the instructions", file));
        schema.into_iter().chain(instructions).collect()
    }

    fn wanted(self) -> Result<Option<Facts>, Usage> {
        let Self { extract, instructions, extract_model, make_strict, context_tokens, batch: _ } = self;
        let Some(what) = extract else { return Ok(None) };
        let read = |file: PathBuf| {
            let text = std::fs::read_to_string(&file);
            text.map_err(|error| Usage(format!("--instructions: cannot read `{}`: {error}", file.display())))
        };
        let instructions = instructions.map(read).transpose()?;
        Facts::new(&what, instructions.as_deref(), &extract_model, make_strict, context_tokens)
            .map(Some)
            .map_err(|error| Usage(format!("--extract: {error}")))
    }
}

impl Job {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::new().context("cannot listen to Ctrl-C")?;
        let output = self.output()?;
        let guard = self.guard(&output)?;
        let store = Arc::new(self.store()?);
        let began = self.begin(&store, &output, guard);
        let (kept, sources, place) = match signals.or(Box::pin(began)).await {
            Some(Ok(began)) => began,
            Some(Err(error)) => {
                self.undo(store);
                return Err(error);
            }
            None => {
                self.undo(store);
                tell(io::stderr(), "stopped, before anything was sent");
                return Ok(ExitCode::FAILURE);
            }
        };
        let done = self.work(store, (kept, sources), &place, output, &mut signals).await;
        // Its result stands, also where nobody waits for the rest.
        let _ = signals.or(place.stop()).await;
        done
    }

    /// Where results go.
    fn output(&self) -> Result<Output, Usage> {
        let out = self.args.out.clone();
        let format = Format::of(&out).map_err(Usage)?;
        if (self.subtitles.srt || self.subtitles.vtt) && format != Format::Folder {
            return Err(Usage(format!("--srt and --vtt: --out is `{}`, a table; allowed: a folder", out.display())));
        }
        Ok(Output {
            out,
            format,
            subtitles: self.subtitles,
            schema: self.extract.as_ref().map(Facts::schema),
            order: if self.manifest.is_some() { Order::Listed } else { Order::Id },
            stop: CancellationToken::new(),
        })
    }

    /// What must not be written over, if it is not about to be.
    fn guard(&self, output: &Output) -> Result<Guard, Usage> {
        let guard = output.guard(self.texts).map_err(Usage)?;
        let manifest = self.manifest.iter().map(|file| ("the manifest", file));
        let config = self.args.config.iter().map(|file| ("the configuration", file));
        let others = self.made_of.iter().map(|(what, file)| (*what, file));
        manifest.chain(config).chain(others).try_for_each(|(what, file)| guard.file(what, file)).map_err(Usage)?;
        Ok(guard)
    }

    /// All that comes before the first request: what is to be done is in the job, and there is somebody who does it.
    async fn begin(&self, store: &Arc<Store>, output: &Output, guard: Guard) -> anyhow::Result<(Kept, Sources, Place)> {
        let kept = Kept::beside(&self.args.out).context("there is no place for pieces of recordings")?;
        let fetched = source::Limits { max_bytes: MAX_FETCHED, folder: kept.0.clone() };
        let sources = Sources::new(fetched).map_err(anyhow::Error::msg)?;
        if !self.is_named_before() {
            self.listing(store, output, &sources)?.put(store.clone(), guard).await?;
        }
        if self.args.resume && !self.batch.cancel_batch {
            store.retry_failed()?;
        }
        if store.sums().items() == 0 {
            return Err(self.nothing(store));
        }
        Ok((kept, sources, self.place().await?))
    }

    /// What is to be done is in the job, and named once only.
    fn is_named_before(&self) -> bool {
        self.args.resume && self.files.is_empty() && self.manifest.is_none()
    }

    /// Why nothing is to be done.
    fn nothing(&self, store: &Store) -> anyhow::Error {
        if self.is_named_before() {
            let job = store.file().display();
            return Usage(format!("nothing is listed in the job `{job}` yet; name the files again")).into();
        }
        for unread in store.unread().flatten().take(NAMED) {
            let reason = unread.message.unwrap_or_default();
            tell(io::stderr(), &format!("voxrelay: {}: {reason}", unread.id));
        }
        let more = store.sums().unread.saturating_sub(NAMED as u64);
        if more > 0 {
            tell(io::stderr(), &format!("voxrelay: and {more} more"));
        }
        Usage(format!("no {} were found there", if self.texts { "texts" } else { "recordings" })).into()
    }

    /// A job that was begun just now and in which nothing was done is none.
    fn undo(&self, store: Arc<Store>) {
        let file = store.file().to_owned();
        drop(store);
        if !self.args.resume {
            Store::remove(&file);
        }
    }

    /// The job's file.
    fn store(&self) -> anyhow::Result<Store> {
        let file = Store::beside(&self.args.out);
        let params = self.params();
        let begin = || -> anyhow::Result<_> {
            let base = std::env::current_dir().context("the current folder cannot be read")?;
            Ok(Store::create(&file, &params, &base))
        };
        let opened = match self.args.resume.then(|| Store::resume(&file, &params)) {
            // Whoever began it was ended before there was anything in it.
            Some(Err(StoreError::Empty { .. })) | None => begin()?,
            Some(opened) => opened,
        };
        opened.map_err(|error| match error {
            StoreError::Exists { .. }
            | StoreError::Absent { .. }
            | StoreError::Differs { .. }
            | StoreError::Other { .. } => Usage(error.to_string()).into(),
            other => other.into(),
        })
    }

    fn params(&self) -> Params {
        let mut params = Params::default();
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                params.transcribe.insert(name.to_owned(), value);
            }
        };
        if self.texts {
            put("source", Some("texts".to_owned()));
        } else {
            put("model", Some(self.wish.model.clone()));
            put("language", self.wish.language.clone());
            put("prompt", self.wish.prompt.clone());
            put("times", self.wish.asks_for_times().then(|| "wanted".to_owned()));
            put("min-seconds", Some(self.limits.shortest.as_secs_f64().to_string()));
            put("piece-seconds", Some(self.limits.longest.as_secs().to_string()));
        }
        if let Some(extract) = &self.extract {
            params.extract = extract.params();
        }
        params
    }

    fn listing(&self, store: &Store, output: &Output, sources: &Sources) -> anyhow::Result<Listing> {
        if let Some(file) = &self.manifest {
            return Ok(Listing::Manifest(file.clone()));
        }
        let wanted = if self.texts { Wanted::Texts } else { Wanted::Recordings };
        let folder = (output.format == Format::Folder).then(|| std::path::absolute(&output.out)).transpose()?;
        let elsewhere = Arc::new(Remote::new(sources.clone(), Handle::current()));
        let search = Search::new(store.base(), wanted, folder.as_deref(), elsewhere);
        Ok(Listing::Arguments(search, self.files.clone()))
    }

    /// The relay.
    async fn place(&self) -> anyhow::Result<Place> {
        let ca = self.args.ca.clone().map(|ca| ca.0).unwrap_or_default();
        let (base, token, inside) = match &self.args.url {
            Some(url) => (url.clone(), self.args.token.clone(), None),
            None => {
                let inside = inside(self.args.config.as_deref()).await?;
                (format!("http://{}/v1", inside.server.addr()), None, Some(inside))
            }
        };
        let usage = |wrong| Usage(format!("--url: {wrong}"));
        let sessions = Realtime::new(&base, token.clone(), ca.clone(), LONGEST_ANSWER).map_err(usage)?;
        let relay = Relay::new(&base, token, ca, LONGEST_ANSWER).map_err(usage)?;
        let engine: Arc<dyn Engine> = match self.sent {
            Sent::Auto => Arc::new(Either::new(relay.clone(), sessions)),
            Sent::Rest => Arc::new(relay.clone()),
            Sent::Realtime => Arc::new(sessions),
        };
        Ok(Place { relay, engine, inside })
    }

    async fn work(
        &self,
        store: Arc<Store>,
        (kept, sources): (Kept, Sources),
        place: &Place,
        output: Output,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let width = match self.args.jobs {
            Jobs::Found => Width::new(MOST),
            Jobs::Fixed(many) => Width::fixed(many),
        };
        let before = store.sums();
        let rounds = self.batch.rounds(&store)?;
        let run = Run::new(Plans {
            store: store.clone(),
            sources,
            engine: place.engine.clone(),
            relay: place.relay.clone(),
            gate: Gate::new(width),
            wish: self.wish.clone(),
            limits: self.limits,
            extract: self.extract.clone(),
            folder: kept.0.clone(),
            texts: self.texts,
            rounds,
        });
        let began = Instant::now();
        {
            let shown = show(&run, &before, began, self.args.progress);
            let asked = told_to_stop(&run, signals);
            tokio::select! {
                () = run.run() => {}
                () = shown => {}
                () = asked => {}
            }
        }
        drop(kept);
        let written = write(output, store.clone(), signals).await?;
        self.tell(&run, &before, began.elapsed(), written.as_ref().ok())?;
        written?;
        let sums = store.sums();
        let all = run.stopped().is_none()
            && sums.unread + sums.failed.items == 0
            && sums.done.items + sums.skipped.items == sums.items();
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn tell(&self, run: &Run, before: &Sums, took: Duration, written: Option<&Written>) -> anyhow::Result<()> {
        let store = run.store();
        let (now, standing, stopped) = (store.sums(), run.gate().standing(), run.stopped());
        let mut errors = Vec::new();
        let listed = store.unread().chain(store.rows(&[State::Failed], Order::Listed));
        // What was left out on purpose comes after what went wrong.
        for row in listed.chain(store.rows(&[State::Skipped], Order::Listed)).take(NAMED) {
            let row = row?;
            let why = row.message.or(row.code).unwrap_or_default();
            // It begins with the file's place where a reader has said it.
            let why = why.strip_prefix(&format!("{}: ", row.source)).unwrap_or(&why).chars().take(SHOWN).collect();
            errors.push((row.id, why));
        }
        let mut notes = run.notes();
        let live = store.live_batches()?.len();
        if live > 0 {
            notes.push(format!(
                "{live} batches go on at the service, and are paid; --resume takes up what comes of them, --cancel-batch with it ends them"
            ));
        }
        let out = self.args.out.display().to_string();
        let summary = Summary {
            progress: Progress { before, now: &now, took, standing: &standing, afoot: None },
            stopped: stopped.as_ref(),
            retried: run.retried(),
            by_batch: store.by_batch()?,
            out: &out,
            written,
            errors: &errors,
            notes: &notes,
            slowest: &store.slowest(10)?,
            resume: &format!("the same command with --resume (voxrelay {} --out {out} --resume ...)", self.command),
        };
        tell(io::stderr(), summary.text().trim_end());
        Ok(())
    }
}

/// A folder for copies and pieces of recordings, as long as they are needed. What a run that was killed has left there is gone.
struct Kept(PathBuf);

impl Kept {
    /// Beside an output, whose job no other process has.
    fn beside(out: &Path) -> io::Result<Self> {
        let mut name = out.components().as_path().as_os_str().to_owned();
        name.push(PIECES);
        let folder = PathBuf::from(name);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // What is said in them is nobody else's.
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where requests go.
struct Place {
    relay: Relay,
    engine: Arc<dyn Engine>,
    inside: Option<relay::Relay>,
}

impl Place {
    async fn stop(self) {
        if let Some(inside) = self.inside {
            inside.stop().await;
        }
    }
}

/// A relay inside of this process, on the configured service, or where there is none on the simulator.
async fn inside(file: Option<&Path>) -> anyhow::Result<relay::Relay> {
    let mut config: Config = serve::load(file)?;
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.server.handover = None;
    config.server.tls = None;
    // Whoever has the configuration is the operator.
    config.tenants.clear();
    config.store.file = Some(PathBuf::new());
    config.phone = crate::config::PhoneConfig::default();
    let usual = (!config.is_simulated()).then(serve::ledger_file);
    config.ledger.file = config.ledger.file.or(usual);
    // Recordings are read from the disk; what is on its way to the service need not fill the memory.
    config.text.max_held_bytes = config.text.max_held_bytes.min(96 << 20).max(config.text.max_audio_bytes + (1 << 20));
    if config.log.level == Config::default().log.level {
        config.log.level = "voxrelay=error".to_owned();
    }
    logs::install(&config.log)?;
    let where_to = match (&config.upstream.url, config.is_simulated()) {
        (_, true) => "no upstream and no OPENAI_API_KEY: the simulator answers, and makes up what was said".to_owned(),
        (Some(url), _) => format!("a relay inside, on {url}"),
        (None, _) => "a relay inside, on the service of OPENAI_API_KEY".to_owned(),
    };
    tell(io::stderr(), &where_to);
    relay::Relay::start(config, None).await
}

/// Writes the results. Whoever does not wait for that leaves what was there before, and nothing that is half written.
async fn write(
    output: Output,
    store: Arc<Store>,
    signals: &mut Signals,
) -> anyhow::Result<Result<Written, TableError>> {
    let stop = output.stop.clone();
    let mut writing = spawn_blocking(move || output.write(&store));
    Ok(match signals.or(&mut writing).await {
        Some(written) => written?,
        None => {
            stop.cancel();
            writing.await?
        }
    })
}

/// Shows how far it is; for ever.
async fn show(run: &Run, before: &Sums, began: Instant, how: Shown) {
    let bar = match how {
        Shown::Never => return std::future::pending().await,
        Shown::Auto if io::stderr().is_terminal() => {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:30} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            Some(bar)
        }
        Shown::Auto | Shown::Lines => None,
    };
    let mut ticks = time::interval(if bar.is_some() { DRAWN } else { LOGGED });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (now, standing) = (run.store().sums(), run.gate().standing());
        let progress = Progress { before, now: &now, took: began.elapsed(), standing: &standing, afoot: afoot(run) };
        let (ended, all) = progress.files();
        match &bar {
            Some(bar) => {
                bar.set_length(all);
                bar.set_position(ended);
                bar.set_message(progress.line());
            }
            None => tell(io::stderr(), &progress.line()),
        }
    }
}

/// Batches that are under way, and how long they may still take.
fn afoot(run: &Run) -> Option<(Afoot, Option<Duration>)> {
    let afoot = run.afoot()?;
    Some((afoot, afoot.until.map(|until| Duration::from_secs(until.saturating_sub(unix_now())))))
}

/// The first signal ends it in order, the second at once.
async fn told_to_stop(run: &Run, signals: &mut Signals) {
    signals.next().await;
    tell(io::stderr(), "stopping: what was sent is waited for; once more to stop at once");
    run.stop(Stopped::Asked);
    signals.next().await;
}
