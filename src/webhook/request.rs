//! One tool call at one webhook: what is sent, when it is sent again, and what went wrong.
use std::{error::Error as _, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures_util::future::BoxFuture;
use rand::Rng as _;
use reqwest::{Client, Response, StatusCode, Url, header};
use serde_json::{Value, json};
use tokio::time::{self, Instant};

use super::{
    Job, Ran, Runner, Whose,
    answer::{self, Useless},
    guard::{self, NotPublic},
    sign::sign,
};
use crate::{config::WebhookConfig, upstream::rest::retry_after, wall::unix_now};

/// Before the first further try at least so long, before the second twice as long; and as much again by chance.
const PAUSE: Duration = Duration::from_millis(200);

/// A webhook, ready to be called.
#[derive(Debug)]
pub(super) struct Hook {
    name: String,
    client: Client,
    url: Url,
    key: Vec<u8>,
    headers: HeaderMap,
    timeout: Duration,
    retries: u32,
    max_bytes: usize,
    allow_private: bool,
}

/// The same for one call.
#[derive(Debug)]
pub(super) struct Hooked {
    pub(super) hook: Hook,
    pub(super) whose: Whose,
}

impl Runner for Hooked {
    fn timeout(&self) -> Duration {
        self.hook.timeout
    }

    fn run(&self, job: Job, end: Instant) -> BoxFuture<'_, Ran> {
        let Self { hook, whose } = self;
        Box::pin(async move {
            let asked = Asked::new(whose, &hook.name, &job.call_id, &job.arguments);
            match time::timeout_at(end, hook.run(&asked, end)).await {
                Ok(Ok(output)) => Ran { outcome: "ok", output },
                Ok(Err(failed)) => Ran::failed(failed.outcome(), &failed.told(&hook.name)),
                Err(_) => Ran::late(&hook.name),
            }
        })
    }
}

/// What is asked of it.
#[derive(Debug)]
pub(super) struct Asked {
    /// Names it among all that were ever asked; the same for each try.
    id: String,
    body: String,
}

impl Asked {
    pub(super) fn new(whose: &Whose, tool: &str, call_id: &str, arguments: &str) -> Self {
        let Whose { call, agent, tenant, user } = whose;
        let arguments = serde_json::from_str::<Value>(arguments)
            .ok()
            .filter(Value::is_object)
            .unwrap_or_else(|| Value::String(arguments.to_owned()));
        let mut body = json!({"call": call, "agent": agent, "tenant": tenant, "tool": tool, "call_id": call_id,
            "arguments": arguments});
        if let (Some(user), Some(fields)) = (user, body.as_object_mut()) {
            fields.insert("caller".to_owned(), json!({"user": user}));
        }
        // A `.` parts what is signed, and a service's ids are not ours.
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        Self { id: format!("{call}-{call_id}").chars().map(plain).collect(), body: body.to_string() }
    }
}

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// Its address is none that may be dialled.
    Forbidden,
    /// Nobody was there. Whether it was heard of us.
    Unreachable { heard: bool },
    /// Another status than 2xx, and the wait that it asks for.
    Status(StatusCode, Option<Duration>),
    /// An answer that is of no use.
    Useless(Useless, usize),
}

impl Failed {
    /// For metrics.
    pub(super) fn outcome(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Unreachable { .. } | Self::Useless(Useless::Broken, _) => "unreachable",
            Self::Status(..) => "refused",
            Self::Useless(Useless::TooLarge, _) => "too_large",
            Self::Useless(Useless::Garbled, _) => "garbled",
        }
    }

    /// For the model.
    pub(super) fn told(self, name: &str) -> String {
        match self {
            Self::Forbidden | Self::Unreachable { .. } => format!("{name} could not be reached"),
            Self::Useless(Useless::Broken, _) => format!("the answer of {name} broke off"),
            Self::Status(status, _) => format!("{name} failed with HTTP status {}", status.as_u16()),
            Self::Useless(Useless::TooLarge, most) => {
                format!("the answer of {name} was larger than {most} bytes, and was not taken")
            }
            Self::Useless(Useless::Garbled, _) => format!("the answer of {name} could not be read"),
        }
    }

    /// Another try may do.
    fn is_passing(self) -> bool {
        match self {
            Self::Unreachable { heard } => !heard,
            Self::Status(status, _) => status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error(),
            Self::Forbidden | Self::Useless(..) => false,
        }
    }
}

impl Hook {
    /// `None`: nothing that could be called; such a configuration was refused.
    pub(super) fn new(name: &str, config: &WebhookConfig, client: Client) -> Option<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let mut value = HeaderValue::from_str(value.expose()).ok()?;
            value.set_sensitive(true);
            headers.insert(name.parse::<HeaderName>().ok()?, value);
        }
        Some(Self {
            name: name.to_owned(),
            client,
            url: Url::parse(&config.url).ok()?,
            key: config.key()?,
            headers,
            timeout: Duration::from_secs(config.timeout_s),
            retries: if config.idempotent { config.retries } else { 0 },
            max_bytes: config.max_bytes,
            allow_private: config.allow_private,
        })
    }

    /// The result; no further try is begun that could not be over by `end`.
    async fn run(&self, asked: &Asked, end: Instant) -> Result<String, Failed> {
        let mut tries = 0;
        loop {
            let failed = match self.ask(asked).await {
                Ok(output) => return Ok(output),
                Err(failed) => failed,
            };
            tracing::debug!(tool = self.name, ?failed, tries, "a webhook failed");
            let wait = pause(tries, failed, rand::rng().random_range(0.0..1.0));
            if tries == self.retries || !failed.is_passing() || Instant::now() + wait >= end {
                return Err(failed);
            }
            time::sleep(wait).await;
            tries += 1;
        }
    }

    async fn ask(&self, asked: &Asked) -> Result<String, Failed> {
        // An address in the URL itself is looked up by nobody.
        if !self.allow_private && guard::is_private_host(&self.url) {
            return Err(Failed::Forbidden);
        }
        let timestamp = unix_now();
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", &asked.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", sign(&self.key, &asked.id, timestamp, &asked.body))
            .header("idempotency-key", &asked.id)
            .body(asked.body.clone());
        let response: Response = request.send().await.map_err(|error| why(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failed::Status(status, retry_after(response.headers())));
        }
        answer::read(response, self.max_bytes).await.map_err(|useless| Failed::Useless(useless, self.max_bytes))
    }
}

fn why(error: &reqwest::Error) -> Failed {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<NotPublic>() {
            return Failed::Forbidden;
        }
        source = error.source();
    }
    Failed::Unreachable { heard: !error.is_connect() }
}

/// How long to wait after so many further tries; `dice`: 0 to 1.
fn pause(tries: u32, failed: Failed, dice: f64) -> Duration {
    let asked = if let Failed::Status(_, wait) = failed { wait } else { None };
    let least = PAUSE * 2_u32.saturating_pow(tries);
    asked.unwrap_or_default().max(least + least.mul_f64(dice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_no_shorter_than_what_was_asked_for() {
        let down = Failed::Unreachable { heard: false };
        let (ms, status) = (Duration::from_millis, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!([pause(0, down, 0.0), pause(0, down, 0.5), pause(1, down, 0.0)], [ms(200), ms(300), ms(400)]);
        assert_eq!(pause(0, Failed::Status(status, Some(ms(5_000))), 0.9), ms(5_000));
        assert_eq!(pause(0, Failed::Status(status, Some(ms(1))), 0.5), ms(300));
    }

    #[test]
    fn what_is_asked_is_named_by_what_a_header_can_hold() {
        let whose = Whose { call: "call_1".into(), agent: "a".into(), tenant: "t".into(), user: Some("ann".into()) };
        let asked = Asked::new(&whose, "look_up", "c.1\n", r#"{"order":7}"#);
        assert_eq!(asked.id, "call_1-c_1_");
        let body: Value = serde_json::from_str(&asked.body).unwrap();
        assert_eq!(
            body,
            json!({"call": "call_1", "agent": "a", "tenant": "t", "tool": "look_up", "call_id": "c.1\n",
                "arguments": {"order": 7}, "caller": {"user": "ann"}})
        );
        for raw in ["", "7", "{\"order\":", "[1]"] {
            let asked = Asked::new(&Whose { user: None, ..whose.clone() }, "look_up", "c", raw);
            let body: Value = serde_json::from_str(&asked.body).unwrap();
            assert_eq!((&body["arguments"], body.get("caller")), (&json!(raw), None));
        }
    }
}
