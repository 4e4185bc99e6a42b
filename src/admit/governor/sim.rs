//! A pool against a small model of the service, in virtual time: buckets of part of a minute that reserve when a request
//! comes, correct when it ends, and refuse what does not fit.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{Ask, Asked, Class, Dimension, Heard, Limits, Pool, Reservation, Ticket, View, meter::whole, show::jain};

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// One bucket of the service.
#[derive(Debug)]
struct Bucket {
    dimension: Dimension,
    limit: f64,
    per_second: f64,
    cap: f64,
    level: f64,
    at: f64,
}

impl Bucket {
    fn new(dimension: Dimension, limit: u64, period: f64, burst: f64) -> Self {
        let limit = limit as f64;
        let cap = limit * burst;
        Self { dimension, limit, per_second: limit / period, cap, level: cap, at: 0.0 }
    }

    fn refill(&mut self, now: f64) {
        self.level = (self.level + (now - self.at) * self.per_second).min(self.cap);
        self.at = now;
    }

    fn daily(&self) -> bool {
        matches!(self.dimension, Dimension::RequestsDay | Dimension::TokensDay)
    }

    fn of(&self, tokens: f64) -> f64 {
        if matches!(self.dimension, Dimension::Tokens | Dimension::TokensDay) { tokens } else { 1.0 }
    }
}

#[derive(Debug)]
struct Service {
    buckets: Vec<Bucket>,
    refused: BTreeMap<Dimension, u64>,
}

impl Service {
    /// Takes a request that may use so much, or says what is too little and for how long.
    fn request(&mut self, now: f64, tokens: f64) -> Result<(), (Dimension, f64)> {
        for bucket in &mut self.buckets {
            bucket.refill(now);
            let need = bucket.of(tokens).min(bucket.cap);
            if bucket.level < need {
                *self.refused.entry(bucket.dimension).or_default() += 1;
                return Err((bucket.dimension, (need - bucket.level) / bucket.per_second));
            }
        }
        for bucket in &mut self.buckets {
            bucket.level -= bucket.of(tokens);
        }
        Ok(())
    }

    fn correct(&mut self, now: f64, unused: f64) {
        for bucket in self.buckets.iter_mut().filter(|bucket| bucket.of(2.0) > 1.0) {
            bucket.refill(now);
            bucket.level = (bucket.level + unused).min(bucket.cap);
        }
    }

    /// What its headers say: of the whole limit, whatever it takes at once.
    fn says(&self) -> Vec<Heard> {
        let of = |bucket: &Bucket| Heard::Bucket {
            dimension: bucket.dimension,
            limit: Some(whole(bucket.limit)),
            remaining: Some(whole(bucket.limit - bucket.cap + bucket.level)),
            reset: None,
        };
        self.buckets.iter().filter(|bucket| !bucket.daily()).map(of).collect()
    }
}

#[derive(Debug, Clone)]
struct Job {
    tenant: usize,
    class: Class,
    reserve: u64,
    used: u64,
    lasts: f64,
    came: f64,
}

#[derive(Debug)]
enum Event {
    Comes(Job),
    Arrives(Job, Reservation),
    Ends(Job, Reservation),
    Settled(Job, Reservation),
    Refused(Job, Reservation, Heard),
    Said(Vec<Heard>),
    Cotenant(f64, f64),
    Wake,
}

/// What came of it.
#[derive(Debug, Default)]
struct Figures {
    sent: u64,
    refused: u64,
    used: f64,
    /// When the last request went.
    makespan: f64,
    /// Seconds from asking to going, interactive only.
    admission: Vec<f64>,
    /// Tokens granted by tenant until the first of them had nothing more to do.
    tenants: BTreeMap<usize, f64>,
    /// Moment, reserve and use of each that went.
    went: Vec<(f64, u64, u64)>,
}

impl Figures {
    fn refused_part(&self) -> f64 {
        self.refused as f64 / self.sent as f64
    }

    fn p99(&self) -> f64 {
        let mut sorted = self.admission.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
    }
}

#[derive(Debug)]
struct World {
    pool: Pool,
    service: Service,
    rng: StdRng,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    what: BTreeMap<u64, Event>,
    count: u64,
    wake: Option<Duration>,
    waiting: BTreeMap<Ticket, Job>,
    weights: Vec<u32>,
    /// Whether its replies say what is left.
    says: bool,
    /// Stop counting tenants' shares then.
    shares_until: f64,
    figures: Figures,
}

impl World {
    fn new(seed: u64, limits: Limits, buckets: Vec<Bucket>) -> Self {
        Self {
            pool: Pool::new(limits, Duration::ZERO),
            service: Service { buckets, refused: BTreeMap::new() },
            rng: StdRng::seed_from_u64(seed),
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
            count: 0,
            wake: None,
            waiting: BTreeMap::new(),
            weights: vec![],
            says: true,
            shares_until: f64::MAX,
            figures: Figures::default(),
        }
    }

    fn at(&mut self, at: f64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((s(at), self.count)));
        self.what.insert(self.count, event);
    }

    /// A job of 500 to 3,000 tokens that uses a part of them.
    fn job(&mut self, tenant: usize, class: Class, came: f64) -> Job {
        let reserve = self.rng.random_range(500..3_000);
        let used = reserve * self.rng.random_range(30..100) / 100;
        Job { tenant, class, reserve, used, lasts: self.rng.random_range(0.5..4.0), came }
    }

    fn network(&mut self) -> f64 {
        self.rng.random_range(0.010..0.030)
    }

    fn goes(&mut self, now: f64, job: Job, reservation: Reservation) {
        self.figures.makespan = now;
        self.figures.went.push((now, job.reserve, job.used));
        if now < self.shares_until {
            *self.figures.tenants.entry(job.tenant).or_default() += job.reserve as f64;
        }
        if job.class == Class::Interactive {
            self.figures.admission.push(now - job.came);
        }
        let arrives = now + self.network();
        self.at(arrives, Event::Arrives(job, reservation));
    }

    fn run(&mut self, until: f64) -> View {
        let mut last = Duration::ZERO;
        while self.events.peek().is_some_and(|Reverse((at, _))| *at <= s(until)) {
            let Some(Reverse((at, id))) = self.events.pop() else { break };
            let (now, event) = (at.as_secs_f64(), self.what.remove(&id).unwrap());
            last = at;
            self.handle(at, now, event);
            for (ticket, answer) in self.pool.poll(at) {
                let job = self.waiting.remove(&ticket).unwrap();
                self.goes(now, job, answer.expect("nobody gives up here"));
            }
            let next = self.pool.next(at);
            assert!(next != Some(at), "poll has done all there is to do at {at:?}");
            if let Some(next) = next
                && self.wake.is_none_or(|wake| next < wake || wake <= at)
            {
                self.wake = Some(next);
                self.at(next.as_secs_f64(), Event::Wake);
            }
        }
        self.pool.view(last)
    }

    fn handle(&mut self, at: Duration, now: f64, event: Event) {
        match event {
            Event::Comes(job) => {
                let tenant = format!("tenant-{}", job.tenant);
                let weight = self.weights.get(job.tenant).copied().unwrap_or(1);
                let until = Duration::from_secs(10_000_000);
                let ask = Ask { tenant: &tenant, weight, class: job.class, tokens: job.reserve, until };
                match self.pool.ask(at, ask) {
                    Asked::Admitted(reservation) => self.goes(now, job, reservation),
                    Asked::Waits(ticket, _) => drop(self.waiting.insert(ticket, job)),
                    Asked::Refused(reason) => panic!("{reason}"),
                }
            }
            Event::Arrives(job, reservation) => {
                self.figures.sent += 1;
                let back = now + self.network();
                match self.service.request(now, job.reserve as f64) {
                    Ok(()) => {
                        if self.says {
                            self.at(back, Event::Said(self.service.says()));
                        }
                        self.at(now + job.lasts, Event::Ends(job, reservation));
                    }
                    Err((dimension, wait)) => {
                        self.figures.refused += 1;
                        let heard = Heard::Limited { dimension: Some(dimension), wait: Some(s(wait)) };
                        self.at(back, Event::Refused(job, reservation, heard));
                    }
                }
            }
            Event::Ends(job, reservation) => {
                self.figures.used += job.used as f64;
                self.service.correct(now, (job.reserve - job.used) as f64);
                let back = now + self.network();
                self.at(back, Event::Settled(job, reservation));
            }
            Event::Settled(job, reservation) => self.pool.settle(at, reservation, job.used),
            Event::Refused(job, reservation, heard) => {
                self.pool.release(at, reservation);
                self.pool.heard(at, heard);
                self.at(now, Event::Comes(job));
            }
            Event::Said(all) => all.into_iter().for_each(|heard| self.pool.heard(at, heard)),
            Event::Cotenant(every, tokens) => {
                let taken = self.service.request(now, tokens);
                if let Err((dimension, _)) = taken {
                    *self.service.refused.entry(dimension).or_default() -= 1;
                }
                self.at(now + every, Event::Cotenant(every, tokens));
            }
            Event::Wake => {}
        }
    }
}

const TPM: u64 = 2_000_000;
const RPM: u64 = 10_000;

fn limits(burst: f64) -> Limits {
    Limits { requests: Some(RPM), tokens: Some(TPM), burst: s(60.0 * burst), ..Limits::default() }
}

fn minute(burst: f64) -> Vec<Bucket> {
    vec![Bucket::new(Dimension::Requests, RPM, 60.0, burst), Bucket::new(Dimension::Tokens, TPM, 60.0, burst)]
}

/// A heap of batch jobs; returns the world and the seconds that it takes at the rate that is governed to.
fn heap(seed: u64, burst: f64, jobs: usize, tenants: usize) -> (World, f64) {
    let mut world = World::new(seed, limits(burst.min(0.1)), minute(burst));
    let mut used = 0.0;
    for n in 0..jobs {
        let job = world.job(n % tenants, Class::Batch, 0.0);
        used += job.used as f64;
        world.at(0.0, Event::Comes(job));
    }
    (world, used / (TPM as f64 * 0.9 / 60.0))
}

#[test]
fn a_heap_of_work_takes_what_it_must_at_every_burst_of_the_service() {
    for (seed, burst) in [(1, 1.0 / 60.0), (2, 0.1), (3, 1.0)] {
        let (mut world, ideal) = heap(seed, burst, 12_000, 5);
        world.run(1e6);
        let figures = &world.figures;
        let over = figures.makespan / ideal;
        let utilisation = figures.used / (TPM as f64 * 0.9 / 60.0 * figures.makespan);
        println!(
            "burst {burst:.3}: {} sent, {} refused, makespan {over:.3} x ideal ({ideal:.0} s), utilisation {utilisation:.3}",
            figures.sent, figures.refused
        );
        assert!(figures.refused_part() <= 0.001, "{burst}: {:?}", world.service.refused);
        assert!(over <= 1.10 && utilisation >= 0.92, "{burst}: {over} {utilisation}");
        assert!(world.pool.view(s(1e6)).dimensions.iter().all(|shown| shown.reserved == 0));
    }
}

#[test]
fn a_burst_that_is_larger_than_the_services_is_paid_for_once() {
    let (mut world, ideal) = heap(15, 1.0 / 60.0, 12_000, 5);
    world.pool = Pool::new(limits(0.1), Duration::ZERO);
    world.run(1e6);
    let over = world.figures.makespan / ideal;
    println!(
        "burst 0.1 at a service of 1/60: {:.2} % refused, makespan {over:.3}",
        world.figures.refused_part() * 100.0
    );
    assert!(world.figures.refused_part() <= 0.01 && over <= 1.10, "{over}");
}

#[test]
fn somebody_whom_we_cannot_see_costs_few_refusals() {
    let cases = [
        (4, 1.0 / 60.0, true),
        (5, 0.1, true),
        (6, 1.0, true),
        (12, 1.0 / 60.0, false),
        (13, 0.1, false),
        (14, 1.0, false),
    ];
    for (seed, burst, says) in cases {
        let (mut world, _) = heap(seed, burst, 12_000, 3);
        world.says = says;
        for bucket in &mut world.service.buckets {
            bucket.level = bucket.level.min(bucket.limit * 0.1); // others were here before us
        }
        let every = 0.05;
        world.at(0.0, Event::Cotenant(every, TPM as f64 * 0.3 / 60.0 * every));
        world.run(420.0);
        let figures = &world.figures;
        let utilisation = figures.used / (TPM as f64 * 0.7 / 60.0 * figures.makespan);
        println!(
            "hidden 30 %, burst {burst:.3}, says {says}: {} sent, {:.2} % refused, {utilisation:.3} of what is left",
            figures.sent,
            figures.refused_part() * 100.0
        );
        assert!(figures.refused_part() <= 0.02, "{burst}: {}", figures.refused_part());
        assert!(utilisation >= 0.85, "{burst}: {utilisation}");
    }
}

#[test]
fn tenants_share_by_weight() {
    for (seed, weights) in [(7, vec![1, 1, 1, 1, 1, 1, 1, 1]), (8, vec![1, 2, 3, 0])] {
        let mut world = World::new(seed, limits(0.1), minute(0.1));
        // The first tenant has ten times as much to do, in jobs that are larger.
        for n in 0..weights.len() * 1_000 {
            let mut job = world.job(n % weights.len(), Class::Batch, 0.0);
            if job.tenant == 0 {
                (job.reserve, job.used) = (job.reserve * 10, job.used * 10);
            }
            world.at(0.0, Event::Comes(job));
        }
        world.shares_until = 60.0;
        world.weights = weights.clone();
        let view = world.run(60.0);
        let weight = |tenant: &usize| f64::from(weights[*tenant].max(1));
        let index = jain(world.figures.tenants.iter().map(|(tenant, tokens)| tokens / weight(tenant)));
        println!("weights {weights:?}: Jain {index:.4}, in the view {:.4}", view.fairness);
        assert!(index >= 0.98 && view.fairness >= 0.98, "{index} {:?}", world.figures.tenants);
        assert_eq!(world.figures.tenants.len(), weights.len());
    }
}

#[test]
fn who_waits_on_the_line_does_not_wait_behind_a_heap_of_batch() {
    // Mean time between them, at random: a quarter and two thirds of the rate.
    for (seed, mean) in [(9, 0.2), (16, 0.088)] {
        let (mut world, _) = heap(seed, 0.1, 10_000, 4);
        let mut at = 5.0;
        while at < 185.0 {
            let job = world.job(100, Class::Interactive, at);
            world.at(at, Event::Comes(job));
            at += -world.rng.random_range(1e-9..1.0f64).ln() * mean;
        }
        let view = world.run(200.0);
        let (p99, asked) = (world.figures.p99(), world.figures.admission.len());
        let batch = world.figures.went.len() - asked;
        println!(
            "interactive: {asked} asked, p99 {:.1} ms; {batch} of batch went; {} refused",
            p99 * 1e3,
            world.figures.refused
        );
        assert!(asked > 800 && batch > 1_000 && view.waiting.iter().all(|waiting| waiting.class == Class::Batch));
        assert!(p99 <= 0.050, "{p99}");
        assert!(world.figures.refused_part() <= 0.001);
    }
}

#[test]
fn a_virtual_day_is_never_over_in_any_24_hours() {
    let (rpd, tpd) = (2_000, 2_400_000);
    for (seed, limits, most) in [
        (10, Limits { requests_day: Some(rpd), ..limits(0.1) }, (rpd, u64::MAX)),
        (11, Limits { tokens_day: Some(tpd), ..limits(0.1) }, (u64::MAX, tpd)),
    ] {
        let mut world = World::new(seed, limits, minute(0.1));
        // Two days of work, most of it by day, more than may be done.
        for hour in 0..48u32 {
            for _ in 0..if (8..20).contains(&(hour % 24)) { 300 } else { 30 } {
                let came = f64::from(hour) * 3_600.0 + world.rng.random_range(0.0..3_600.0);
                let job = world.job(0, Class::Interactive, came);
                world.at(came, Event::Comes(job));
            }
        }
        world.run(48.0 * 3_600.0);
        let went = &world.figures.went;
        let (mut worst, mut from, mut sum) = ((0, 0), 0, 0);
        for (to, (at, _, used)) in went.iter().enumerate() {
            sum += used;
            while went[from].0 <= at - 86_400.0 {
                sum -= went[from].2;
                from += 1;
            }
            worst = (worst.0.max(to as u64 + 1 - from as u64), worst.1.max(sum));
        }
        println!("a day: at most {} requests and {} tokens used in any 24 hours of {most:?}", worst.0, worst.1);
        let (requests, tokens) = (most.0 / 10 * 9, most.1 / 10 * 9);
        assert!(worst.0 <= requests && worst.1 <= tokens, "{worst:?}");
        assert!(worst.0 >= requests / 100 * 95 || worst.1 >= tokens / 100 * 95, "{worst:?}");
    }
}
