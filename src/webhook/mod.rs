//! Tools that the relay runs itself: a signed request to where the agent says, and its answer for the model.
//!
//! Stands beside a call: [`crate::call::driver`] hands a tool call over and gets its result, always exactly one, within the tool's
//! time. What else can run a tool joins in as a [`Runner`] ([`Hooks::add`]): the expert ([`crate::text::expert`]). Follows no redirect, uses no proxy, dials no private address unless that was allowed ([`guard`]), and tells the model
//! neither URLs nor secrets nor what a failed answer said. What a tool is and when it runs is decided in [`crate::call::core`].
mod answer;
pub mod guard;
mod request;
mod runner;
mod sign;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{self, Instant},
};
use tracing::Instrument as _;

pub use self::runner::{Job, Ran, Runner};
use self::{
    request::{Hook, Hooked},
    runner::failure,
};
use crate::{config::AgentConfig, net::tls, observe::fact::Fact};

/// Tools of one call that run at once; more wait, within their time.
const AT_ONCE: usize = 4;
/// A connection that takes longer is none.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection that nobody uses is kept so long.
const KEPT: Duration = Duration::from_secs(30);

/// What all calls share: connections.
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// Dials public addresses only.
    public: reqwest::Client,
    /// Dials any.
    any: reqwest::Client,
}

impl Webhooks {
    /// With the certificates that the relay trusts.
    ///
    /// # Errors
    /// When the library cannot be set up.
    pub fn new() -> Result<Self, String> {
        let tls = tls::client()?;
        let client = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                // A proxy would dial for us, past the guard.
                .no_proxy()
                .referer(false)
                .connect_timeout(CONNECT_WITHIN)
                .pool_idle_timeout(KEPT)
                .user_agent(concat!("voxrelay/", env!("CARGO_PKG_VERSION")))
        };
        let public = client().dns_resolver(Arc::new(guard::Public)).build().map_err(|e| e.to_string())?;
        Ok(Self { public, any: client().build().map_err(|e| e.to_string())? })
    }

    /// Those of an agent, for one call.
    pub fn of(&self, agent: &AgentConfig, whose: &Whose) -> Hooks {
        let tools = agent.tools.iter().filter_map(|tool| {
            let http = tool.http.as_ref()?;
            let client = if http.allow_private { &self.any } else { &self.public };
            let hook = Hook::new(&tool.name, http, client.clone())?;
            Some((tool.name.clone(), Arc::new(Hooked { hook, whose: whose.clone() }) as Arc<dyn Runner>))
        });
        Hooks { tools: tools.collect(), ..Hooks::none() }
    }
}

/// Who a tool is run for, as it is told.
#[derive(Debug, Clone)]
pub struct Whose {
    /// The call's id.
    pub call: String,
    /// The agent's name.
    pub agent: String,
    /// Who pays.
    pub tenant: String,
    /// The end user, by the tenant's own name for them.
    pub user: Option<String>,
}

/// A result for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The tool call that it answers.
    pub call_id: String,
    /// JSON, or text.
    pub output: String,
}

/// One call's tools, and those of them that run. Dropped, it runs none any more.
#[derive(Debug)]
pub struct Hooks {
    tools: BTreeMap<String, Arc<dyn Runner>>,
    line: Arc<Semaphore>,
    running: JoinSet<Done>,
    /// How each of them is stopped.
    stops: BTreeMap<String, AbortHandle>,
    /// Calls of tools that are not there, or not any more.
    unknown: Vec<Done>,
}

impl Hooks {
    /// For a call whose tools are all its client's.
    pub fn none() -> Self {
        Self {
            tools: BTreeMap::new(),
            line: Arc::new(Semaphore::new(AT_ONCE)),
            running: JoinSet::new(),
            stops: BTreeMap::new(),
            unknown: Vec::new(),
        }
    }

    /// Another tool, by its name.
    pub fn add(&mut self, name: &str, runner: Arc<dyn Runner>) {
        self.tools.insert(name.to_owned(), runner);
    }

    /// Runs a tool. `dialogue`: the last turns of the conversation, for one that is told them.
    pub fn run(&mut self, call_id: String, name: &str, arguments: String, dialogue: impl FnOnce(usize) -> String) {
        let Some(runner) = self.tools.get(name).cloned() else {
            let output = failure(&format!("{name} is not available any more"));
            return self.unknown.push(Done { call_id, output });
        };
        let job = Job { call_id: call_id.clone(), arguments, dialogue: dialogue(runner.turns()) };
        let (name, line, id) = (name.to_owned(), self.line.clone(), call_id.clone());
        let task = async move {
            let began = Instant::now();
            let end = began + runner.timeout();
            // It is never closed.
            let Ran { outcome, output } = match time::timeout_at(end, line.acquire()).await {
                Ok(_turn) => runner.run(job, end).await,
                Err(_) => Ran::late(&name),
            };
            Fact::ToolRan { tool: name, outcome: Cow::Borrowed(outcome), took: began.elapsed() }.record();
            Done { call_id: id, output }
        };
        let stop = self.running.spawn(task.in_current_span());
        self.stops.insert(call_id, stop);
    }

    /// Nobody waits for this one any more: it has no result.
    pub fn give_up(&mut self, call_id: &str) {
        if let Some(stop) = self.stops.remove(call_id) {
            stop.abort();
        }
        self.unknown.retain(|done| done.call_id != call_id);
    }

    /// Does something else that has a result for the model.
    pub fn spawn(&mut self, call_id: String, run: impl Future<Output = String> + Send + 'static) {
        let task = async move { Done { call_id, output: run.await } };
        self.running.spawn(task.in_current_span());
    }

    /// One runs, or has come to its end.
    pub fn is_busy(&self) -> bool {
        !self.running.is_empty() || !self.unknown.is_empty()
    }

    /// The next result; waits for ever where none runs.
    pub async fn done(&mut self) -> Done {
        if let Some(done) = self.unknown.pop() {
            return done;
        }
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => {
                    self.stops.remove(&done.call_id);
                    return done;
                }
                Some(Err(error)) if error.is_cancelled() => {}
                // A panic is our bug; the core's own deadline tells the model.
                Some(Err(error)) => tracing::error!(%error, "a tool's task failed"),
                None => std::future::pending().await,
            }
        }
    }

    /// The call is over.
    pub fn stop(&mut self) {
        self.running.abort_all();
        self.stops.clear();
    }
}
