//! Sends what an account asks of its provider's REST API, and reads what becomes of it.
use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::time::{self, Instant};

use crate::{
    net::tls,
    phone::{
        Account,
        rest::{Ask, Done, Failure},
    },
};

/// A provider answers within this.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Answers are not longer, bytes.
const MAX_ANSWER: usize = 256 << 10;
/// A provider that is busy is asked again after so long.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// Why a provider has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// It said so, and perhaps when to ask again.
    #[error("{failure}")]
    Refused {
        /// In its words.
        failure: Failure,
        /// `Retry-After`
        retry_after: Option<Duration>,
    },
    /// It could not be asked. The library's words name no more than the address.
    #[error("the provider cannot be reached: {0}")]
    Unreachable(String),
    /// It was asked, and has not answered.
    #[error("the provider has not answered: {0}")]
    Unanswered(String),
}

/// One for all accounts.
#[derive(Debug, Clone)]
pub(crate) struct Sender(reqwest::Client);

impl Sender {
    /// # Errors
    /// When the library cannot be set up.
    pub(crate) fn new() -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client()?)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("voxrelay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self(http))
    }

    /// Asks once.
    ///
    /// # Errors
    /// What the provider says, or why it says nothing.
    pub(crate) async fn send(&self, account: &Account, ask: &Ask) -> Result<Done, SendError> {
        self.send_within(PATIENCE, account, ask).await
    }

    /// The same, where the provider answers within so long.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) async fn send_within(
        &self,
        patience: Duration,
        account: &Account,
        ask: &Ask,
    ) -> Result<Done, SendError> {
        let lost = |error: reqwest::Error| match error.is_connect() {
            true => SendError::Unreachable(error.without_url().to_string()),
            false => SendError::Unanswered(error.without_url().to_string()),
        };
        let mut request = self.0.request(ask.method.clone(), &ask.url).timeout(patience);
        request = request.header("authorization", ask.authorization.expose()).body(ask.body.clone());
        if let Some(kind) = ask.content_type {
            request = request.header("content-type", kind);
        }
        let answer = request.send().await.map_err(lost)?;
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let (mut body, mut pieces) = (Vec::new(), answer.bytes_stream());
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece.map_err(lost)?);
            if body.len() > MAX_ANSWER {
                break;
            }
        }
        account.done(ask.act, status, &body).map_err(|failure| SendError::Refused { failure, retry_after })
    }

    /// Asks until it is done, where a refusal passes; the log says what became of it. For what nobody waits for.
    pub(crate) async fn insist(&self, account: &Arc<Account>, ask: Ask) {
        let began = Instant::now();
        for pause in AGAIN.into_iter().map(Some).chain([None]) {
            let done = self.send(account, &ask).await;
            let (name, act) = (account.name(), ask.act.name());
            match (done, pause) {
                (Ok(Done { gone, .. }), _) => {
                    let took_ms = began.elapsed().as_millis();
                    tracing::debug!(account = name, act, gone, took_ms, "the provider has done it");
                    return;
                }
                (Err(SendError::Refused { failure, .. }), Some(pause)) if failure.is_passing() => {
                    time::sleep(pause).await;
                }
                (Err(SendError::Unreachable(_) | SendError::Unanswered(_)), Some(pause)) => time::sleep(pause).await,
                (Err(error), _) => {
                    tracing::warn!(account = name, act, %error, "the provider has not done it");
                    return;
                }
            }
        }
    }
}
