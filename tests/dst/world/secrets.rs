//! Client secrets for sessions: the real cache of them, on the world's clock, with a mint of its own.
//!
//! The cache waits by itself, so it has a clock of its own; that one is moved on to the world's whenever a secret is wanted.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    time::{self, Instant},
};
use voxrelay::{
    admit::Principal,
    config::Secret,
    upstream::{
        UpstreamError,
        rest::{Answer, Minted},
        secrets::{Mint, Order, Secrets},
    },
};

use crate::check::At;

/// Makes secrets, and remembers when they end.
#[derive(Debug, Clone)]
struct Maker {
    life: Duration,
    made: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Mint for Maker {
    async fn mint(&self, _: Order) -> Result<Minted, UpstreamError> {
        let began = Instant::now();
        time::sleep(Duration::from_millis(80)).await;
        let mut made = self.made.lock().unwrap();
        let key = format!("ek_{}", made.len());
        made.insert(key.clone(), began + self.life);
        let life = self.life.saturating_sub(Duration::from_secs(5));
        Ok(Minted { value: Secret::new(key), life, answer: Answer(Value::Null) })
    }
}

/// The secrets of a world.
#[derive(Debug)]
pub(super) struct Purse {
    runtime: Runtime,
    began: Instant,
    maker: Maker,
    secrets: Arc<Secrets<Maker>>,
}

impl Purse {
    pub(super) fn new(life: Duration) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let maker = Maker { life, made: Arc::default() };
        let began = runtime.block_on(async { Instant::now() });
        Self { runtime, began, secrets: Secrets::new(maker.clone()), maker }
    }

    /// A secret, as a connection that is up at `now` has it; and whether the service finds that it has expired.
    pub(super) fn take(&mut self, now: At) -> (String, bool) {
        let order =
            Order::new(&json!({"model": "gpt-realtime"}), self.maker.life.as_secs(), &Principal::operator(), None);
        let lent = self.runtime.block_on(async {
            time::advance((self.began + now).saturating_duration_since(Instant::now())).await;
            self.secrets.get(&order, 0.0).await
        });
        let key = lent.expect("the mint makes one whenever it is asked").value.expose().to_owned();
        let until = self.maker.made.lock().unwrap().get(&key).copied();
        (key, until.is_none_or(|until| until <= self.began + now))
    }

    /// Secrets that were made.
    pub(super) fn minted(&self) -> u64 {
        self.maker.made.lock().unwrap().len() as u64
    }
}
