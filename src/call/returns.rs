//! The way back to a running call: single-use tokens, and who may use one (client-protocol.md, "Resume").
//!
//! A call holds a [`Ticket`]; whoever comes with its token is handed to the call's own task, which alone decides. A token is
//! used up once its client has shown that it has the next one: one that was lost with its socket must not lose the call.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::{sync::Notify, time::Instant};

use super::end::{End, Report};
use crate::{
    admit::{
        Principal,
        key::{self, chance},
    },
    client::{
        openai, thin,
        wire::{ErrorBody, ServerMsg},
    },
    config::KeyHash,
    net::ws::Socket,
    observe::fact::Fact,
};

/// A client that has not shown that it has the next token may use the one before again, if its socket is lost or has been
/// silent for so long.
const UNPROVEN: Duration = Duration::from_secs(2);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Somebody who comes back with a token.
#[derive(Debug)]
pub struct Arrival {
    /// Which token it was.
    pub token: KeyHash,
    /// The client's new socket.
    pub socket: Socket,
    /// Who comes.
    pub who: Principal,
    /// The number of the last message that it has.
    pub got: u64,
}

/// All calls that one can come back to.
#[derive(Debug, Clone, Default)]
pub struct Returns(Arc<Mutex<HashMap<KeyHash, Arc<Place>>>>);

/// Where a call takes in who comes back, one at a time.
#[derive(Debug)]
struct Place {
    door: &'static str,
    arrival: Mutex<Slot>,
    bell: Notify,
    /// Somebody asks for the call in another process.
    recall: Notify,
}

#[derive(Debug, Default)]
struct Slot {
    arrival: Option<Box<Arrival>>,
    /// The call is over.
    closed: bool,
}

impl Place {
    fn arrival(&self) -> MutexGuard<'_, Slot> {
        self.arrival.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Returns {
    fn places(&self) -> MutexGuard<'_, HashMap<KeyHash, Arc<Place>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for a call that came in at this door.
    pub fn ticket(&self, door: &'static str) -> Ticket {
        self.restored(door, Vec::new())
    }

    /// A ticket for a call that another process had, to which these tokens lead.
    pub fn restored(&self, door: &'static str, tokens: Vec<KeyHash>) -> Ticket {
        let (arrival, bell, recall) = (Mutex::default(), Notify::new(), Notify::new());
        let place = Arc::new(Place { door, arrival, bell, recall });
        self.places().extend(tokens.iter().map(|token| (*token, place.clone())));
        Ticket { returns: self.clone(), place, tokens, since: None }
    }

    /// Hands somebody to the call that the token leads to.
    ///
    /// # Errors
    /// Gives the arrival back: there is no such call at this door, or it has no time.
    pub fn hand_over(&self, door: &'static str, arrival: Box<Arrival>) -> Result<(), Box<Arrival>> {
        let place = self.places().get(&arrival.token).filter(|place| place.door == door).cloned();
        let Some(place) = place else { return Err(arrival) };
        let mut slot = place.arrival();
        if slot.arrival.is_some() || slot.closed {
            return Err(arrival); // somebody else has the same token, or it is too late
        }
        slot.arrival = Some(arrival);
        place.bell.notify_one();
        Ok(())
    }

    /// Somebody has come to the process that follows with this token: its call shall go there now.
    pub fn recall(&self, token: &KeyHash) {
        if let Some(place) = self.places().get(token) {
            place.recall.notify_one();
        }
    }

    /// Tokens that lead to a call now.
    pub fn len(&self) -> usize {
        self.places().len()
    }

    /// No call can be come back to.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Says on a socket that is none of the call's, in the words of its door, why it is closed. `id` names it in the log.
pub async fn leave(mut socket: Socket, door: &'static str, why: End, id: String) {
    let request_id = format!("{id}-r");
    let (text, close, reason) = if door == "openai" {
        let (close, reason) = openai::close(&why);
        (openai::end_event(&why, request_id), close, reason)
    } else {
        let Report { code, close, .. } = why.report();
        let field = (why == End::ResumeRefused).then(|| "resume".to_owned());
        let error = why.error(request_id).map(|error| ServerMsg::Error { error: ErrorBody { field, ..error } });
        (error.map(|error| thin::write(&error)), close, code.unwrap_or_default().to_owned())
    };
    if let Some(code) = why.report().code {
        Fact::Refused { code: code.into() }.record();
    }
    if let Some(text) = text {
        socket.send_text(text);
    }
    socket.close(close, &reason, GOODBYE).await;
}

/// A token as it is shown to nobody.
pub fn token_hash(token: &str) -> KeyHash {
    key::hash_shown(token)
}

/// One call's tokens. Dropping it ends the way back.
#[derive(Debug)]
pub struct Ticket {
    returns: Returns,
    place: Arc<Place>,
    /// The current one last; before it the one that was used last, while its client has not shown that it has the next.
    tokens: Vec<KeyHash>,
    /// When the last one was used.
    since: Option<Instant>,
}

impl Ticket {
    /// The first token.
    pub fn first(&mut self) -> String {
        self.issue(None)
    }

    /// The token after this one, which was used. It stays good until [`Self::settle`]; all others are used up.
    pub fn after(&mut self, used: KeyHash) -> String {
        self.issue(Some(used))
    }

    fn issue(&mut self, used: Option<KeyHash>) -> String {
        let token = URL_SAFE_NO_PAD.encode(chance());
        let hash = token_hash(&token);
        self.forget();
        self.tokens.extend(used.into_iter().chain([hash]));
        self.since = used.map(|_| Instant::now());
        self.returns.places().extend(self.tokens.iter().map(|token| (*token, self.place.clone())));
        token
    }

    /// The client has the current token.
    pub fn settle(&mut self) {
        if self.tokens.len() > 1 {
            let current = self.tokens.pop();
            self.forget();
            self.tokens.extend(current);
        }
    }

    /// Whether this token is good now. `connected`: the call has a client.
    pub fn is_good(&self, token: &KeyHash, connected: bool) -> bool {
        let waits = connected && self.since.is_some_and(|at| at.elapsed() < UNPROVEN);
        match self.tokens.as_slice() {
            [.., current] if current == token => true,
            [before, _] => before == token && !waits,
            _ => false,
        }
    }

    /// Waits for somebody to come back.
    pub async fn arrival(&self) -> Box<Arrival> {
        loop {
            if let Some(arrival) = self.place.arrival().arrival.take() {
                return arrival;
            }
            self.place.bell.notified().await;
        }
    }

    /// The call is over: nobody comes back any more. Whoever was on the way.
    pub fn close(&mut self) -> Option<Box<Arrival>> {
        self.forget();
        let mut slot = self.place.arrival();
        slot.closed = true;
        slot.arrival.take()
    }

    /// Waits until the call is asked for in another process.
    pub async fn recalled(&self) {
        self.place.recall.notified().await;
    }

    /// The tokens that lead here, as they are kept.
    pub fn tokens(&self) -> &[KeyHash] {
        &self.tokens
    }

    fn forget(&mut self) {
        let mut places = self.returns.places();
        for token in self.tokens.drain(..) {
            places.remove(&token);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_up_once_its_client_has_the_next() {
        let returns = Returns::default();
        let mut ticket = returns.ticket("thin");
        let first = token_hash(&ticket.first());
        ticket.settle();
        assert!(ticket.is_good(&first, true), "there was none before it");
        let second = token_hash(&ticket.after(first));
        assert!(ticket.is_good(&second, true));
        assert!(!ticket.is_good(&first, true), "two at once with one token");
        assert!(ticket.is_good(&first, false), "the answer was lost with its socket");
        let third = token_hash(&ticket.after(first));
        assert!(!ticket.is_good(&second, false), "nobody has it");
        tokio::time::advance(UNPROVEN).await;
        assert!(ticket.is_good(&first, true), "or with a socket that only seems to live");
        ticket.settle();
        assert!(!ticket.is_good(&first, false) && ticket.is_good(&third, true));
        let fourth = token_hash(&ticket.after(third));
        assert!(ticket.is_good(&third, false) && ticket.is_good(&fourth, false));
        assert_eq!(returns.len(), 2);
        drop(ticket);
        assert!(returns.is_empty());
    }
}
