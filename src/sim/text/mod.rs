//! Recordings and text over REST: `/audio/transcriptions`, `/responses`, `/files` and `/batches`, at `/v1` and `/openai/v1`.
//!
//! The same keys, accounts, limits and faults as for sessions; what is answered follows from what is asked, so that two
//! runs and two clients get the same. It follows the service's specification as far as realtime-protocol section 9 tells it, and
//! its error texts where they are known; a guess is called one where it is made.
//!
//! | file | what it is |
//! |---|---|
//! | [`config`], [`count`] | what can be turned, what is counted |
//! | `visit` | what all requests have in common: fault, key, limits, headers, statistics |
//! | `sse` | a stream of events and how it breaks |
//! | `transcriptions`, `form`, `subtitles`, `hear` | a recording: the address, the upload, the formats, the words |
//! | `responses`, `ask`, `say`, `render` | a text: the address, the request, what is answered, as JSON and as events |
//! | `schema`, `fill` | strict schemas: whether one is, and JSON that fits it |
//! | `files`, `batches` | what is not urgent |
use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use tokio::{sync::Semaphore, time::Instant};

use super::session::World;

mod ask;
mod batches;
pub mod config;
pub mod count;
mod files;
mod fill;
mod form;
pub(super) mod hear;
mod render;
mod responses;
mod say;
mod schema;
mod sse;
mod subtitles;
mod transcriptions;
mod visit;

pub use config::TextConfig;
pub use count::TextStats;

/// Recordings that are decoded at once: each holds all its samples.
const DECODING: usize = 2;

/// What these addresses remember.
#[derive(Debug)]
struct Text {
    world: Arc<World>,
    /// When the simulator began: its limits count from there.
    began: Instant,
    decoding: Semaphore,
    responses: Mutex<responses::Kept>,
    files: Mutex<files::Files>,
    batches: Mutex<batches::Batches>,
}

impl Text {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

/// The addresses, for OpenAI's base and for Azure's. `began`: where the limits' time begins.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(world: Arc<World>, began: Instant) -> Router<S> {
    let text = Arc::new(Text {
        world,
        began,
        decoding: Semaphore::new(DECODING),
        responses: Mutex::default(),
        files: Mutex::default(),
        batches: Mutex::default(),
    });
    let mut router = Router::new();
    for base in ["/v1", "/openai/v1"] {
        router = router
            .route(&format!("{base}/audio/transcriptions"), post(transcriptions::create))
            .route(&format!("{base}/responses"), post(responses::create))
            .route(&format!("{base}/responses/{{id}}"), get(responses::read).delete(responses::delete))
            .route(&format!("{base}/files"), post(files::create))
            .route(&format!("{base}/files/{{id}}"), get(files::read).delete(files::delete))
            .route(&format!("{base}/files/{{id}}/content"), get(files::content))
            .route(&format!("{base}/batches"), post(batches::create).get(batches::list))
            .route(&format!("{base}/batches/{{id}}"), get(batches::read))
            .route(&format!("{base}/batches/{{id}}/cancel"), post(batches::cancel));
    }
    // Each address has a limit of its own, and tells it in its own words.
    router.layer(DefaultBodyLimit::disable()).with_state(text)
}

/// A number for a content: the same for the same.
fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
