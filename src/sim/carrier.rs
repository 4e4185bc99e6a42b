//! THE SIMULATED TELEPHONE PROVIDERS: their REST APIs, and somebody who answers.
//!
//! With `phone.accounts.NAME.api_url` pointed here (Asterisk: with `/ari` at its end), a relay dials, hangs up and transfers as it would
//! at Twilio, SignalWire, Telnyx, Plivo, Vonage, jambonz or Asterisk, without an account: what is asked is checked as the provider
//! checks it, the telephone rings, the voice page is asked or the markup taken, the stream is opened as [`crate::provider`] plays
//! it, and every step is told to the status callbacks, signed. It knows nothing of the relay's own side of these APIs.
//!
//! What becomes of a call, the last four digits of its number say:
//!
//! | number | what happens |
//! |---|---|
//! | `...0001` | busy |
//! | `...0002` | nobody answers; it rings for as long as it may |
//! | `...0003` | turned away |
//! | `...0004` | an answering machine answers |
//! | `...0005` | a person answers, listens and never hangs up |
//! | `...0011` | the request: 401 |
//! | `...0012` | the request: 429, `Retry-After: 7` |
//! | `...0013` | the request: 500 |
//! | `...0014` | the request is answered after `slow_ms`, and the telephone rings at once all the same |
//! | `...0015` | the request is good, but who hangs up is told that there is no such call any more |
//! | others | a person answers after `ring_ms`, hears the reply out, says `says`, and hangs up |
//!
//! Any credential of the right shape is good but those that begin with `bad`. Twilio's, SignalWire's and Plivo's callbacks are signed
//! with the auth token that the request showed, others with [`CarrierConfig::secret`] and [`CarrierConfig::telnyx_key`].
mod news;
mod play;
mod rest;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{self, Body},
    extract::Request,
    http::{Response, StatusCode, header},
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::rest::{Read, What};
use crate::provider::{Ids, Provider};

/// Requests are not longer, bytes.
const MAX_BODY: usize = 256 << 10;
/// Requests and calls that are remembered.
const MAX_LOG: usize = 10_000;

/// `[carrier]` of the simulator's configuration: what telephones and their providers do.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CarrierConfig {
    /// How long a telephone rings before it is answered, ms.
    pub ring_ms: u64,
    /// A person hangs up when nothing has sounded for so long after a reply, ms; 0: never.
    pub quiet_ms: u64,
    /// Every call ends after so long, seconds.
    pub longest_s: u64,
    /// How long a slow request takes, ms.
    pub slow_ms: u64,
    /// What a person says when the first reply is over, or an answering machine at once: a recording.
    pub says: Option<PathBuf>,
    /// Signs Vonage's and jambonz' webhooks, and is what Asterisk shows to the relay (`stream_password`).
    pub secret: String,
    /// Signs Telnyx' webhooks: an Ed25519 key, 32 bytes in base64. The default's public half, for `public_key`, is
    /// `6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=`.
    pub telnyx_key: String,
    /// Where Asterisk's dialplan opens its streams: the relay's `wss://.../phone/ACCOUNT/stream`. None: answered calls go nowhere.
    pub asterisk_stream: Option<String>,
}

impl Default for CarrierConfig {
    fn default() -> Self {
        Self {
            ring_ms: 500,
            quiet_ms: 2_000,
            longest_s: 120,
            slow_ms: 30_000,
            says: None,
            secret: "voxrelay-sim".to_owned(),
            telnyx_key: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_owned(),
            asterisk_stream: None,
        }
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Whose API.
    pub provider: &'static str,
    /// `dial`, `hang_up`, `transfer`, `send_dtmf`, `answer`, `reject`; `refused`: it was no request of the provider's.
    pub act: &'static str,
    /// The call; for `dial` the number; what was refused: the path.
    pub what: String,
    /// The status of the answer.
    pub status: u16,
}

/// A call, as the telephone has known it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Dialled {
    /// The provider's id of it.
    pub call: String,
    /// Who was called, and who seemed to call.
    pub to: String,
    /// See `to`.
    pub from: String,
    /// How long something could be heard, ms.
    pub heard_ms: u64,
    /// Who ended its stream: `caller` (the telephone), `relay`, `provider`; empty: there was none.
    pub ended_by: &'static str,
    /// Why it has no stream.
    pub problem: Option<String>,
    /// Rules of the provider that the relay has broken.
    pub violations: Vec<String>,
    /// Where it was taken to: what was asked for, or what the page says that was named.
    pub transferred: Option<String>,
    /// Callbacks that were taken (status 2xx), by their word.
    pub told: Vec<String>,
    /// Callbacks that were not.
    pub refused: Vec<String>,
    /// It is over.
    pub over: bool,
}

/// What was asked of the providers, and what has become of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CarrierStats {
    /// Every request to their APIs, in this order.
    pub seen: Vec<Seen>,
    /// Every call.
    pub calls: Vec<Dialled>,
}

impl CarrierStats {
    /// How many requests of this kind came.
    pub fn count(&self, act: &str) -> usize {
        self.seen.iter().filter(|seen| seen.act == act).count()
    }
}

/// The providers.
#[derive(Debug)]
pub(super) struct Carrier {
    config: CarrierConfig,
    stats: Mutex<CarrierStats>,
    /// Calls that are not over, by their id.
    live: Mutex<HashMap<String, Live>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// A call that is not over.
#[derive(Debug, Clone)]
struct Live {
    order: Order,
    /// Ends it.
    over: CancellationToken,
}

/// A call to be begun.
#[derive(Debug, Clone)]
struct Order {
    provider: Provider,
    ids: Ids,
    to: String,
    from: String,
    ring: Duration,
    plan: Plan,
    /// Where its steps are told.
    status: Option<String>,
    /// Where it is told who answers; the same as `status` where the provider has one place for both.
    machine: Option<String>,
    /// What its webhooks are signed with.
    key: Option<SecretString>,
}

/// How a call that was answered comes to its stream.
#[derive(Debug, Clone)]
enum Plan {
    /// This markup.
    Markup(String),
    /// The markup at this address.
    Page(String),
    /// This stream, with these parameters and headers.
    Stream {
        url: String,
        parameters: Vec<(String, String)>,
        headers: Vec<(String, SecretString)>,
        codec: Option<String>,
    },
    /// None.
    Nowhere(&'static str),
}

impl Carrier {
    pub(super) fn new(config: CarrierConfig, tracker: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { config, stats: Mutex::default(), live: Mutex::default(), tracker, stop })
    }

    fn stats_now(&self) -> MutexGuard<'_, CarrierStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> CarrierStats {
        self.stats_now().clone()
    }

    /// Changes what is remembered of a call.
    fn note(&self, call: &str, change: impl FnOnce(&mut Dialled)) {
        if let Some(found) = self.stats_now().calls.iter_mut().rev().find(|one| one.call == call) {
            change(found);
        }
    }

    /// Answers a request; `None`: it is at no address of a provider's.
    pub(super) async fn answer(self: &Arc<Self>, request: Request) -> Option<Response<Body>> {
        let (head, body) = request.into_parts();
        let named = rest::provider(head.uri.path())?;
        let body = body::to_bytes(body, MAX_BODY).await.unwrap_or_default();
        let read = Read { method: &head.method, uri: &head.uri, headers: &head.headers, body: &body };
        let asked = match rest::read(&read, &self.config) {
            Ok(asked) => asked,
            Err(no) => {
                let (provider, what) = (named.name(), head.uri.path().to_owned());
                self.see(Seen { provider, act: "refused", what, status: no.status });
                return Some(written(no.status, None, &no.body));
            }
        };
        let (act, what, provider) = (asked.what.act(), asked.what.about(), asked.provider);
        let mut slow = false;
        let (status, retry_after, body) = match asked.what {
            What::Dial(order) => match habit(&order.to) {
                Habit::Refused(status) => (status, (status == 429).then_some(7), rest::no(provider, status, "")),
                habit => {
                    slow = habit == Habit::Slow;
                    let body = rest::dialled(provider, &order.ids);
                    self.begin(*order);
                    (
                        if provider == Provider::ChanWebSocket || provider == Provider::Telnyx { 200 } else { 201 },
                        None,
                        body,
                    )
                }
            },
            What::Answer(order) => {
                self.begin(*order);
                (200, None, json!({"data": {"result": "ok"}}))
            }
            What::HangUp(call) | What::Reject(call) => self.command(provider, &call, |carrier| carrier.end(&call)),
            What::Transfer(call, to) => self.command(provider, &call, |carrier| carrier.take(&call, to)),
            // No channel of ours stands in a Stasis application.
            What::Dtmf(_) if provider == Provider::ChanWebSocket => (409, None, rest::no(provider, 409, "")),
            What::Dtmf(call) => self.command(provider, &call, |_| {}),
        };
        self.see(Seen { provider: provider.name(), act, what, status });
        if slow {
            let _ = self.stop.run_until_cancelled(time::sleep(Duration::from_millis(self.config.slow_ms))).await;
        }
        Some(written(status, retry_after, &body))
    }

    fn see(&self, seen: Seen) {
        let mut stats = self.stats_now();
        if stats.seen.len() < MAX_LOG {
            stats.seen.push(seen);
        }
    }

    /// Does something to a call that is not over.
    fn command(
        self: &Arc<Self>,
        provider: Provider,
        call: &str,
        act: impl FnOnce(&Arc<Self>),
    ) -> (u16, Option<u64>, Value) {
        let is_there = self.live().contains_key(call);
        let gone = self.stats_now().calls.iter().any(|one| one.call == call && one.to.ends_with("0015"));
        if is_there {
            act(self);
        }
        if !is_there || gone {
            let status = if provider == Provider::Telnyx { 422 } else { 404 };
            return (status, None, rest::no(provider, status, ""));
        }
        match provider {
            Provider::Twilio | Provider::SignalWire => (200, None, json!({"sid": call, "status": "completed"})),
            Provider::Telnyx => (200, None, json!({"data": {"result": "ok"}})),
            _ => (204, None, Value::Null),
        }
    }

    fn end(&self, call: &str) {
        if let Some(live) = self.live().get(call) {
            live.over.cancel();
        }
    }

    /// Takes a call elsewhere: to what was asked for, or as the page says that was named instead.
    fn take(self: &Arc<Self>, call: &str, to: String) {
        let Some(live) = self.live().get(call).cloned() else { return };
        let hook: Value = serde_json::from_str(&to).unwrap_or_default();
        let named = hook.get("url").and_then(Value::as_str).or(Some(&*to).filter(|to| to.starts_with("http")));
        let Some(page) = named.map(str::to_owned) else {
            self.note(call, |one| one.transferred = Some(to));
            return live.over.cancel();
        };
        let task = self.clone();
        self.tracker.spawn(async move {
            let Live { order, over } = live;
            let call = play::Call { carrier: &task, order, over, sequence: 0 };
            let found = Box::pin(call.page(&page)).await;
            task.note(&call.order.ids.call, |one| match found {
                Ok(markup) => one.transferred = Some(markup),
                Err(why) => one.refused.push(format!("transfer: {why}")),
            });
            call.over.cancel();
        });
    }

    fn begin(self: &Arc<Self>, order: Order) {
        let over = self.stop.child_token();
        self.live().insert(order.ids.call.clone(), Live { order: order.clone(), over: over.clone() });
        let mut stats = self.stats_now();
        if stats.calls.len() < MAX_LOG {
            let (call, to, from) = (order.ids.call.clone(), order.to.clone(), order.from.clone());
            stats.calls.push(Dialled { call, to, from, ..Dialled::default() });
        }
        drop(stats);
        let task = self.clone();
        self.tracker.spawn(async move {
            let call = order.ids.call.clone();
            Box::pin(play::Call { carrier: &task, order, over, sequence: 0 }.run()).await;
            task.live().remove(&call);
            task.note(&call, |one| one.over = true);
        });
    }
}

fn written(status: u16, retry_after: Option<u64>, body: &Value) -> Response<Body> {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
    }
    response
}

/// What becomes of a call to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Person,
    Patient,
    Machine,
    Busy,
    Away,
    TurnsAway,
    Slow,
    Refused(u16),
}

fn habit(number: &str) -> Habit {
    let last = number.get(number.len().saturating_sub(4)..).unwrap_or_default();
    match last {
        "0001" => Habit::Busy,
        "0002" => Habit::Away,
        "0003" => Habit::TurnsAway,
        "0004" => Habit::Machine,
        "0005" | "0015" => Habit::Patient,
        "0011" => Habit::Refused(401),
        "0012" => Habit::Refused(429),
        "0013" => Habit::Refused(500),
        "0014" => Habit::Slow,
        _ => Habit::Person,
    }
}
