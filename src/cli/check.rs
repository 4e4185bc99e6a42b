//! `voxrelay check`: is the configuration what you think it is, does the service answer, and which of its limits stands in the
//! way?
use std::{io, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tokio::time::{self, Instant};

use super::{Usage, serve, tell};
use crate::{
    admit::{Principal, sources},
    config::{Config, TlsConfig, UpstreamConfig},
    net::{
        tls::{Files, Tls},
        ws::Frame,
    },
    phone::Account,
    upstream::{
        Ended, Event, UpstreamError, Wanted,
        error::plain_code,
        ga,
        limits::{self, Hit},
        open::{Session, Upstream},
    },
};

/// What comes after a reply's end comes within this (43 ms were seen at the service).
const AFTER_REPLY: Duration = Duration::from_secs(1);
/// Longest wait for the reply.
const REPLY: Duration = Duration::from_secs(20);
/// Shortest life of a client secret that the service makes, seconds.
const SHORTEST_LIFE: u64 = 10;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also open a session at the model service
    #[arg(long)]
    dial: bool,
    /// Also ask the service which limits it shows: make a client secret, open a session, and say what was refused, why, and what
    /// helps; of one of the configured `upstreams` with its name. Costs nothing
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    upstream: Option<String>,
    /// With --upstream: also ask for one short reply, which shows the limits on tokens. Costs a few tokens
    #[arg(long, requires = "upstream")]
    spend: bool,
}

/// Prints the effective configuration with secrets redacted, and tries the service when asked to.
///
/// # Errors
/// What is wrong with the configuration, or why there is no session.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let config = serve::load(args.config.as_deref())?;
    tell(io::stdout(), toml::to_string(&config).context("the configuration cannot be printed")?.trim_end());
    if let Some(TlsConfig { cert, key }) = config.server.tls.clone() {
        Tls::load(Files { cert, key }).map_err(|error| Usage(error.to_string()))?;
    }
    sources::sounds(&config).map_err(Usage)?;
    Account::open_all(&config.phone).map_err(Usage)?;
    for doubt in serve::price_doubts(&config)? {
        tell(io::stderr(), &format!("prices: {doubt}"));
    }
    let named = args.upstream.as_deref().is_some_and(|name| !name.is_empty());
    if !named && config.upstream.url.is_none() && config.upstream.api_key.is_none() {
        tell(io::stderr(), "no upstream.url and no key: `serve` will answer with the embedded simulator");
        if args.dial || args.upstream.is_some() {
            let option = if args.dial { "--dial" } else { "--upstream" };
            let message = format!("{option}: there is no service to ask; set OPENAI_API_KEY or upstream.url");
            return Err(Usage(message).into());
        }
    }
    if args.dial {
        let model = config.upstream.model.clone();
        let upstream = Upstream::new(Arc::new(config.upstream.clone())).map_err(Usage)?;
        let began = Instant::now();
        let session = upstream.open(&Wanted::voice(&model), &Principal::operator(), "check").await?;
        let up = format!("session {} of model {model} is up after {} ms", session.id, began.elapsed().as_millis());
        tell(io::stderr(), &up);
        session.socket.close(1000, "", Duration::from_secs(1)).await;
    }
    match args.upstream {
        Some(name) => diagnose(account(&config, &name)?, args.spend).await,
        None => Ok(ExitCode::SUCCESS),
    }
}

fn account(config: &Config, name: &str) -> Result<UpstreamConfig, Usage> {
    if name.is_empty() {
        return Ok(config.upstream.clone());
    }
    let names = || config.upstreams.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = config.upstreams.get(name).cloned();
    found.ok_or_else(|| Usage(format!("--upstream: found `{name}`; configured under [upstreams]: {}", names())))
}

/// Asks the service step by step, each of which may be refused for a reason of its own.
async fn diagnose(config: UpstreamConfig, spend: bool) -> anyhow::Result<ExitCode> {
    let (model, who) = (config.model.clone(), Principal::operator());
    // One try each: a second one would only hide what the first one met.
    let upstream = Upstream::new(Arc::new(UpstreamConfig { attempts: 1, ..config })).map_err(Usage)?;
    let mut good = true;
    let began = Instant::now();
    let body = json!({"expires_after": {"anchor": "created_at", "seconds": SHORTEST_LIFE},
        "session": {"type": "realtime", "model": model}});
    match upstream.rest().mint(&body, &who).await {
        Ok(_) => step("mint", &format!("a client secret after {} ms", began.elapsed().as_millis())),
        // Its life less our margin may be nothing: it was made all the same.
        Err(UpstreamError::Broken(why)) if why.contains("expired already") => step("mint", "a client secret"),
        Err(error) => good &= refused("mint", &error),
    }
    let began = Instant::now();
    match upstream.open(&Wanted::voice(&model), &who, "check").await {
        Ok(session) => {
            let after = began.elapsed().as_millis();
            step("connect", &format!("session {} of model {model} after {after} ms", session.id));
            if spend {
                good &= reply(session, &upstream, &who).await;
            } else {
                step("reply", "not asked for (--spend does; it costs a few tokens and shows the limits on them)");
                session.socket.close(1000, "", Duration::from_secs(1)).await;
            }
        }
        Err(error) => good &= refused("connect", &error),
    }
    for (name, bucket) in upstream.board().buckets() {
        let number = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
        let full = bucket.reset_s.map(|s| format!(", full again in {s} s")).unwrap_or_default();
        step("bucket", &format!("{name}: {} of {} left{full}", number(bucket.remaining), number(bucket.limit)));
    }
    let mut told = Vec::new();
    for Hit { limit, retry_after_ms, .. } in upstream.board().hits(who.tenant_id()) {
        if told.contains(&limit) {
            continue;
        }
        told.push(limit);
        let wait = retry_after_ms.map(|ms| format!(" (it asks for {ms} ms)")).unwrap_or_default();
        step("limit", &format!("{}{wait}: {}", limit.name(), limit.advice()));
    }
    if good {
        step("verdict", "nothing was refused now; what callers of a running relay have hit: GET /v1/limits");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

fn step(name: &str, found: &str) {
    tell(io::stdout(), &format!("{name:8} {found}"));
}

fn refused(name: &str, error: &UpstreamError) -> bool {
    step(name, &format!("refused: {error}"));
    false
}

/// One short reply beside the conversation, and what the service says of its limits after it.
async fn reply(mut session: Session, upstream: &Upstream, who: &Principal) -> bool {
    let ask = json!({"type": "response.create", "response": {"conversation": "none", "output_modalities": ["text"],
        "max_output_tokens": 16, "input": [], "instructions": "Say OK."}});
    session.shape.outgoing(ask.to_string().into(), |text| session.socket.send_text(text));
    let (mut end, mut done) = (Instant::now() + REPLY, None);
    loop {
        let frame = match time::timeout_at(end, session.socket.next()).await {
            Err(_) => break,
            Ok(Ok(Frame::Text(text))) => text,
            Ok(Ok(Frame::Closed { code, reason })) => {
                let error = UpstreamError::closed(code, &reason);
                upstream.board().refused(limits::Source::Close, who.tenant_id(), &error);
                return refused("reply", &error);
            }
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => return refused("reply", &UpstreamError::Broken(error.to_string())),
        };
        session.shape.incoming(frame, |text| {
            let event = ga::decode(&text);
            limits::heard(upstream.board(), who.tenant_id(), &event);
            match event {
                Event::ReplyDone { ended, reason, usage, .. } => {
                    done = Some((ended, reason, usage));
                    end = Instant::now() + AFTER_REPLY;
                }
                Event::Error(error) => done = Some((Ended::Failed, Some(error.code), None)),
                _ => {}
            }
        });
        if matches!(&done, Some((Ended::Failed, ..))) {
            break;
        }
    }
    session.socket.close(1000, "", Duration::from_secs(1)).await;
    match done {
        None => refused("reply", &UpstreamError::Timeout { stage: "answer", after: REPLY }),
        Some((Ended::Failed, reason, _)) => {
            let code = reason.as_deref().map_or("no reason given".to_owned(), plain_code);
            step("reply", &format!("failed: {code}"));
            false
        }
        Some((_, _, usage)) => {
            let tokens = usage.map(|usage| format!(", {} tokens", usage.total_tokens)).unwrap_or_default();
            step("reply", &format!("answered{tokens}"));
            true
        }
    }
}
