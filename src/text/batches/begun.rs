//! Batches that were begun and are not booked yet: what they may come to counts for the budgets of whoever has begun them, and what they
//! did come to is booked, also where nobody downloads it.
//!
//! Nothing of it is written down here: the service keeps a batch, and its `metadata` says what is needed. Before the first batch of a
//! process at an account is begun, the account's newest are looked through, so that those of an earlier process count, too.
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::Method;
use tokio::{
    sync::{Mutex as Turn, OwnedMutexGuard},
    task::spawn_blocking,
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    Batches, Content, NoBatch, Owned, PAGE,
    books::{Booking, DOOR},
    passing,
};
use crate::{
    admit::{
        Principal,
        budget::{Amount, Begun},
    },
    client::wire::Usage,
    config::USUAL_UPSTREAM,
    text::run::No,
    wall::unix_now,
};

/// Batches that are known at once.
const MOST: usize = 10_000;
/// How many of an account's newest are looked through at the beginning, pages; and how old they may be, seconds: a batch has a day, and
/// some time to be downloaded in.
const PAGES: usize = 10;
const OLDEST: u64 = 3 * 86_400;
/// How often an output is read that breaks off, or has answers that count nothing.
const TRIES: u8 = 3;

/// Those of a process.
#[derive(Debug, Default)]
pub(super) struct Known {
    all: Mutex<BTreeMap<String, Going>>,
    /// Accounts that were looked through; `false`: they are to be again, for what is under way.
    accounts: Turn<HashMap<String, bool>>,
    /// One batch of a tenant is begun after the other.
    turns: Mutex<HashMap<String, Arc<Turn<()>>>>,
}

#[derive(Debug)]
struct Going {
    /// Who pays.
    payer: Principal,
    batch: Owned,
    tries: u8,
    /// What it may come to, and once it has ended what it did, counts as long as this is there.
    counts: Begun,
}

impl Known {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Going>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant's turn to begin one.
    pub(super) async fn turn(&self, tenant: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(tenant.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// There is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.all().len() < MOST
    }

    /// A batch was begun.
    pub(super) fn began(&self, payer: Principal, batch: Owned, counts: Begun) {
        self.all().entry(batch.id.clone()).or_insert(Going { payer, batch, tries: 0, counts });
    }

    /// The tenant's batch that was begun with this.
    pub(super) fn find(&self, tenant: &str, is: impl Fn(&Owned) -> bool) -> Option<Owned> {
        let all = self.all();
        all.values()
            .map(|going| &going.batch)
            .find(|batch| batch.tenant.as_deref() == Some(tenant) && is(batch))
            .cloned()
    }

    fn of(&self, tenant: Option<&str>) -> Vec<(Principal, String)> {
        let all = self.all();
        let wanted = all.values().filter(|going| tenant.is_none_or(|tenant| going.payer.tenant_id() == tenant));
        wanted.map(|going| (going.payer.clone(), going.batch.id.clone())).collect()
    }

    fn forget(&self, id: &str) {
        self.all().remove(id);
    }

    /// It failed once more; whether that was often enough.
    fn failed(&self, id: &str) -> bool {
        self.all().get_mut(id).is_none_or(|going| {
            going.tries += 1;
            going.tries >= TRIES
        })
    }
}

impl Batches {
    /// Looks at batches that run, again and again, and books what nobody has downloaded. Never ends.
    pub async fn keep(self: Arc<Self>) {
        let every = Duration::from_secs(self.texts.config.batch_look_s);
        loop {
            time::sleep(every).await;
            self.look(None).await;
        }
    }

    /// Looks at all of a tenant, or at all there are.
    pub(super) async fn look(&self, tenant: Option<&str>) {
        for (payer, id) in self.known.of(tenant) {
            match self.ask(&payer, Method::GET, &format!("/batches/{id}"), None).await {
                Ok(batch) => {
                    let Some(batch) = Owned::read(&batch) else { continue };
                    self.seen(&batch);
                    if batch.ended {
                        self.settle(&payer, &batch).await;
                    }
                }
                Err(NoBatch::No(No::Told(status, _))) if status == 404 => self.known.forget(&id),
                Err(_) => tracing::debug!(batch = id, "a batch cannot be looked at now"),
            }
        }
    }

    /// A batch as it is now: one that has ended comes to no more than it did.
    pub(super) fn seen(&self, batch: &Owned) {
        let mut all = self.known.all();
        let Some(going) = all.get_mut(&batch.id).filter(|going| batch.ended && !going.batch.ended) else { return };
        going.batch = batch.clone();
        if let Some(used) = &batch.used {
            let used = Amount::of_batch(&self.texts.prices.load(), &batch.model, used);
            // Counted before the other is forgotten.
            going.counts = self.texts.budgets.batch_began(&going.payer, used);
        }
        if batch.output.is_none() {
            all.remove(&batch.id);
        }
    }

    /// Books what is left of a batch that has ended.
    pub(super) async fn settle(&self, payer: &Principal, batch: &Owned) {
        let is_booked = async || Some(self.books.count(&self.texts, batch).await? >= batch.completed);
        let Some(mut booked) = is_booked().await else { return };
        if let Some(output) = batch.output.as_deref().filter(|_| !booked) {
            if let Err(error) = self.read(payer, batch, output).await {
                tracing::info!(batch = batch.id, ?error, "the answers of a batch cannot be read now");
            }
            booked = is_booked().await.unwrap_or_default();
        }
        if booked || batch.output.is_none() || self.known.failed(&batch.id) {
            self.known.forget(&batch.id);
        }
    }

    /// Reads answers that nobody has downloaded.
    async fn read(&self, payer: &Principal, batch: &Owned, output: &str) -> Result<(), NoBatch> {
        let Some(booking) = Booking::new(&self.texts, &self.books, payer, batch, false).await else { return Ok(()) };
        let path = format!("/files/{output}/content");
        let response = self.upstream(payer)?.rest().batch(Method::GET, &path, None, payer, super::LONGEST).await?;
        // Nobody listens, and a process that ends drops this.
        let (to, _) = passing::channel();
        let passing = self.passing(payer, to, CancellationToken::new(), None);
        Content { response, booking: Some(booking) }.pass(passing).await;
        Ok(())
    }

    /// Takes up what an earlier process has begun at this one's account, or what was begun and never answered.
    pub(super) async fn take_up(&self, who: &Principal) {
        let account = who.upstream().unwrap_or(USUAL_UPSTREAM).to_owned();
        let mut accounts = self.known.accounts.lock().await;
        let again = match accounts.get(&account) {
            Some(true) => return,
            before => before.is_some(),
        };
        match self.newest(who, again).await {
            Ok(()) => drop(accounts.insert(account, true)),
            Err(error) => {
                tracing::warn!(account, ?error, "batches of before are not known: budgets count none of them")
            }
        }
    }

    /// Something may have been begun at this one's account that nobody knows of.
    pub(super) async fn take_up_again(&self, who: &Principal) {
        let account = who.upstream().unwrap_or(USUAL_UPSTREAM).to_owned();
        // One that never was is to be looked through anyway, for more than that.
        self.known.accounts.lock().await.entry(account).and_modify(|done| *done = false);
    }

    async fn newest(&self, who: &Principal, again: bool) -> Result<(), NoBatch> {
        let since = unix_now().saturating_sub(OLDEST);
        let ledger = self.texts.ledger.clone();
        // All at once: to ask for one after the other takes long where there are many.
        let booked = spawn_blocking(move || ledger.rows_of(DOOR, since.saturating_mul(1_000))).await;
        let booked = booked.ok().and_then(Result::ok).unwrap_or_default();
        let is_booked = |batch: &Owned| booked.get(&batch.id).is_some_and(|rows| *rows >= batch.completed);
        let mut after = None;
        for _ in 0..PAGES {
            let (page, next) = self.page(who, after.as_deref(), PAGE).await?;
            for batch in page.iter().filter_map(Owned::read) {
                if batch.created_at < since {
                    return Ok(());
                }
                // What has ended since this process began was counted.
                let is_done = batch.ended && (again || is_booked(&batch));
                if self.known.has_room() && !is_done {
                    self.adopt(batch);
                }
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// It counts from now on.
    pub(super) fn adopt(&self, batch: Owned) {
        let tenant = batch.tenant.as_deref();
        let Some(payer) = tenant.and_then(|tenant| self.gate.payer(tenant, batch.key.as_deref())) else { return };
        if batch.ended && batch.output.is_none() {
            return;
        }
        let usage = batch.used.filter(|_| batch.ended).unwrap_or(batch.most);
        let most = Amount::of_batch(&self.texts.prices.load(), &batch.model, &usage);
        let counts = self.texts.budgets.batch_began(&payer, most);
        self.known.began(payer, batch, counts);
    }

    /// Who pays for what this one begins: an end user never does.
    pub(super) fn payer(&self, who: &Principal) -> Principal {
        self.gate.payer(who.tenant_id(), who.key_label().as_deref()).unwrap_or_else(|| who.clone())
    }
}

/// Tokens of which only the sums are known.
pub(super) fn usage_of(input_tokens: u64, output_tokens: u64) -> Usage {
    let total_tokens = input_tokens.saturating_add(output_tokens);
    Usage { input_tokens, output_tokens, total_tokens, ..Usage::default() }
}
