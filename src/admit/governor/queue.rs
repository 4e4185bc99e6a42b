//! Who waits, and whose turn it is: within a class, tenants in turn by what they cost; within a tenant, who came first.
//!
//! Deficit round robin (Shreedhar and Varghese): every turn gives a tenant a quantum by its weight, and it goes as soon as it
//! has saved what its next request costs. Whoever has the turn keeps it until it goes, so that the pool saves up for a giant.
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// What a turn is worth for a weight of 1, tokens.
const QUANTUM: u64 = 100;
/// No request costs less, tokens.
const CHEAPEST: u64 = 100;

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// A request that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) tokens: u64,
    pub(super) asked: Duration,
}

#[derive(Debug)]
struct Tenant {
    weight: u32,
    saved: u64,
    jobs: BTreeMap<Ticket, Job>,
}

impl Tenant {
    fn cost(&self) -> u64 {
        self.jobs.first_key_value().map_or(0, |(_, job)| job.tokens.max(CHEAPEST))
    }

    fn a_turn(&self) -> u64 {
        QUANTUM.saturating_mul(u64::from(self.weight))
    }
}

/// All who wait of one class.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tenants: BTreeMap<String, Tenant>,
    /// Tenants who wait; the first has the turn, and can pay.
    turns: VecDeque<String>,
    waiting: usize,
    tokens: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Tokens of all who wait.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// How many of each tenant wait.
    pub(super) fn by_tenant(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tenants.iter().map(|(name, tenant)| (name.as_str(), tenant.jobs.len()))
    }

    /// To the end of its tenant's row.
    pub(super) fn push(&mut self, tenant: &str, weight: u32, ticket: Ticket, job: Job) {
        self.waiting += 1;
        self.tokens = self.tokens.saturating_add(job.tokens);
        let weight = weight.max(1);
        if let Some(known) = self.tenants.get_mut(tenant) {
            known.weight = weight;
            known.jobs.insert(ticket, job);
            return;
        }
        let jobs = BTreeMap::from([(ticket, job)]);
        self.tenants.insert(tenant.to_owned(), Tenant { weight, saved: 0, jobs });
        self.turns.push_back(tenant.to_owned());
        if self.turns.len() == 1 {
            self.begin_turn();
            self.find_turn();
        }
    }

    /// Whose turn it is.
    pub(super) fn head(&self) -> Option<(&str, Ticket, &Job)> {
        let (name, tenant) = self.tenants.get_key_value(self.turns.front()?)?;
        tenant.jobs.first_key_value().map(|(ticket, job)| (name.as_str(), *ticket, job))
    }

    /// The weight of whose turn it is.
    pub(super) fn head_weight(&self) -> u32 {
        let tenant = self.turns.front().and_then(|name| self.tenants.get(name));
        tenant.map_or(1, |tenant| tenant.weight)
    }

    /// Takes the one whose turn it is, who pays.
    pub(super) fn pop(&mut self) -> Option<(Ticket, Job)> {
        let tenant = self.tenants.get_mut(self.turns.front()?)?;
        tenant.saved = tenant.saved.saturating_sub(tenant.cost());
        let name = self.turns.front()?.clone();
        let (_, ticket, _) = self.head()?;
        self.remove(&name, ticket).map(|job| (ticket, job))
    }

    /// Takes somebody out who does not pay.
    pub(super) fn remove(&mut self, tenant: &str, ticket: Ticket) -> Option<Job> {
        let found = self.tenants.get_mut(tenant)?;
        let job = found.jobs.remove(&ticket)?;
        self.waiting -= 1;
        self.tokens = self.tokens.saturating_sub(job.tokens);
        if found.jobs.is_empty() {
            self.tenants.remove(tenant);
            let had_turn = self.turns.front().is_some_and(|name| name == tenant);
            self.turns.retain(|name| name != tenant);
            if had_turn {
                self.begin_turn();
            }
        }
        self.find_turn();
        Some(job)
    }

    fn begin_turn(&mut self) {
        if let Some(tenant) = self.turns.front().and_then(|name| self.tenants.get_mut(name)) {
            tenant.saved = tenant.saved.saturating_add(tenant.a_turn());
        }
    }

    /// Passes the turn on until somebody has it who can pay.
    fn find_turn(&mut self) {
        let can_pay = |queue: &Self| {
            let front = queue.turns.front().and_then(|name| queue.tenants.get(name));
            front.is_none_or(|tenant| tenant.saved >= tenant.cost())
        };
        if can_pay(self) {
            return;
        }
        // Rounds in which nobody could pay are gone through at once.
        let rounds = |tenant: &Tenant| tenant.cost().saturating_sub(tenant.saved).div_ceil(tenant.a_turn());
        let idle = self.tenants.values().map(rounds).min().unwrap_or(0).saturating_sub(1);
        for tenant in self.tenants.values_mut() {
            tenant.saved = tenant.saved.saturating_add(tenant.a_turn().saturating_mul(idle));
        }
        while !can_pay(self) {
            self.turns.rotate_left(1);
            self.begin_turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who goes, of (tenant, weight, tokens) in this order.
    fn order(jobs: &[(&str, u32, u64)]) -> Vec<(String, u64)> {
        let mut queue = Queue::default();
        for (n, (tenant, weight, tokens)) in (0..).zip(jobs) {
            queue.push(tenant, *weight, Ticket(n), Job { tokens: *tokens, asked: Duration::ZERO });
        }
        let next = |queue: &mut Queue| {
            let (tenant, ticket, _) = queue.head().map(|(tenant, ticket, job)| (tenant.to_owned(), ticket, job))?;
            assert_eq!(queue.pop().map(|(popped, _)| popped), Some(ticket));
            Some((tenant, ticket.0))
        };
        let order = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!((queue.len(), queue.tokens(), queue.turns.len(), queue.tenants.len()), (0, 0, 0, 0));
        order
    }

    fn tenants(order: &[(String, u64)]) -> String {
        order.iter().map(|(tenant, _)| tenant.as_str()).collect()
    }

    #[test]
    fn turns() {
        let (a, b) = (("a", 1, 1_000), ("b", 1, 1_000));
        let heavy = ("b", 2, 1_000);
        let giant = ("b", 1, 3_000);
        for (name, jobs, want) in [
            ("one", vec![a, a, a], "aaa"),
            ("in turn", vec![a, a, a, b, b, b], "ababab"),
            ("by weight", vec![a, a, heavy, heavy, heavy, heavy], "abbabb"),
            ("by cost", vec![a, a, a, a, a, a, giant, giant], "aaabaaab"),
            ("weight 0 is 1", vec![("a", 0, 1_000), ("a", 0, 1_000), b, b], "abab"),
            ("nothing costs nothing", vec![("a", 1, 0), ("a", 1, 0), ("b", 1, 0), ("b", 1, 0)], "abab"),
        ] {
            assert_eq!(tenants(&order(&jobs)), want, "{name}");
        }
    }

    #[test]
    fn whoever_leaves_passes_the_turn_on() {
        let mut queue = Queue::default();
        let job = || Job { tokens: 500, asked: Duration::ZERO };
        for (tenant, n) in [("a", 1), ("b", 2), ("c", 3), ("c", 4)] {
            queue.push(tenant, 1, Ticket(n), job());
        }
        assert!(queue.remove("a", Ticket(1)).is_some() && queue.remove("a", Ticket(1)).is_none());
        assert!(queue.remove("c", Ticket(3)).is_some());
        assert_eq!(queue.pop().map(|(ticket, _)| ticket), Some(Ticket(2)));
        assert_eq!(queue.pop().map(|(ticket, _)| ticket), Some(Ticket(4)));
        assert!(queue.pop().is_none() && queue.head().is_none());
    }

    proptest::proptest! {
        #[test]
        fn each_tenant_is_served_in_the_order_it_came(
            jobs in proptest::collection::vec((0..4usize, 0..4u32, 0..5_000u64), 0..60)
        ) {
            let jobs: Vec<_> = jobs.into_iter().map(|(tenant, weight, tokens)| (["a", "b", "c", "d"][tenant], weight, tokens)).collect();
            let order = order(&jobs);
            proptest::prop_assert_eq!(order.len(), jobs.len());
            for tenant in ["a", "b", "c", "d"] {
                let row: Vec<u64> = order.iter().filter(|(of, _)| of == tenant).map(|(_, n)| *n).collect();
                proptest::prop_assert!(row.is_sorted(), "{:?}", row);
            }
        }
    }
}
