//! What all requests for text have in common: they are counted, may meet a fault, need a key, take from the account's limits,
//! and go out with headers that tell how the limits stand.
use std::{borrow::Cow, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode},
};
use serde_json::Value;

use super::{
    super::{
        faults::{FaultKind, How, Place},
        limits::{Taken, spelled},
        rest::{Answer, No},
        server::too_many,
        validate::Refusal,
    },
    Text,
};
use crate::scripted::Dice;

/// One request on its way.
#[derive(Debug)]
pub(super) struct Visit<'t> {
    pub(super) text: &'t Text,
    /// Where it came in, and its number there, from 1; nowhere in particular: it is not counted, and meets no fault.
    door: Option<(Place, u64)>,
    /// Ids and jitter.
    pub(super) dice: Dice,
    /// What is scripted for its answer.
    pub(super) fault: Option<FaultKind>,
    /// Who pays; empty until the key was found good.
    pub(super) account: String,
    /// Whose limits the answer's headers show.
    pub(super) model: Option<String>,
}

impl<'t> Visit<'t> {
    /// Counts a request.
    pub(super) fn new(text: &'t Text, place: Place, headers: &HeaderMap) -> Self {
        let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok());
        let number = text.world.stats.lock().text.came(place.name(), key);
        let seed = text.world.config.seed ^ 0x7E47 ^ super::hash(place.name());
        let dice = Dice::new(seed, number);
        Self { text, door: Some((place, number)), dice, fault: None, account: String::new(), model: None }
    }

    /// A request that only looks at what was answered before.
    pub(super) fn beside(text: &'t Text) -> Self {
        Self { text, door: None, dice: Dice::new(0, 0), fault: None, account: String::new(), model: None }
    }

    /// What is scripted for it is carried out, and its key is looked at.
    pub(super) async fn enter(&mut self, headers: &HeaderMap) -> Result<(), No> {
        let world = &self.text.world;
        if let Some((place, number)) = self.door {
            self.fault = world.fault(place, number).await?;
        }
        let knock = world.who(headers)?;
        if knock.session.is_some() {
            let message = "A client secret is for realtime sessions: use an API key.";
            return Err(No::new(StatusCode::UNAUTHORIZED, Refusal::new("invalid_api_key", message)));
        }
        self.account = knock.account().to_owned();
        Ok(())
    }

    /// Its number at its address.
    pub(super) fn number(&self) -> u64 {
        self.door.map_or(0, |(_, number)| number)
    }

    /// How its answer is no good, if it is not to be.
    pub(super) fn how(&self) -> Option<How> {
        match self.fault {
            Some(FaultKind::Answer { how, .. }) => Some(how),
            _ => None,
        }
    }

    /// What a refusing model says.
    pub(super) fn message(&self) -> Option<&str> {
        match &self.fault {
            Some(FaultKind::Answer { message, .. }) => message.as_deref(),
            _ => None,
        }
    }

    /// Takes a request and so many tokens from the account's limits for `model`.
    pub(super) fn take(&self, model: &str, tokens: u64) -> Result<Option<Taken>, No> {
        let world = &self.text.world;
        world.accounts.reply(&world.config, (&self.account, model), self.text.now(), tokens).map_err(|full| {
            world.stats.limited(full.which.name());
            No::Written(Box::new(too_many(&full)))
        })
    }

    /// Gives back what was taken and not used.
    pub(super) fn settle(&self, taken: Option<&Taken>, used: u64) {
        if let Some(taken) = taken {
            self.text.world.accounts.settle(self.text.now(), taken, used);
        }
    }

    /// The answer as it goes out.
    pub(super) fn leave(self, answer: Answer) -> Response<Body> {
        let world = &self.text.world;
        let mut response = world.answered(answer);
        if let Some((place, _)) = self.door {
            world.stats.lock().text.ended(place.name(), response.status().as_u16());
        }
        self.show_limits(response.headers_mut());
        response
    }

    fn show_limits(&self, headers: &mut HeaderMap) {
        let world = &self.text.world;
        let limits = &world.config.rate_limits;
        let who = self.model.as_deref().map(|model| (self.account.as_str(), model));
        let standing = who.and_then(|who| world.accounts.standing(&world.config, who, self.text.now()));
        for (name, limit) in [("requests", limits.rest_requests), ("tokens", limits.tokens)] {
            let found = standing.iter().flatten().find(|standing| standing.name == name);
            let (limit, remaining, reset) = match found {
                Some(found) => (found.limit.to_string(), found.remaining.to_string(), spelled(found.full_in)),
                // Without limits of its own an account is told those that nobody reaches.
                None => (limit.to_string(), limit.saturating_sub(1).to_string(), "12ms".to_owned()),
            };
            for (what, value) in [("limit", limit), ("remaining", remaining), ("reset", reset)] {
                let name = HeaderName::try_from(format!("x-ratelimit-{what}-{name}"));
                if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

/// A request's body.
pub(super) async fn body(request: Request, most: usize) -> Result<Bytes, No> {
    axum::body::to_bytes(request.into_body(), most).await.map_err(|_| too_large(most, None))
}

/// A request's body as JSON.
pub(super) fn parse(body: &[u8]) -> Result<Value, No> {
    let message = "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP \
                   library correctly. The API expects a JSON payload, but what was sent was not valid JSON.)";
    let refusal = || Refusal { code: None, ..Refusal::new("", message) };
    serde_json::from_slice(body).map_err(|_| No::bad(refusal()))
}

/// What is too large, in the service's words.
pub(super) fn too_large(most: usize, read: Option<u64>) -> No {
    let read = read.map_or(String::new(), |bytes| format!(" ({bytes} bytes read)"));
    let message = format!("Maximum content size limit ({most}) exceeded{read}");
    let refusal = Refusal { code: None, kind: Cow::Borrowed("server_error"), ..Refusal::new("", message) };
    No::new(StatusCode::PAYLOAD_TOO_LARGE, refusal)
}

/// A model that is not there for this account.
pub(super) fn no_model(name: &str) -> No {
    let name = super::super::validate::shorten(name);
    let message = format!("The model `{name}` does not exist or you do not have access to it.");
    No::new(StatusCode::NOT_FOUND, Refusal::new("model_not_found", message).at("model"))
}

/// How long `text` takes at a pace of so many ms a word.
pub(super) fn spoken(text: &str, word_ms: u64) -> Duration {
    Duration::from_millis(word_ms.saturating_mul(text.split_inclusive(' ').count() as u64))
}
