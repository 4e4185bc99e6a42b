//! Whether a request comes from whom it says: digests, windows of time, and what was shown before.
//!
//! Secrets and signatures are compared in constant time. To the outside all failures look the same; [`Forged::reason`] is for
//! the log.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{constant_time, digest, hmac};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::webhook::Asked;
use crate::config::Secret;

/// A signed time may be so far from ours, seconds, either way.
pub const WINDOW_S: u64 = 300;
/// A request whose signature has no time in it is remembered for so long, seconds.
const UNTIMED_S: u64 = 14_400;
/// Requests that are remembered.
const REMEMBERED: usize = 1 << 17;
/// Of these, the newest have their answers kept; none is longer than a webhook's answer.
const ANSWERS: usize = 4_096;

/// A request that nobody needs to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request is not signed as this account's requests are")]
pub struct Forged {
    reason: &'static str,
}

impl Forged {
    pub(super) fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// What was wrong, for the log only.
    pub fn reason(self) -> &'static str {
        self.reason
    }
}

/// A request that is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What its second showing would be known by; none: it proves nothing that could be shown only once (passwords).
    pub once: Option<Once>,
}

/// The mark of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once {
    digest: [u8; 32],
    /// From then on the request would be too old anyway, Unix seconds.
    until: u64,
}

/// What an upgrade to a stream proves by itself. In any case the stream's token must be good, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamProof {
    /// Signature or password were good.
    Proven,
    /// The provider sends nothing that could be checked: only the token counts.
    TokenOnly,
}

impl Verified {
    /// Of a request with such a signature; `at`: its signed time.
    pub(super) fn of(scheme: &str, parts: &[&[u8]], at: Option<u64>, now: u64) -> Self {
        let until = at.map_or(now + UNTIMED_S, |at| at + WINDOW_S + 1);
        let digest = digest_of([scheme.as_bytes()].iter().chain(parts));
        Self { once: Some(Once { digest, until }) }
    }

    pub(super) fn by_password() -> Self {
        Self { once: None }
    }
}

/// Requests that were shown before, and what was answered: a provider that has not got its answer asks again with the same signature,
/// and whoever has overheard that can do no more than hear the answer again. One for all accounts. `T`: where an answer is kept.
#[derive(Debug)]
pub struct Replays<T> {
    seen: Mutex<Seen<T>>,
}

#[derive(Debug)]
struct Seen<T> {
    requests: HashMap<[u8; 32], Shown<T>>,
    /// Those whose answers are kept, oldest first.
    answered: VecDeque<[u8; 32]>,
}

/// A request, as it was shown first.
#[derive(Debug)]
struct Shown<T> {
    until: u64,
    /// All of it ([`Asked::digest`]).
    whole: [u8; 32],
    answer: Option<T>,
}

impl<T> Default for Replays<T> {
    fn default() -> Self {
        Self { seen: Mutex::new(Seen { requests: HashMap::new(), answered: VecDeque::new() }) }
    }
}

impl<T: Default + Clone> Replays<T> {
    /// Where the answer to this request is kept, Unix seconds `now`: an empty place for one that is new, the same place for one that is
    /// shown again. `whole`: its [`Asked::digest`]. Where there are too many to be remembered, all are forgotten.
    ///
    /// # Errors
    /// When its signature was shown with another request, or its answer is kept no more.
    pub fn answer(&self, verified: &Verified, whole: [u8; 32], now: u64) -> Result<T, Forged> {
        let Some(once) = verified.once else { return Ok(T::default()) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { requests, answered } = &mut *seen;
        if requests.len() >= REMEMBERED {
            requests.retain(|_, shown| now < shown.until);
        }
        if let Some(shown) = requests.get(&once.digest).filter(|shown| now < shown.until) {
            if shown.whole != whole {
                return Err(Forged::new("its signature was shown before, with another request"));
            }
            return shown.answer.clone().ok_or(Forged::new("it was shown before, and its answer is kept no more"));
        }
        // A request that is shown again brings no more than the call that it is of; turning every call away would be worse.
        if requests.len() >= REMEMBERED {
            requests.clear();
            answered.clear();
        }
        let answer = T::default();
        requests.insert(once.digest, Shown { until: once.until, whole, answer: Some(answer.clone()) });
        answered.push_back(once.digest);
        if answered.len() > ANSWERS
            && let Some(oldest) = answered.pop_front().and_then(|oldest| requests.get_mut(&oldest))
        {
            oldest.answer = None;
        }
        Ok(answer)
    }
}

/// One digest of several parts, none of which can pass for a piece of another.
pub(super) fn digest_of<'p>(parts: impl IntoIterator<Item = &'p &'p [u8]>) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().try_into().unwrap_or([0; 32])
}

/// Whether a signed time is near ours.
pub(super) fn in_window(at: u64, now: u64) -> Result<(), Forged> {
    if at.abs_diff(now) <= WINDOW_S { Ok(()) } else { Err(Forged::new("its time is too far from ours")) }
}

pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Whether two secrets are the same, without telling how long the real one is.
pub(super) fn same_secret(shown: &str, secret: &Secret) -> bool {
    same(&sha256(shown.as_bytes()), &sha256(secret.expose().as_bytes()))
}

pub(super) fn sha256(text: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, text).as_ref().to_vec()
}

pub(super) fn hmac_is(algorithm: hmac::Algorithm, secret: &Secret, text: &[u8], tag: &[u8]) -> bool {
    hmac::verify(&hmac::Key::new(algorithm, secret.expose().as_bytes()), text, tag).is_ok()
}

/// Bytes of hexadecimal digits, either case.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

/// Basic or Bearer credentials against a password. The user of Basic counts only if there is one to compare with.
pub(super) fn password(asked: &Asked<'_>, user: Option<&str>, secret: Option<&Secret>) -> Result<(), Forged> {
    let secret = secret.ok_or(Forged::new("the account has no stream_password"))?;
    let shown = asked.header("authorization").ok_or(Forged::new("it has no Authorization header"))?;
    let (scheme, value) = shown.split_once(' ').ok_or(Forged::new("its Authorization header is in no known form"))?;
    let good = if scheme.eq_ignore_ascii_case("bearer") {
        same_secret(value.trim(), secret)
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = STANDARD.decode(value.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.ok_or(Forged::new("its Basic credentials are not base64"))?;
        let (name, word) = pair.split_once(':').unwrap_or(("", &pair));
        same_secret(word, secret) & user.is_none_or(|user| same(user.as_bytes(), name.as_bytes()))
    } else {
        return Err(Forged::new("its Authorization header is neither Basic nor Bearer"));
    };
    if good { Ok(()) } else { Err(Forged::new("its password is wrong")) }
}
