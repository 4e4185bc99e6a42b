//! Who went where: a table that forgets whoever has not called for longest. Keys are hashes, so that it holds no names.
use std::collections::HashMap;

use super::Route;

/// Users that are remembered, at least; twice as many at most.
const USERS: usize = 10_000;

/// The last route of each.
#[derive(Debug, Default)]
pub(super) struct Sticky {
    new: HashMap<u64, Route>,
    old: HashMap<u64, Route>,
}

impl Sticky {
    pub(super) fn get(&self, key: u64) -> Option<&Route> {
        self.new.get(&key).or_else(|| self.old.get(&key))
    }

    pub(super) fn put(&mut self, key: u64, route: &Route) {
        if self.new.len() >= USERS && !self.new.contains_key(&key) {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(key, route.clone());
    }
}

#[test]
fn the_newest_are_remembered_and_the_table_is_bounded() {
    let route = |n: u64| Route { upstream: None, model: format!("m{n}") };
    let mut sticky = Sticky::default();
    for n in 0..100_000 {
        sticky.put(n, &route(n));
        sticky.put(7, &route(0));
    }
    assert!(sticky.new.len() + sticky.old.len() <= 2 * USERS);
    assert!((90_000..100_000).all(|n| sticky.get(n) == Some(&route(n))));
    assert_eq!((sticky.get(7), sticky.get(8)), (Some(&route(0)), None));
}
