//! Whose responses are, and where they are kept: a response is gone on from at the account that has it, and only by its tenant.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::admit::router::Route;

/// Responses that are remembered; the oldest are forgotten for new ones.
const MOST: usize = 100_000;

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Whose.
    pub tenant: String,
    /// Where it was made.
    pub route: Route,
    /// What has been said so far, tokens: they are read again.
    pub tokens: u64,
}

/// Those of a process.
#[derive(Debug, Default)]
pub struct Owned(Mutex<(HashMap<String, Response>, VecDeque<String>)>);

impl Owned {
    /// A response was made.
    pub fn put(&self, id: &str, response: Response) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_id, order) = &mut *all;
        if by_id.insert(id.to_owned(), response).is_none() {
            order.push_back(id.to_owned());
        }
        while order.len() > MOST {
            order.pop_front().map(|oldest| by_id.remove(&oldest));
        }
    }

    /// The response of this id.
    pub fn get(&self, id: &str) -> Option<Response> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let owned = Owned::default();
        let route = Route { upstream: None, model: "m".to_owned() };
        let response = |tokens| Response { tenant: "acme".to_owned(), route: route.clone(), tokens };
        (0..=MOST as u64).for_each(|n| owned.put(&format!("resp_{n}"), response(n)));
        owned.put("resp_7", response(70));
        assert_eq!(owned.get("resp_0"), None);
        assert_eq!((owned.get("resp_1").unwrap().tokens, owned.get("resp_7").unwrap().tokens), (1, 70));
    }
}
