//! Who writes recordings down: what is asked, what comes of it, and which of the two ways it takes.
//!
//! Stands between the run ([`super::work`]) and the two engines, the transcription address ([`super::relay`]) and a session
//! ([`super::realtime`]). Opens no connection and tries nothing twice.
use std::{path::PathBuf, sync::OnceLock, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{realtime::Realtime, relay::Relay};
use crate::admit::price::Usd;

/// The code of a [`Failure::Stop`] where nothing is at an address.
pub const NO_ADDRESS: &str = "not_found";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// This request can never work.
    Item {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// Too much was asked for: nothing is to be sent for so long.
    Wait {
        /// From now.
        wait: Duration,
        /// Why.
        message: String,
    },
    /// Nobody was reached: no file's fault.
    Away {
        /// Why.
        message: String,
    },
    /// It may have been heard or not; the same request, with the same key, may be sent again.
    Again {
        /// Why.
        message: String,
    },
    /// No request will work, now or today.
    Stop {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// When it may work again; none: when somebody has changed something.
        wait: Option<Duration>,
    },
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its body.
    pub body: Bytes,
    /// What it cost; none: not known.
    pub cost: Option<Usd>,
    /// How long it waited for the account's limits.
    pub waited: Duration,
    /// It was given before, to the same question.
    pub repeated: bool,
    /// The account and the model that answered, where the relay says it.
    pub route: Option<String>,
}

/// A recording, on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The file.
    pub path: PathBuf,
    /// Its name, as the service shall see it.
    pub name: String,
    /// Its media type.
    pub media_type: &'static str,
}

/// How recordings are to be written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The model.
    pub model: String,
    /// The language that is spoken, as the service calls it.
    pub language: Option<String>,
    /// Words that may occur, or the style that is wanted.
    pub prompt: Option<String>,
    /// Times are wanted, where the model has them.
    pub times: bool,
}

impl Wish {
    /// Times are asked for: they are wanted, and the model has them. Only the oldest ones do (realtime-protocol section 9).
    pub fn asks_for_times(&self) -> bool {
        self.times && self.model.starts_with("whisper")
    }
}

/// Who writes recordings down.
pub trait Engine: std::fmt::Debug + Send + Sync {
    /// One recording, or one piece of one. `key`: the same for the same question.
    fn transcribe<'a>(
        &'a self,
        upload: &'a Upload,
        wish: &'a Wish,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Answer, Failure>>;
}

/// By the transcription address, or in sessions where there is none. The first answer decides it for all that follow.
#[derive(Debug)]
pub struct Either {
    rest: Relay,
    sessions: Realtime,
    /// Whether the address is there.
    there: OnceLock<bool>,
}

impl Either {
    /// Nothing is decided yet.
    pub fn new(rest: Relay, sessions: Realtime) -> Self {
        Self { rest, sessions, there: OnceLock::new() }
    }
}

impl Engine for Either {
    fn transcribe<'a>(
        &'a self,
        upload: &'a Upload,
        wish: &'a Wish,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            if self.there.get() != Some(&false) {
                let answer = self.rest.transcribe(upload, wish, key).await;
                let there = match &answer {
                    Ok(_) => true,
                    Err(Failure::Stop { code, .. }) if code == NO_ADDRESS => false,
                    Err(Failure::Again { .. })
                        if self.there.get().is_none() && self.rest.lacks_transcriptions().await =>
                    {
                        false
                    }
                    // A full or broken relay has not said whether it has the address.
                    Err(_) => return answer,
                };
                if *self.there.get_or_init(|| there) {
                    return answer;
                }
            }
            self.sessions.transcribe(upload, wish).await
        })
    }
}
