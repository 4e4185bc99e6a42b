//! Calls that run: counted by tenant, and cut when they must end.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::principal::Principal;

/// Why somebody else ends a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// Its credential was revoked, or the key behind it has expired.
    Revoked,
    /// Somebody who may has ended it.
    Ended,
}

/// Why there is no place for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSeat {
    /// The tenant has as many as it may have.
    Full,
    /// There is a call of this id.
    Taken,
}

/// News that wait for a call to hear them; more are dropped.
const NEWS: usize = 8;

/// All calls of this process.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Calls>>);

#[derive(Debug, Default)]
struct Calls {
    running: BTreeMap<String, Running>,
    by_tenant: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Running {
    who: Principal,
    door: &'static str,
    since: Instant,
    cut: watch::Sender<Option<Cut>>,
    rotate: Arc<Notify>,
    news: mpsc::Sender<String>,
}

/// What somebody else wants of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Its end.
    Cut(Cut),
    /// Another session, at the next good moment.
    Rotate,
    /// That its model is told this of the line.
    Tell(String),
}

/// A running call, as the tenant sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Where it came in.
    pub door: &'static str,
    /// The end user, by the tenant's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How long it runs, seconds.
    pub seconds: u64,
}

impl Roster {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more call of this principal, whose tenant may have `most` of them (0: no limit).
    ///
    /// # Errors
    /// When it has as many as it may have, or there is a call of this id.
    pub fn enter(&self, id: &str, who: &Principal, door: &'static str, most: usize) -> Result<Seat, NoSeat> {
        let mut calls = self.calls();
        let tenant = who.tenant_id().to_owned();
        let count = calls.by_tenant.get(&tenant).copied().unwrap_or_default();
        if calls.running.contains_key(id) {
            return Err(NoSeat::Taken);
        }
        if most > 0 && count >= most {
            return Err(NoSeat::Full);
        }
        let (cut, cuts) = watch::channel(None);
        let rotate = Arc::new(Notify::new());
        let (news, heard) = mpsc::channel(NEWS);
        let running = Running { who: who.clone(), door, since: Instant::now(), cut, rotate: rotate.clone(), news };
        calls.running.insert(id.to_owned(), running);
        calls.by_tenant.insert(tenant.clone(), count + 1);
        Ok(Seat { roster: self.clone(), id: id.to_owned(), tenant, cuts, rotate, heard })
    }

    /// Calls of a tenant now.
    pub fn count(&self, tenant: &str) -> usize {
        self.calls().by_tenant.get(tenant).copied().unwrap_or_default()
    }

    /// Calls of a tenant, the oldest first.
    pub fn of(&self, tenant: &str) -> Vec<Shown> {
        let calls = self.calls();
        let own = calls.running.iter().filter(|(_, call)| call.who.tenant_id() == tenant);
        let mut own: Vec<_> = own.collect();
        own.sort_by_key(|(_, call)| call.since);
        let shown = own.into_iter().map(|(id, call)| Shown {
            id: id.clone(),
            door: call.door,
            user: call.who.user().map(str::to_owned),
            seconds: call.since.elapsed().as_secs(),
        });
        shown.collect()
    }

    /// Who speaks for a call.
    pub fn who(&self, id: &str) -> Option<Principal> {
        self.calls().running.get(id).map(|call| call.who.clone())
    }

    /// The call goes on with another credential of its tenant.
    fn renew(&self, id: &str, who: Principal) {
        if let Some(call) = self.calls().running.get_mut(id) {
            call.who = who;
            // One that is good takes the place of one that was revoked.
            call.cut.send_if_modified(|cut| cut.take_if(|cut| *cut == Cut::Revoked).is_some());
        }
    }

    /// Ends a call of this tenant; `false`: there is none of this id.
    pub fn end(&self, id: &str, tenant: &str) -> bool {
        let calls = self.calls();
        let call = calls.running.get(id).filter(|call| call.who.tenant_id() == tenant);
        call.map(|call| call.cut.send_replace(Some(Cut::Ended))).is_some()
    }

    /// A call of this tenant shall have another session; `false`: there is none of this id.
    pub fn rotate(&self, id: &str, tenant: &str) -> bool {
        let calls = self.calls();
        let call = calls.running.get(id).filter(|call| call.who.tenant_id() == tenant);
        call.map(|call| call.rotate.notify_one()).is_some()
    }

    /// The model of a call of this tenant shall know this of the line; `false`: there is none of this id, or it does not listen.
    pub fn tell(&self, id: &str, tenant: &str, news: String) -> bool {
        let calls = self.calls();
        let call = calls.running.get(id).filter(|call| call.who.tenant_id() == tenant);
        call.is_some_and(|call| call.news.try_send(news).is_ok())
    }

    /// Cuts every call whose principal is no longer good. How many.
    pub fn sweep(&self, good: impl Fn(&Principal) -> bool) -> usize {
        let calls = self.calls();
        let bad = calls.running.values().filter(|call| call.cut.borrow().is_none() && !good(&call.who));
        bad.fold(0, |cut, call| {
            call.cut.send_replace(Some(Cut::Revoked));
            cut + 1
        })
    }
}

/// One call's place. Dropping it gives it up.
#[derive(Debug)]
pub struct Seat {
    roster: Roster,
    id: String,
    tenant: String,
    cuts: watch::Receiver<Option<Cut>>,
    rotate: Arc<Notify>,
    heard: mpsc::Receiver<String>,
}

impl Seat {
    /// The call has another id from now on; one that is taken stays with whoever has it.
    pub fn rename(&mut self, id: &str) {
        let mut calls = self.roster.calls();
        if !calls.running.contains_key(id)
            && let Some(call) = calls.running.remove(&self.id)
        {
            calls.running.insert(id.to_owned(), call);
            drop(calls);
            self.id = id.to_owned();
        }
    }

    /// Waits until somebody ends the call.
    pub async fn cut(&mut self) -> Cut {
        cut_of(&mut self.cuts).await
    }

    /// Waits until somebody wants something of the call.
    pub async fn asked(&mut self) -> Asked {
        let Self { cuts, rotate, heard, .. } = self;
        tokio::select! {
            biased;
            cut = cut_of(cuts) => Asked::Cut(cut),
            Some(news) = heard.recv() => Asked::Tell(news),
            () = rotate.notified() => Asked::Rotate,
        }
    }

    /// The call goes on with another credential of its tenant.
    pub fn renew(&self, who: Principal) {
        self.roster.renew(&self.id, who);
    }
}

async fn cut_of(cuts: &mut watch::Receiver<Option<Cut>>) -> Cut {
    let cut = cuts.wait_for(Option::is_some).await.ok().and_then(|cut| *cut);
    match cut {
        Some(cut) => cut,
        // Whoever could cut it is gone.
        None => std::future::pending().await,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut calls = self.roster.calls();
        calls.running.remove(&self.id);
        if let Some(count) = calls.by_tenant.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                calls.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tenants_calls_are_counted_and_cut() {
        let roster = Roster::default();
        let who = Principal::local();
        let mut first = roster.enter("c1", &who, "thin", 2).unwrap();
        let second = roster.enter("c2", &who, "openai", 2).unwrap();
        assert_eq!(roster.enter("c3", &who, "thin", 2).err(), Some(NoSeat::Full));
        assert_eq!(roster.enter("c1", &who, "thin", 0).err(), Some(NoSeat::Taken));
        assert_eq!((roster.count("local"), roster.of("local").len(), roster.of("acme").len()), (2, 2, 0));
        drop(second);
        assert!(roster.enter("c3", &who, "thin", 2).is_ok());
        assert!(!roster.end("c1", "acme"), "not theirs");
        assert!(!roster.end("c9", "local"));
        assert!(roster.end("c1", "local"));
        assert_eq!(first.cut().await, Cut::Ended);
        let mut third = roster.enter("c4", &who, "thin", 0).unwrap();
        assert_eq!((roster.sweep(|_| true), roster.sweep(|_| false), roster.sweep(|_| false)), (0, 1, 0));
        assert_eq!(third.cut().await, Cut::Revoked);
        assert!(roster.rotate("c1", "local") && !roster.rotate("c1", "acme") && !roster.rotate("c9", "local"));
        assert_eq!(first.asked().await, Asked::Cut(Cut::Ended), "an end goes first");
        let mut fourth = roster.enter("c5", &who, "thin", 0).unwrap();
        assert!(roster.rotate("c5", "local"));
        assert_eq!(fourth.asked().await, Asked::Rotate);
        assert!(roster.tell("c5", "local", "a beep".to_owned()));
        assert!(!roster.tell("c5", "acme", String::new()) && !roster.tell("c9", "local", String::new()));
        assert_eq!(fourth.asked().await, Asked::Tell("a beep".to_owned()));
        assert_eq!((0..99).filter(|_| roster.tell("c5", "local", String::new())).count(), NEWS, "it does not listen");
        drop((first, third, fourth));
        assert_eq!(roster.count("local"), 0);
    }
}
