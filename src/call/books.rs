//! What a call used, on its way into the ledger: counts of the service, or estimates of ours where a drop ate them.
//!
//! A count is told more than once as more is known of it; the ledger keeps one row of each id. Here a row gets its price: that
//! of the day on which it is booked.
use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{core::Delay, reply::status_name};
use crate::{
    admit::{
        Principal,
        price::{Cost, PriceList},
        router::Route,
    },
    client::wire::Usage,
    config::USUAL_UPSTREAM,
    ledger::{Entry, Kind, Ledger},
    upstream::Event,
    wall::unix_now_ms,
};

/// What a reply, or words that were written down, came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Booked {
    /// The service's id.
    pub id: String,
    /// What it is the count of.
    pub kind: Kind,
    /// How it ended.
    pub status: String,
    /// Tokens.
    pub usage: Usage,
    /// What was written down, seconds, where that is what the service counts.
    pub seconds: Option<f64>,
    /// Audio that came, ms.
    pub audio_ms: u64,
    /// Heard of it, ms; 0 where it is not known, or not yet.
    pub heard_ms: u64,
    /// From the request, or the turn that is answered, to the first audio, ms; none: there was none, or nobody saw it.
    #[serde(default)]
    pub first_audio_ms: Option<u64>,
    /// The service's count is lost: this is ours.
    pub estimated: bool,
    /// Of a reply that had to wait, or was refused: why, and for how long.
    #[serde(default)]
    pub delay: Option<Delay>,
    /// Of words that were written down: the model that did it, where the session has said so.
    #[serde(default)]
    pub writer: Option<String>,
}

impl Booked {
    /// A reply.
    pub fn reply(id: &str, status: &str, usage: Usage) -> Self {
        let (id, status) = (id.to_owned(), status.to_owned());
        let (seconds, writer, delay, first_audio_ms) = (None, None, None, None);
        let (kind, audio_ms, heard_ms, estimated) = (Kind::Reply, 0, 0, false);
        Self { id, kind, status, usage, seconds, audio_ms, heard_ms, first_audio_ms, estimated, delay, writer }
    }

    /// A reply that was refused for this reason.
    pub fn refusal(id: &str, reason: String) -> Self {
        let delay = Some(Delay { reason, waited_ms: 0 });
        Self { kind: Kind::Refusal, delay, ..Self::reply(id, "refused", Usage::default()) }
    }

    /// What the service counts with this event, if anything.
    pub fn counted(event: &Event) -> Option<Self> {
        match event {
            Event::ReplyDone { response, ended, usage: Some(usage), .. } => {
                Some(Self::reply(response, status_name((*ended).into()), *usage))
            }
            Event::UserText { item, spent: Some(spent), .. } => Some(Self {
                kind: Kind::Transcription,
                seconds: spent.seconds,
                ..Self::reply(item, "completed", spent.usage)
            }),
            _ => None,
        }
    }
}

/// Where a call's rows go, and what they say beside the count.
#[derive(Debug, Clone)]
pub struct Books {
    /// All calls' rows.
    pub ledger: Ledger,
    /// What things cost.
    pub prices: Arc<PriceList>,
    /// The call.
    pub call: String,
    /// The agent that was called.
    pub agent: String,
    /// The account that the session runs on, as the ledger calls it.
    pub account: String,
    /// The model that answers.
    pub model: String,
    /// The model that writes down what the caller says, as long as the session does not name one; none: not known.
    pub writer: Option<String>,
    /// Where the call came in.
    pub door: &'static str,
}

impl Books {
    /// The model that this is the count of.
    pub fn model_of<'a>(&'a self, booked: &'a Booked) -> &'a str {
        match booked.kind {
            Kind::Reply | Kind::Refusal => &self.model,
            Kind::Transcription => booked.writer.as_ref().or(self.writer.as_ref()).map_or("", String::as_str),
        }
    }

    /// Where the session runs.
    pub fn route(&self) -> Route {
        let upstream = Some(self.account.clone()).filter(|account| account != USUAL_UPSTREAM);
        Route { upstream, model: self.model.clone() }
    }

    /// Books a count of this session.
    pub fn book(&self, who: &Principal, session: &str, booked: Booked) {
        let model = self.model_of(&booked).to_owned();
        let Booked { id, kind, status, usage, seconds, audio_ms, heard_ms, first_audio_ms, estimated, delay, .. } =
            booked;
        let waited_ms = delay.as_ref().map(|delay| delay.waited_ms).filter(|_| kind == Kind::Reply);
        self.ledger.book(Entry {
            id,
            kind,
            call: self.call.clone(),
            session: session.to_owned(),
            tenant: who.tenant_id().to_owned(),
            key: who.key_label(),
            user: who.user().map(str::to_owned),
            agent: self.agent.clone(),
            route: format!("{}/{model}", self.account),
            cost: match kind {
                Kind::Refusal => Some(Cost::default()),
                Kind::Reply | Kind::Transcription => self.prices.cost(&model, &usage, seconds),
            },
            model,
            door: self.door.into(),
            at: unix_now_ms(),
            status,
            usage,
            seconds,
            audio_ms,
            heard_ms,
            first_audio_ms,
            waited_ms,
            reason: delay.map(|delay| delay.reason),
            estimated,
        });
    }
}

/// Replies of the route before that are remembered: a reply is told of once more when it has been heard.
const EARLIER: usize = 16;

/// What was counted on the route before, and stays with it.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Counted on the route that runs, the newest.
    counted: VecDeque<String>,
    before: Option<(VecDeque<String>, Books, String)>,
}

impl Earlier {
    /// The call goes on elsewhere.
    pub fn moves(&mut self, books: &Books, session: &str) {
        self.before = Some((std::mem::take(&mut self.counted), books.clone(), session.to_owned()));
    }

    /// The books and the session of a reply of before; `None`: it is the running route's.
    pub fn of(&mut self, booked: &Booked) -> Option<(&Books, &String)> {
        let known = self.before.as_ref().is_some_and(|(counted, ..)| counted.contains(&booked.id));
        if !known && !self.counted.contains(&booked.id) {
            if self.counted.len() == EARLIER {
                self.counted.pop_front();
            }
            self.counted.push_back(booked.id.clone());
        }
        self.before.as_ref().filter(|_| known).map(|(_, books, session)| (books, session))
    }
}
