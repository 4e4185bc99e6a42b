//! Places for streams that have shown nothing yet: so many at once in all, of one account, and of one address.
//!
//! Some providers show nothing before a stream's first message, so anybody may open one and be silent for a while. Without shares whoever
//! holds all places would shut the door for everybody. A stream that has said whose it is needs none.
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::admit::pace;

/// In all.
pub(super) const MOST: usize = 512;
/// Of one account: the others' streams still come in.
const OF_ACCOUNT: usize = MOST / 2;
/// Of one address. Providers send many calls from few addresses, but each stream says whose it is a round trip after it was opened.
const OF_ADDRESS: usize = 32;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    /// This address has its share.
    #[error("{OF_ADDRESS} streams from this address have not said whose they are, as many as may at once")]
    Address,
    /// This account has its share.
    #[error("{OF_ACCOUNT} streams of this account have not said whose they are, as many as may at once")]
    Account,
    /// There is none.
    #[error("{MOST} streams have not said whose they are, as many as may at once")]
    All,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    accounts: HashMap<String, usize>,
    addresses: HashMap<IpAddr, usize>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    account: Option<String>,
    address: Option<IpAddr>,
}

fn has<K: Hash + Eq>(counts: &HashMap<K, usize>, key: Option<&K>) -> usize {
    key.and_then(|key| counts.get(key)).copied().unwrap_or_default()
}

fn leave<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: Option<&K>) {
    let Some(key) = key else { return };
    let Some(count) = counts.get_mut(key) else { return };
    *count -= 1;
    // Nobody's address is remembered for longer than they are here.
    if *count == 0 {
        counts.remove(key);
    }
}

impl Places {
    /// Takes one, for an account and an address; `None`: there is none that would count.
    ///
    /// # Errors
    /// Whose share is used up.
    pub(super) fn take(&self, account: Option<&str>, address: Option<IpAddr>) -> Result<Place, NoPlace> {
        let account = account.map(str::to_owned);
        let address = address.map(|address| pace::network(address.to_canonical()));
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if has(&taken.addresses, address.as_ref()) >= OF_ADDRESS {
            return Err(NoPlace::Address);
        }
        if has(&taken.accounts, account.as_ref()) >= OF_ACCOUNT {
            return Err(NoPlace::Account);
        }
        if taken.all >= MOST {
            return Err(NoPlace::All);
        }
        taken.all += 1;
        if let Some(account) = &account {
            *taken.accounts.entry(account.clone()).or_default() += 1;
        }
        if let Some(address) = address {
            *taken.addresses.entry(address).or_default() += 1;
        }
        drop(taken);
        Ok(Place { places: self.clone(), account, address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        leave(&mut taken.accounts, self.account.as_ref());
        leave(&mut taken.addresses, self.address.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> Option<IpAddr> {
        Some(IpAddr::V4(u32::try_from(0x0A00_0000 + n).unwrap().into()))
    }

    #[test]
    fn nobody_has_all_places() {
        let places = Places::default();
        let mut held: Vec<_> = (0..OF_ADDRESS).map(|_| places.take(Some("plivo"), address(0)).unwrap()).collect();
        assert_eq!(places.take(Some("plivo"), address(0)).unwrap_err(), NoPlace::Address);
        assert_eq!(places.take(Some("vonage"), address(0)).unwrap_err(), NoPlace::Address, "at any account");
        held.extend((OF_ADDRESS..OF_ACCOUNT).map(|n| places.take(Some("plivo"), address(n)).unwrap()));
        assert_eq!(places.take(Some("plivo"), address(9_999)).unwrap_err(), NoPlace::Account);
        held.extend((OF_ACCOUNT..MOST).map(|n| places.take(Some("vonage"), address(n)).unwrap()));
        assert_eq!(places.take(None, None).unwrap_err(), NoPlace::All);
        held.remove(0);
        assert!(places.take(Some("plivo"), address(0)).is_ok(), "as soon as one is free");
        drop(held);
        let taken = places.0.lock().unwrap();
        assert_eq!((taken.all, taken.accounts.len(), taken.addresses.len()), (0, 0, 0), "nothing is left of them");
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one() {
        let places = Places::default();
        let address = |n: usize| Some(format!("2001:db8::{n:x}").parse().unwrap());
        let held: Vec<_> = (0..OF_ADDRESS).map(|n| places.take(None, address(n)).unwrap()).collect();
        assert_eq!(places.take(None, address(9_999)).unwrap_err(), NoPlace::Address);
        assert_eq!(held.len(), OF_ADDRESS);
    }
}
