//! Tokens that a webhook's answer gives out: each is good for one stream of one call, for a minute.
//!
//! A stream brings nothing else that says whose call it is, so a token is what stands between the network and the service: it cannot be
//! guessed, works once, through its account, and for its call where both sides call that by the same name. Only digests are kept.
//!
//! A process that follows is told of them ([`News`]): the webhook may have been answered here, and the stream go there. Calls that we
//! began stay: they end with the process that knows them.
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    admit::Principal,
    phone::{Incoming, TokenForm},
};

/// Tokens that wait at once; there are more only when somebody plays with webhooks.
const MOST: usize = 1 << 16;

/// Each time that there are so many, those that are too old are forgotten.
const TIDY: usize = 16;

/// A call whose stream is on its way.
#[derive(Debug)]
pub(super) struct Ticket {
    /// The account through which it comes.
    pub(super) account: String,
    /// What the webhook said of it.
    pub(super) call: Incoming,
    /// The agent that answers.
    pub(super) agent: String,
    /// Who pays, and who calls.
    pub(super) who: Principal,
    /// The id of a call that we began.
    pub(super) dial: Option<String>,
}

/// Where something secret is kept: its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(in crate::serve) struct Slot(pub(in crate::serve) [u8; 32]);

impl Slot {
    pub(super) fn of(secret: &str) -> Self {
        Self(digest(&SHA256, secret.as_bytes()).as_ref().try_into().unwrap_or([0; 32]))
    }
}

/// Why a stream has no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoTicket {
    /// It showed none.
    #[error("it shows no token")]
    Absent,
    /// Unknown, used, too late, or through another account: not told apart to anybody.
    #[error("its token is not known, was used, or came too late")]
    Unknown,
    /// It is another call's.
    #[error("its token was made for another call")]
    OtherCall,
}

/// What the process that follows is told of tickets, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::serve) enum News {
    /// One waits.
    Waits(Box<WrittenTicket>),
    /// All that waited were told.
    Told,
    /// One was used.
    Used(Slot),
}

/// A ticket, for another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::serve) struct WrittenTicket {
    slot: Slot,
    /// It is good for so long.
    left: Duration,
    account: String,
    call: Incoming,
    agent: String,
    /// None: nobody was asked.
    tenant: Option<String>,
    user: Option<String>,
}

impl WrittenTicket {
    fn of(slot: Slot, left: Duration, ticket: &Ticket) -> Self {
        let Ticket { account, call, agent, who, dial: _ } = ticket;
        Self {
            slot,
            left,
            account: account.clone(),
            call: call.clone(),
            agent: agent.clone(),
            tenant: who.tenant().map(|tenant| tenant.id.clone()),
            user: who.user().map(str::to_owned),
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(in crate::serve) struct Tickets {
    life: Duration,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    all: HashMap<Slot, (Instant, Ticket)>,
    /// The process that follows.
    heir: Option<mpsc::UnboundedSender<News>>,
}

impl Waiting {
    fn tell(&mut self, news: News) {
        if self.heir.as_ref().is_some_and(|heir| heir.send(news).is_err()) {
            self.heir = None;
        }
    }
}

/// A token that nobody can guess: 122 bits of chance at least.
pub(super) fn token(form: TokenForm) -> String {
    let chance: u128 = rand::rng().random();
    match form {
        TokenForm::Alphanumeric => format!("{chance:032x}"),
        TokenForm::Uuid => {
            // Version 4 (RFC 9562 section 5.4).
            let bits = chance & !(0xF << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
            let hex = format!("{bits:032x}");
            let mut parts = String::new();
            for (at, digit) in hex.chars().enumerate() {
                if matches!(at, 8 | 12 | 16 | 20) {
                    parts.push('-');
                }
                parts.push(digit);
            }
            parts
        }
    }
}

impl Tickets {
    pub(super) fn new(life: Duration) -> Self {
        Self { life, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a ticket for whoever shows the token; `false`: there are too many.
    pub(super) fn put(&self, token: &str, ticket: Ticket) -> bool {
        self.put_for(self.life, token, ticket)
    }

    /// The same for so long.
    pub(super) fn put_for(&self, life: Duration, token: &str, ticket: Ticket) -> bool {
        self.keep(life, Slot::of(token), ticket)
    }

    fn keep(&self, life: Duration, slot: Slot, ticket: Ticket) -> bool {
        let now = Instant::now();
        let mut waiting = self.waiting();
        let all = &mut waiting.all;
        // Who never came shall not be remembered, and looking for them shall cost little.
        if all.len() >= MOST || all.len().is_multiple_of(TIDY) {
            all.retain(|_, (until, _)| now < *until);
        }
        if all.len() >= MOST || all.contains_key(&slot) {
            return false;
        }
        let news = ticket.dial.is_none().then(|| News::Waits(Box::new(WrittenTicket::of(slot, life, &ticket))));
        all.insert(slot, (now + life, ticket));
        news.into_iter().for_each(|news| waiting.tell(news));
        true
    }

    /// Everything that the process that follows must know, from now on.
    pub(in crate::serve) fn follow(&self) -> mpsc::UnboundedReceiver<News> {
        let (heir, news) = mpsc::unbounded_channel();
        let now = Instant::now();
        let mut waiting = self.waiting();
        waiting.heir = Some(heir);
        let inbound = waiting.all.iter().filter(|(_, (until, ticket))| now < *until && ticket.dial.is_none());
        let written = inbound.map(|(slot, (until, ticket))| WrittenTicket::of(*slot, *until - now, ticket));
        let written: Vec<_> = written.collect();
        written.into_iter().for_each(|ticket| waiting.tell(News::Waits(Box::new(ticket))));
        waiting.tell(News::Told);
        news
    }

    /// What the process before says, other than [`News::Told`]. `who`: somebody of this tenant, and for this user; none: not here.
    pub(in crate::serve) fn hear(
        &self,
        news: News,
        who: impl FnOnce(Option<&str>, Option<String>) -> Option<Principal>,
    ) {
        match news {
            News::Waits(written) => {
                let WrittenTicket { slot, left, account, call, agent, tenant, user } = *written;
                let Some(who) = who(tenant.as_deref(), user) else {
                    return tracing::warn!(
                        account,
                        tenant,
                        "a telephone call of the process before has no tenant here"
                    );
                };
                if !self.keep(left, slot, Ticket { account, call, agent, who, dial: None }) {
                    tracing::warn!("there are too many telephone calls whose streams are on their way");
                }
            }
            News::Used(slot) => self.withdraw(&slot),
            News::Told => {}
        }
    }

    /// Its call has this name from now on: the stream must know it, too.
    pub(super) fn name(&self, slot: &Slot, call: &str) {
        if let Some((_, ticket)) = self.waiting().all.get_mut(slot) {
            call.clone_into(&mut ticket.call.call);
        }
    }

    /// The token is good no longer.
    pub(in crate::serve) fn withdraw(&self, slot: &Slot) {
        self.waiting().all.remove(slot);
    }

    /// Takes the ticket that a token stands for. `call`: what the stream calls its call, where that is the webhook's name for it; one
    /// that we began may be answered before its provider has told its name.
    /// Whatever comes of it, the token is used up.
    ///
    /// # Errors
    /// Why there is none; for the log.
    pub(super) fn take(
        &self,
        token: Option<&str>,
        account: Option<&str>,
        call: Option<&str>,
    ) -> Result<Ticket, NoTicket> {
        let token = token.ok_or(NoTicket::Absent)?;
        let slot = Slot::of(token);
        let mut waiting = self.waiting();
        let (until, ticket) = waiting.all.remove(&slot).ok_or(NoTicket::Unknown)?;
        if ticket.dial.is_none() {
            waiting.tell(News::Used(slot));
        }
        drop(waiting);
        if Instant::now() >= until || account.is_some_and(|account| account != ticket.account) {
            return Err(NoTicket::Unknown);
        }
        let unnamed = ticket.dial.is_some() && ticket.call.call.is_empty();
        if call.is_some_and(|call| call != ticket.call.call && !unnamed) {
            return Err(NoTicket::OtherCall);
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(call: &str) -> Ticket {
        let call = Incoming { call: call.to_owned(), ..Incoming::default() };
        let who = Principal::operator();
        Ticket { account: "twilio".to_owned(), call, agent: "default".to_owned(), who, dial: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_we_began_is_named_later_or_not_at_all() {
        let tickets = Tickets::new(Duration::from_secs(60));
        let put = || {
            let token = token(TokenForm::Alphanumeric);
            let ticket = Ticket { dial: Some("dial_1".to_owned()), ..ticket("") };
            assert!(tickets.put_for(Duration::from_secs(90), &token, ticket));
            token
        };
        let (early, named, other, gone) = (put(), put(), put(), put());
        assert!(tickets.take(Some(&early), Some("twilio"), Some("CA1")).is_ok());
        tickets.name(&Slot::of(&named), "CA2");
        tickets.name(&Slot::of(&other), "CA3");
        tokio::time::advance(Duration::from_secs(80)).await;
        assert_eq!(tickets.take(Some(&named), Some("twilio"), Some("CA2")).unwrap().call.call, "CA2");
        assert_eq!(tickets.take(Some(&other), Some("twilio"), Some("CA4")).unwrap_err(), NoTicket::OtherCall);
        tickets.withdraw(&Slot::of(&gone));
        assert_eq!(tickets.take(Some(&gone), Some("twilio"), None).unwrap_err(), NoTicket::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_for_its_call_and_not_for_long() {
        let tickets = Tickets::new(Duration::from_secs(60));
        let put = |call: &str| {
            let token = token(TokenForm::Alphanumeric);
            assert!(TokenForm::Alphanumeric.fits(&token) && tickets.put(&token, ticket(call)));
            token
        };
        let (a, b, c, d) = (put("CA1"), put("CA2"), put("CA3"), put("CA4"));
        assert_eq!(tickets.take(Some(&a), Some("twilio"), Some("CA1")).unwrap().call.call, "CA1");
        for (token, account, call, why) in [
            (None, "twilio", Some("CA1"), NoTicket::Absent),
            (Some(a.as_str()), "twilio", Some("CA1"), NoTicket::Unknown),
            (Some("guessed"), "twilio", None, NoTicket::Unknown),
            (Some(b.as_str()), "other", Some("CA2"), NoTicket::Unknown),
            (Some(b.as_str()), "twilio", Some("CA2"), NoTicket::Unknown),
            (Some(c.as_str()), "twilio", Some("CA9"), NoTicket::OtherCall),
            (Some(c.as_str()), "twilio", Some("CA3"), NoTicket::Unknown),
        ] {
            assert_eq!(tickets.take(token, Some(account), call).unwrap_err(), why, "{token:?}");
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(tickets.take(Some(&d), None, None).unwrap_err(), NoTicket::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn the_process_that_follows_takes_each_token_once() {
        let (old, new) = (Tickets::new(Duration::from_secs(60)), Tickets::new(Duration::from_secs(60)));
        let put = |call: &str| {
            let token = token(TokenForm::Alphanumeric);
            assert!(old.put(&token, ticket(call)));
            token
        };
        let (early, late, used) = (put("CA1"), put("CA2"), put("CA3"));
        let dialled = Ticket { dial: Some("dial_1".to_owned()), ..ticket("CA4") };
        assert!(old.put("0123456789abcdef", dialled));
        tokio::time::advance(Duration::from_secs(20)).await;
        let mut news = old.follow();
        let after = put("CA5");
        assert!(old.take(Some(&used), Some("twilio"), Some("CA3")).is_ok(), "here, meanwhile");
        let mut told = Vec::new();
        while let Ok(said) = news.try_recv() {
            told.push(matches!(said, News::Told));
            let mut bytes = Vec::new();
            ciborium::into_writer(&said, &mut bytes).unwrap();
            let read: News = ciborium::from_reader(&bytes[..]).unwrap();
            assert_eq!(read, said);
            new.hear(read, |tenant, user| (tenant.is_none() && user.is_none()).then(Principal::operator));
        }
        assert_eq!(told, [false, false, false, true, false, false], "three, all, one more, one used");
        assert_eq!(new.take(Some(&early), Some("twilio"), Some("CA1")).unwrap().call.call, "CA1");
        assert!(new.take(Some(&after), Some("twilio"), Some("CA5")).is_ok());
        assert_eq!(new.take(Some(&used), Some("twilio"), Some("CA3")).unwrap_err(), NoTicket::Unknown);
        assert_eq!(new.take(Some("0123456789abcdef"), None, None).unwrap_err(), NoTicket::Unknown);
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(
            new.take(Some(&late), Some("twilio"), Some("CA2")).unwrap_err(),
            NoTicket::Unknown,
            "no longer than here"
        );
        drop(news);
        put("CA6");
        assert!(old.waiting().heir.is_none(), "nobody is told who is gone");
    }

    #[test]
    fn tokens_have_the_form_that_is_asked_for() {
        for form in [TokenForm::Alphanumeric, TokenForm::Uuid] {
            let (one, other) = (token(form), token(form));
            assert!(form.fits(&one) && form.fits(&other) && one != other, "{one}");
        }
        assert_eq!(&token(TokenForm::Uuid)[14..15], "4");
    }
}
