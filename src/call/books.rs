//! What a call used, on its way into the ledger: counts of the service, or estimates of ours where a drop ate them.
//!
//! A count is told more than once as more is known of it; the ledger keeps one row of each id. Here a row gets its price: that
//! of the list that is in force when it is counted first. Another list that comes later is for later replies.
use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{core::Delay, end::End, reply::status_name};
use crate::{
    admit::{
        Principal,
        price::{Cost, PriceList, Prices},
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
    /// It came in a batch, and has its price.
    #[serde(default)]
    pub batch: bool,
}

impl Booked {
    /// A reply.
    pub fn reply(id: &str, status: &str, usage: Usage) -> Self {
        let (id, status) = (id.to_owned(), status.to_owned());
        let (seconds, writer, delay, first_audio_ms) = (None, None, None, None);
        let (kind, audio_ms, heard_ms, estimated, batch) = (Kind::Reply, 0, 0, false, false);
        Self { id, kind, status, usage, seconds, audio_ms, heard_ms, first_audio_ms, estimated, delay, writer, batch }
    }

    /// A reply that was refused for this reason.
    pub fn refusal(id: &str, reason: String) -> Self {
        let delay = Some(Delay { reason, waited_ms: 0 });
        Self { kind: Kind::Refusal, delay, ..Self::reply(id, "refused", Usage::default()) }
    }

    /// A call that is over, after so long.
    pub fn call(id: &str, length: Duration, end: &End) -> Self {
        let seconds = Some(length.as_secs_f64());
        let delay = Some(Delay { reason: end.to_string(), waited_ms: 0 });
        Self { kind: Kind::Call, seconds, delay, ..Self::reply(id, end.who(), Usage::default()) }
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
    pub prices: Prices,
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
            Kind::Reply | Kind::Refusal | Kind::Call => &self.model,
            Kind::Transcription => booked.writer.as_ref().or(self.writer.as_ref()).map_or("", String::as_str),
        }
    }

    /// Where the session runs.
    pub fn route(&self) -> Route {
        let upstream = Some(self.account.clone()).filter(|account| account != USUAL_UPSTREAM);
        Route { upstream, model: self.model.clone() }
    }

    /// Books a count of this session, at these prices.
    pub fn book(&self, who: &Principal, session: &str, booked: Booked, prices: &PriceList) {
        let model = self.model_of(&booked).to_owned();
        let Booked {
            id,
            kind,
            status,
            usage,
            seconds,
            audio_ms,
            heard_ms,
            first_audio_ms,
            estimated,
            delay,
            batch,
            ..
        } = booked;
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
                Kind::Refusal | Kind::Call => Some(Cost::default()),
                Kind::Reply if batch => prices.batch_cost(&model, &usage),
                Kind::Reply | Kind::Transcription => prices.cost(&model, &usage, seconds),
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

/// Replies of a route that are remembered: a reply is told of once more when it has been heard.
const EARLIER: usize = 16;

/// Ids, and the prices at which they were counted.
type Counted = VecDeque<(String, Arc<PriceList>)>;

/// What was counted already, and stays with its route and its prices.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Counted on the route that runs, the newest.
    counted: Counted,
    before: Option<(Counted, Books, String)>,
}

/// Where a count belongs.
#[derive(Debug)]
pub struct Place<'a> {
    /// The books and the session, if they are those of the route before.
    pub before: Option<(&'a Books, &'a String)>,
    /// What things cost when it was counted first.
    pub prices: Arc<PriceList>,
}

impl Earlier {
    /// The call goes on elsewhere.
    pub fn moves(&mut self, books: &Books, session: &str) {
        self.before = Some((std::mem::take(&mut self.counted), books.clone(), session.to_owned()));
    }

    /// Where this count belongs; of a new one, the running route and the prices of now.
    pub fn of(&mut self, booked: &Booked, prices: &Prices) -> Place<'_> {
        let known =
            |counted: &Counted| counted.iter().find(|(id, _)| *id == booked.id).map(|(_, prices)| prices.clone());
        if let Some((counted, books, session)) = &self.before
            && let Some(prices) = known(counted)
        {
            return Place { before: Some((books, session)), prices };
        }
        let prices = known(&self.counted).unwrap_or_else(|| {
            if self.counted.len() == EARLIER {
                self.counted.pop_front();
            }
            let prices = prices.load_full();
            self.counted.push_back((booked.id.clone(), prices.clone()));
            prices
        });
        Place { before: None, prices }
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;

    use super::*;

    #[test]
    fn what_was_counted_keeps_its_prices_and_its_route() {
        let list = || Arc::new(PriceList::load(None).unwrap());
        let prices: Prices = Arc::new(ArcSwap::new(list()));
        let text = || String::from("x");
        let (ledger, call, agent, account, model) = (Ledger::none(), text(), text(), text(), text());
        let books = Books { ledger, prices: prices.clone(), call, agent, account, model, writer: None, door: "thin" };
        let (mut earlier, old) = (Earlier::default(), prices.load_full());
        let reply = |id| Booked::reply(id, "completed", Usage::default());
        assert!(Arc::ptr_eq(&earlier.of(&reply("a"), &prices).prices, &old));
        prices.store(list());
        for (name, id, moves, at_old, before) in [
            ("it is heard", "a", false, true, false),
            ("a new one", "b", false, false, false),
            ("it is heard when the call goes on elsewhere", "a", true, true, true),
            ("a new one there", "c", false, false, false),
        ] {
            if moves {
                earlier.moves(&books, "sess_1");
            }
            let place = earlier.of(&reply(id), &prices);
            assert_eq!((Arc::ptr_eq(&place.prices, &old), place.before.is_some()), (at_old, before), "{name}");
        }
    }
}
