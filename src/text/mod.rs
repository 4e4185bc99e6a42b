//! REQUESTS FOR TEXT: responses (`/v1/responses`) and transcriptions of recordings (`/v1/audio/transcriptions`), under the same limits,
//! routes, budgets and ledger as calls.
//!
//! A request goes through these rooms: [`ask`] reads what it wants, [`tier`] says which model answers, [`hunt`] asks budgets and quota and
//! sends it, again where that helps and nothing of an answer was passed on, [`answer`] passes the answer on, and [`run`] settles what it
//! has used. Calls go first: a request of class `batch` gets only what they leave. Stands on `admit` and `upstream`, beside `call`;
//! knows nothing of addresses and headers of ours ([`crate::http::text`]).
//!
//! | file | what it is |
//! |---|---|
//! | [`ask`] | what a request wants, and how much it may use |
//! | [`tier`] | which model answers: the three tiers |
//! | [`hunt`] | one request's way to the service |
//! | [`run`] | what it was granted, and what it has used |
//! | [`answer`] | an answer on its way back, whole or as a stream |
//! | [`sse`] | the events in a stream, found while it passes |
//! | [`outcome`] | what an answer says of itself |
//! | [`share`] | a tenant's own limits, and places |
//! | [`batches`] | requests that have a day: files, batches, and their answers |
//! | [`expert`] | a question of an agent's, from a call (`ask_expert`) |
//! | [`kept`] | answers for whoever comes again |
//! | [`room`] | bodies that are held |
//! | [`owned`] | whose responses can be gone on from |
pub mod answer;
pub mod ask;
pub mod batches;
pub mod expert;
pub mod hunt;
pub mod kept;
pub mod outcome;
pub mod owned;
pub mod room;
pub mod run;
pub mod share;
pub mod sse;
pub mod tier;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An answer of a model.
    Response,
    /// The words of a recording.
    Transcription,
}

impl Kind {
    /// The address under the service's base, and ours.
    pub fn path(self) -> &'static str {
        match self {
            Self::Response => "/responses",
            Self::Transcription => "/audio/transcriptions",
        }
    }

    /// The door, as the ledger and metrics call it.
    pub fn door(self) -> &'static str {
        match self {
            Self::Response => "responses",
            Self::Transcription => "transcriptions",
        }
    }
}
