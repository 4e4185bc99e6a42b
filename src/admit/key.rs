//! Tenant keys: `vrk_` and 256 bits of chance. What is kept of one is its hash; the key itself is shown once.
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{TryRngCore as _, rngs::OsRng};

use crate::config::{KeyHash, Secret};

/// What keys begin with, so that people and scanners know one when they see it.
pub const PREFIX: &str = "vrk_";
/// Longest credential that is looked at, bytes.
pub const LONGEST: usize = 4_096;

/// A new key.
pub fn generate() -> Secret {
    Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(chance())))
}

/// 256 bits that nobody can guess.
///
/// # Panics
/// When the operating system has none: then nothing that is secret can be made here.
pub fn chance() -> [u8; 32] {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).expect("the operating system's source of chance");
    bytes
}

/// The form in which a key is kept and found.
pub fn hash(key: &str) -> KeyHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, key.as_bytes()).as_ref());
    KeyHash(hash)
}

/// As [`hash`], of what somebody shows: not more of it than a credential can be long.
pub fn hash_shown(credential: &str) -> KeyHash {
    hash(credential.get(..LONGEST).unwrap_or(credential))
}

#[test]
fn keys_differ_and_are_known_by_their_hash() {
    let (one, other) = (generate(), generate());
    assert!(one.expose().starts_with(PREFIX) && one.expose().len() == PREFIX.len() + 43, "{}", one.expose());
    assert_ne!(one.expose(), other.expose());
    assert_eq!(hash("abc").to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
