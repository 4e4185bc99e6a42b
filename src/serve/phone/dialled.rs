//! Calls that we began, from the request to the end: what each of them is doing.
//!
//! News comes from three sides, in any order: the provider's answer and callbacks, the voice page and the stream, and whoever asked for
//! the call. A call only goes forward, and ends once. Owns no socket, task or clock: times are arguments; what has to be done besides
//! comes back as [`Loose`] ends. `R`: what is held for a call until its stream takes it.
use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

use super::tickets::Slot;
use crate::{
    admit::Principal,
    phone::{Ending, Incoming, Machine, Progress, Status},
};

/// Calls that are remembered.
const MOST: usize = 10_000;
/// One that is over is remembered for so long.
const KEPT: Duration = Duration::from_secs(3_600);
/// Beyond the ringing: for the provider to begin it, and to tell that nobody has answered.
pub(super) const MARGIN: Duration = Duration::from_secs(30);
/// A call that was answered has its stream within this; providers listen for machines first.
pub(super) const JOINS_WITHIN: Duration = Duration::from_secs(60);

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Queued,
    Ringing,
    Answered,
    Streaming,
    Ended,
}

/// Who has ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Who was called.
    Callee,
    /// Whoever asked for the call.
    Tenant,
    /// The agent, a limit, or a fault here.
    Relay,
    /// The provider.
    Provider,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Callee => "callee",
            Self::Tenant => "tenant",
            Self::Relay => "relay",
            Self::Provider => "provider",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) reason: &'static str,
    pub(super) by: By,
    /// In words, where there is more to say.
    pub(super) message: Option<String>,
}

impl Ended {
    pub(super) fn new(reason: &'static str, by: By) -> Self {
        Self { reason, by, message: None }
    }

    pub(super) fn saying(self, message: String) -> Self {
        Self { message: Some(message), ..self }
    }

    fn told(ending: Ending) -> Self {
        let by = match ending {
            Ending::Completed | Ending::Busy | Ending::NoAnswer | Ending::Rejected => By::Callee,
            Ending::Canceled | Ending::Failed => By::Provider,
        };
        Self::new(ending.name(), by)
    }
}

/// A call that was asked for.
#[derive(Debug)]
pub(super) struct Order<R> {
    /// `dial_...`
    pub(super) id: String,
    /// What its reference is kept as.
    pub(super) reference: Slot,
    pub(super) account: String,
    pub(super) agent: String,
    pub(super) to: String,
    pub(super) from: String,
    pub(super) params: std::collections::BTreeMap<String, String>,
    pub(super) ring: Duration,
    /// Who pays, and for whom.
    pub(super) who: Principal,
    /// Our id of the call that it will be.
    pub(super) call: String,
    /// Its line, until its stream takes it.
    pub(super) reserved: Option<R>,
    /// When it was asked for, Unix seconds.
    pub(super) unix: u64,
}

#[derive(Debug)]
struct Dialled<R> {
    order: Order<R>,
    stage: Stage,
    /// The provider's id of it, and whether that is the call's own: some requests have ids, too.
    provider: Option<String>,
    is_its_own: bool,
    machine: Option<Machine>,
    /// Its stream's token.
    slot: Option<Slot>,
    /// A stream that never comes is waited for until then.
    deadline: Instant,
    answered: Option<Instant>,
    ended: Option<(Ended, Instant)>,
    /// It has had a stream.
    streamed: bool,
    /// The provider says that it is over, while its stream still stands.
    told: Option<Ending>,
    /// It was given up while its stream still stood.
    given_up: Option<Ended>,
    told_s: Option<u64>,
    news: Arc<Notify>,
}

/// What is to be done after something has become of a call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Loose {
    /// This token is good no longer.
    pub(super) withdraw: Option<Slot>,
    /// The provider is to end this call of its.
    pub(super) hang_up: Option<String>,
    /// The provider has no such call any more: this one of ours, and its tenant's, is to end.
    pub(super) ends: Option<(String, String)>,
    /// This call of ours, and its tenant's, is to be told who or what has answered: it does not know yet.
    pub(super) found: Option<(String, String, Machine)>,
}

/// What a stream finds of its call.
#[derive(Debug)]
pub(super) struct Joined<R> {
    pub(super) call: String,
    pub(super) reserved: R,
    pub(super) machine: Option<Machine>,
}

/// What the voice page finds of a call.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) id: String,
    pub(super) call: Incoming,
    pub(super) agent: String,
    pub(super) who: Principal,
    /// An earlier answer's token, which is good no longer.
    pub(super) withdraw: Option<Slot>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Book<R> {
    all: HashMap<String, Dialled<R>>,
    references: HashMap<Slot, String>,
    /// By account and the provider's id.
    calls: HashMap<(String, String), String>,
}

impl<R> Default for Book<R> {
    fn default() -> Self {
        Self { all: HashMap::new(), references: HashMap::new(), calls: HashMap::new() }
    }
}

impl<R> Book<R> {
    /// Keeps a call that is about to be asked for, with its stream's token; `false`: there are too many.
    pub(super) fn place(&mut self, order: Order<R>, slot: Option<Slot>, now: Instant) -> bool {
        if self.all.len() >= MOST {
            let Self { all, references, calls } = self;
            all.retain(|_, one| one.ended.as_ref().is_none_or(|(_, at)| now < *at + KEPT));
            references.retain(|_, id| all.contains_key(id));
            calls.retain(|_, id| all.contains_key(id));
        }
        if self.all.len() >= MOST {
            return false;
        }
        let (id, deadline) = (order.id.clone(), now + order.ring + MARGIN);
        self.references.insert(order.reference, id.clone());
        let one = Dialled {
            order,
            stage: Stage::Queued,
            provider: None,
            is_its_own: false,
            machine: None,
            slot,
            deadline,
            answered: None,
            ended: None,
            streamed: false,
            told: None,
            given_up: None,
            told_s: None,
            news: Arc::default(),
        };
        self.all.insert(id, one);
        true
    }

    /// The provider has begun it, and calls it so.
    pub(super) fn begun(&mut self, id: &str, call: &str) -> Loose {
        let Some(one) = self.all.get_mut(id) else { return Loose::default() };
        if !one.is_its_own {
            one.provider = Some(call.to_owned());
        }
        self.calls.insert((one.order.account.clone(), call.to_owned()), id.to_owned());
        // Somebody has hung up before there was a call to hang up.
        let hang_up = one.ended.is_some().then(|| call.to_owned());
        Loose { hang_up, ..Loose::default() }
    }

    /// The provider's news.
    pub(super) fn hear(&mut self, account: &str, status: &Status, now: Instant) -> Loose {
        let by_reference = status.dial.as_deref().and_then(|text| self.references.get(&Slot::of(text)));
        let named = |call: &str| self.calls.get(&(account.to_owned(), call.to_owned()));
        let by_call = || named(&status.call).or_else(|| status.asked_as.as_deref().and_then(named));
        let Some(id) = by_reference.or_else(by_call).cloned() else { return Loose::default() };
        let Some(one) = self.all.get_mut(&id).filter(|one| one.order.account == account) else {
            return Loose::default();
        };
        // A stream may be a leg with an id of its own.
        let of_stream =
            matches!(status.progress, Progress::StreamStarted | Progress::StreamEnded(_) | Progress::Other(_));
        if !of_stream && !one.is_its_own && (one.provider.is_none() || status.asked_as.is_some()) {
            one.is_its_own = status.asked_as.is_some();
            one.provider = Some(status.call.clone());
            self.calls.insert((account.to_owned(), status.call.clone()), id);
        }
        let over = one.ended.is_some();
        let given_up = one.ended.as_ref().is_some_and(|(ended, _)| ended.by != By::Callee);
        match &status.progress {
            Progress::Ended(_) if over => one.told_s = one.told_s.or(status.duration_s),
            Progress::Ended(ending) => {
                one.told_s = status.duration_s;
                if one.stage == Stage::Streaming {
                    one.told = Some(*ending);
                    let ends = Some((one.order.call.clone(), one.order.who.tenant_id().to_owned()));
                    return Loose { ends, ..Loose::default() };
                }
                return one.end(Ended::told(*ending), now);
            }
            // It was given up here, and is there all the same.
            Progress::Queued | Progress::Ringing | Progress::Answered if given_up => {
                return Loose { hang_up: Some(status.call.clone()), ..Loose::default() };
            }
            Progress::Ringing => one.forward(Stage::Ringing),
            Progress::Answered => one.answer(now),
            Progress::Machine(who) => {
                let is_new = one.machine.replace(*who) != Some(*who);
                one.answer(now);
                if is_new && one.stage == Stage::Streaming {
                    let found = Some((one.order.call.clone(), one.order.who.tenant_id().to_owned(), *who));
                    return Loose { found, ..Loose::default() };
                }
            }
            Progress::Queued | Progress::StreamStarted | Progress::StreamEnded(_) | Progress::Other(_) => {}
        }
        Loose::default()
    }

    /// The voice page is asked for a call with this reference. `None`: there is none that waits for its stream.
    pub(super) fn asks(&mut self, account: &str, call: &Incoming, now: Instant) -> Option<Asking> {
        let id = self.references.get(&Slot::of(call.dial.as_deref()?))?.clone();
        let one = self.all.get_mut(&id).filter(|one| one.order.account == account && one.stage < Stage::Streaming)?;
        // A reference is one call's, however often its provider asks.
        let other = one.is_its_own && one.provider.as_ref() != Some(&call.call);
        if now >= one.deadline || other {
            return None;
        }
        (one.provider, one.is_its_own) = (Some(call.call.clone()), true);
        self.calls.insert((account.to_owned(), call.call.clone()), id.clone());
        one.machine = call.machine.or(one.machine);
        one.answer(now);
        let order = &one.order;
        let call = Incoming {
            machine: one.machine,
            from: Some(order.from.clone()),
            to: Some(order.to.clone()),
            custom: order.params.clone(),
            ..call.clone()
        };
        let withdraw = one.slot.take();
        Some(Asking { id, call, agent: order.agent.clone(), who: order.who.clone(), withdraw })
    }

    /// The voice page has given out a token for its stream.
    pub(super) fn invited(&mut self, id: &str, slot: Slot) {
        if let Some(one) = self.all.get_mut(id) {
            one.slot = Some(slot);
        }
    }

    /// It was never begun: nobody is told of it.
    pub(super) fn forget(&mut self, id: &str) {
        if let Some(one) = self.all.remove(id) {
            self.references.remove(&one.order.reference);
            self.calls.retain(|_, known| known != id);
        }
    }

    /// Its stream is there. `None`: it is over already.
    pub(super) fn joins(&mut self, id: &str, now: Instant) -> Option<Joined<R>> {
        let one = self.all.get_mut(id).filter(|one| one.stage < Stage::Streaming)?;
        let reserved = one.order.reserved.take()?;
        one.answer(now);
        one.forward(Stage::Streaming);
        one.streamed = true;
        Some(Joined { call: one.order.call.clone(), reserved, machine: one.machine })
    }

    /// Its stream is over; the provider's id of the call.
    pub(super) fn left(&mut self, id: &str, ended: Ended, now: Instant) -> Option<String> {
        let one = self.all.get_mut(id)?;
        // What was ended here because of it has another cause.
        let told = one.told.filter(|_| ended.by == By::Tenant).map(Ended::told);
        let ended = one.given_up.take().or(told).unwrap_or(ended);
        one.end(ended, now);
        one.provider.clone()
    }

    /// It is given up. `None`: there is no such call, or it is over.
    pub(super) fn give_up(&mut self, id: &str, ended: Ended, now: Instant) -> Option<Loose> {
        let one = self.all.get_mut(id).filter(|one| one.ended.is_none())?;
        let hang_up = one.provider.clone();
        let ends =
            (one.stage == Stage::Streaming).then(|| (one.order.call.clone(), one.order.who.tenant_id().to_owned()));
        // A call that streams is over when its stream is.
        let loose = if ends.is_some() {
            one.given_up = Some(ended);
            Loose::default()
        } else {
            one.end(ended, now)
        };
        Some(Loose { hang_up, ends, ..loose })
    }

    /// The same, for its tenant.
    pub(super) fn hang_up(&mut self, id: &str, tenant: &str, now: Instant) -> Option<Loose> {
        let one = self.all.get(id).filter(|one| one.order.who.tenant_id() == tenant && one.ended.is_none())?;
        let reason = if one.stage < Stage::Answered { Ending::Canceled } else { Ending::Completed };
        self.give_up(id, Ended::new(reason.name(), By::Tenant), now)
    }

    /// The account of a call.
    pub(super) fn account(&self, id: &str) -> Option<&str> {
        self.all.get(id).map(|one| one.order.account.as_str())
    }

    /// The provider's id of a call, as far as it is known.
    pub(super) fn provider(&self, id: &str) -> Option<&str> {
        self.all.get(id)?.provider.as_deref()
    }

    /// Until when a stream is waited for, and what tells of news; `None`: it is not waited for any more.
    pub(super) fn waits(&self, id: &str) -> Option<(Instant, Arc<Notify>)> {
        let one = self.all.get(id).filter(|one| one.stage < Stage::Streaming)?;
        Some((one.deadline, one.news.clone()))
    }

    /// Its stream has not come in time.
    pub(super) fn expire(&mut self, id: &str, now: Instant) -> Option<Loose> {
        let one = self.all.get(id).filter(|one| one.stage < Stage::Streaming && now >= one.deadline)?;
        let ended = match one.stage {
            Stage::Answered => Ended::new("no_stream", By::Relay),
            _ => Ended::new(Ending::NoAnswer.name(), By::Relay),
        };
        self.give_up(id, ended, now)
    }

    /// As its tenant is told; `None`: it has no such call.
    pub(super) fn shown(&self, id: &str, tenant: &str, now: Instant) -> Option<Value> {
        let one = self.all.get(id).filter(|one| one.order.who.tenant_id() == tenant)?;
        let Order { account, agent, to, from, call, unix, .. } = &one.order;
        let ended = one.ended.as_ref().map(|(ended, _)| ended);
        let until = one.ended.as_ref().map_or(now, |(_, at)| *at);
        let ours = one.answered.map(|at| until.saturating_duration_since(at).as_secs());
        let mut shown = json!({
            "dial": id, "state": one.state(), "call": one.provider, "to": to, "from": from, "account": account,
            "agent": agent, "began_at": unix, "machine": one.machine.map(Machine::name),
            "voice_call": one.streamed.then_some(call),
            "duration_s": one.told_s.or(ours),
        });
        if let (Some(ended), Some(fields)) = (ended, shown.as_object_mut()) {
            fields.insert("reason".to_owned(), json!(ended.reason));
            fields.insert("ended_by".to_owned(), json!(ended.by.name()));
            fields.extend(ended.message.as_ref().map(|text| ("message".to_owned(), json!(text))));
        }
        Some(shown)
    }
}

impl<R> Dialled<R> {
    fn state(&self) -> &'static str {
        match self.stage {
            Stage::Queued => "queued",
            Stage::Ringing => "ringing",
            Stage::Answered if self.machine.is_some_and(|who| who != Machine::Human && who != Machine::Unknown) => {
                "machine"
            }
            Stage::Answered => "answered",
            Stage::Streaming => "streaming",
            Stage::Ended => "ended",
        }
    }

    fn forward(&mut self, stage: Stage) {
        if stage > self.stage {
            self.stage = stage;
            self.news.notify_one();
        }
    }

    fn answer(&mut self, now: Instant) {
        if self.stage < Stage::Answered {
            self.answered = Some(now);
            self.deadline = now + JOINS_WITHIN;
        }
        self.forward(Stage::Answered);
    }

    fn end(&mut self, ended: Ended, now: Instant) -> Loose {
        if self.ended.is_none() {
            self.ended = Some((ended, now));
            self.forward(Stage::Ended);
        }
        let unused = self.order.reserved.take();
        drop(unused);
        Loose { withdraw: self.slot.take(), ..Loose::default() }
    }
}

#[cfg(test)]
mod tests;
