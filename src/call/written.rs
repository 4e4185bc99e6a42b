//! A call written down, so that another process goes on with it: what its client, its session and its accounts need.
//!
//! Not carried: the sockets, which are lost as any socket may be; and what filters and codecs of the door hold, a few
//! milliseconds of audio that begin anew (but for half a sample, without which all that follows would be noise). What cannot be read
//! here again is refused as a whole, and its client begins anew.
use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};

use super::core::Core;
use crate::{
    admit::{budget::Amount, principal::Named},
    audio::Format,
    beta::BetaClient,
    client::wire::AudioFormats,
    config::{AgentConfig, KeyHash},
    net::outbox::{Kind, Outbox},
    upstream::Intent,
};

/// The largest call that is handed over, bytes: a minute of audio or two, 4 MiB of what was said, 32 MiB that wait for a client that
/// owns its conversation, and room.
pub const LARGEST: usize = 64 << 20;
/// The process that follows takes a call within this.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);

/// What a door must have again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum WrittenDoor {
    /// The thin one.
    Thin {
        /// What the client sends and gets.
        audio: AudioFormats,
        /// What goes upstream.
        input: Format,
        /// What comes from there.
        output: Format,
        /// The service finds the turns.
        auto_turns: bool,
        /// Half a sample whose other half comes with the next message.
        half: Option<u8>,
        /// The agent, for a process that has none of its name.
        persona: Box<AgentConfig>,
    },
    /// OpenAI's own. Its client has asked to be able to come back.
    OpenAi {
        /// The model that the client asked for, in its own words.
        asked: Option<String>,
        /// A legacy client.
        beta: Option<Box<BetaClient>>,
        /// What kind of session it has.
        intent: Intent,
    },
}

/// A call.
#[derive(Debug, Serialize, Deserialize)]
pub struct Written {
    /// Its id.
    pub id: String,
    /// How long it has run.
    pub ran: Duration,
    /// What decides.
    pub core: Core,
    /// What its client speaks.
    pub door: WrittenDoor,
    /// The agent's name.
    pub agent: String,
    /// The tier that its sessions are opened by, if there is one.
    pub tier: Option<String>,
    /// The account of the session that it had, as the ledger calls it.
    pub account: String,
    /// The model that answers.
    pub model: String,
    /// Who speaks for it.
    pub who: Named,
    /// The session that it had, for what is still to be booked.
    pub session: String,
    /// What it has spent.
    pub spent: Amount,
    /// The ways back to it.
    pub tokens: Vec<KeyHash>,
    /// The number of the newest message that the client was told.
    pub said: u64,
    /// The newest of them, each whether it is binary.
    pub kept: Vec<(bool, Bytes)>,
    /// What it is still to be told.
    pub waiting: Vec<(bool, Bytes)>,
}

impl Written {
    /// What the client was told, and shall be.
    pub fn with_outbox(mut self, outbox: &Outbox) -> Self {
        self.said = outbox.said();
        self.kept = outbox.kept().map(|said| (said.binary, said.payload.clone())).collect();
        // That this process goes away is no news for a client of the next one.
        let news = |text: &[u8]| !text.starts_with(br#"{"type":"draining""#);
        let waiting = outbox.waiting().filter(|queued| queued.kind == Kind::Binary || news(&queued.payload));
        self.waiting = waiting.map(|queued| (queued.kind == Kind::Binary, queued.payload.clone())).collect();
        self
    }

    /// The same, to be gone on with.
    pub fn outbox(said: u64, kept: Vec<(bool, Bytes)>, waiting: Vec<(bool, Bytes)>) -> Outbox {
        let mut outbox = Outbox::restored(said, kept, Instant::now());
        for (binary, payload) in waiting {
            if binary { outbox.binary(payload) } else { outbox.text(payload) }
        }
        outbox
    }

    /// As bytes; `None`: it is too large.
    pub fn write(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).ok()?;
        (bytes.len() <= LARGEST).then_some(bytes)
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are no call as this build writes it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        ciborium::from_reader(bytes).map_err(|error| error.to_string())
    }
}

/// A call on its way to the process that follows.
#[derive(Debug)]
pub struct Handing {
    /// The call, written down.
    pub call: Vec<u8>,
    /// Told whether it was taken; dropped: nobody knows.
    pub taken: oneshot::Sender<bool>,
}

/// The process that follows, once it serves.
#[derive(Debug, Clone, Default)]
pub struct Heir(Arc<ArcSwapOption<mpsc::Sender<Handing>>>);

impl Heir {
    /// It is there, and gets calls by this way, as long as somebody is at its other end.
    pub fn appears(&self, way: mpsc::Sender<Handing>) {
        self.0.store(Some(Arc::new(way)));
    }

    /// It is there.
    pub fn is_there(&self) -> bool {
        self.0.load().as_ref().is_some_and(|way| !way.is_closed())
    }

    /// Gives it a call. Whether it has taken it; `None`: it is gone.
    pub async fn take(&self, call: Vec<u8>) -> Option<bool> {
        let way = self.0.load_full()?;
        let (taken, answer) = oneshot::channel();
        let given = async {
            way.send(Handing { call, taken }).await.ok()?;
            answer.await.ok()
        };
        time::timeout(TAKEN_WITHIN, given).await.unwrap_or(Some(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admit::Principal,
        call::core::{Input, Life, Plan, Resume},
    };

    fn written(audio: usize) -> Written {
        let second = Duration::from_secs(1);
        let life = Life {
            call: "call_1".into(),
            max: 3_600 * second,
            idle: None,
            silence: None,
            stall: 10 * second,
            credential: None,
        };
        let mut core = Core::owner(life, Plan::none(), Some(Resume { token: "secret".into(), window: 30 * second }));
        core.handle(second, Input::SessionUp(None));
        core.handle(second, Input::Audio { length: second, upstream: &vec![7; audio] });
        while core.poll(second, true).is_some() {}
        let mut outbox = Outbox::with_journal();
        for text in ["one", "two", "three"] {
            outbox.text(Bytes::from(text));
        }
        for _ in 0..2 {
            let next = outbox.pop().unwrap();
            let counts = next.counts();
            outbox.taken(Instant::now(), next.kind, &next.payload, counts);
        }
        outbox.received(1);
        outbox.text(Bytes::from(r#"{"type":"draining","deadline_ms":10000}"#));
        outbox.binary(Bytes::from(vec![1, 2, 3]));
        Written {
            id: "call_1".into(),
            ran: 7 * second,
            core,
            door: WrittenDoor::Thin {
                audio: AudioFormats { input: Format::PCM_24K, output: Format::PCM_24K },
                input: Format::PCM_24K,
                output: Format::PCM_24K,
                auto_turns: true,
                half: Some(9),
                persona: Box::default(),
            },
            agent: "default".into(),
            tier: Some("fast".into()),
            account: "default".into(),
            model: "model".into(),
            who: Principal::operator().named(),
            session: "sess_1".into(),
            spent: Amount { usd: None, tokens: 90 },
            tokens: vec![KeyHash([3; 32])],
            said: 0,
            kept: Vec::new(),
            waiting: Vec::new(),
        }
        .with_outbox(&outbox)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_is_read_as_it_was() {
        let before = written(96_000);
        let bytes = before.write().unwrap();
        assert!(bytes.len() < 3 * 96_000, "{} bytes: audio is written as bytes", bytes.len());
        assert!(!bytes.windows(6).any(|six| six == b"secret"), "a token is not to be written down");
        let after = Written::read(&bytes).unwrap();
        assert_eq!(format!("{after:?}"), format!("{:?}", Written { core: after.core.clone(), ..before }));
        assert_eq!(after.write().unwrap(), bytes);
        assert_eq!((after.said, after.kept.len(), after.tokens.len()), (2, 1, 1));
        assert!(matches!(after.door, WrittenDoor::Thin { half: Some(9), auto_turns: true, .. }));
        assert_eq!(after.waiting, [(false, Bytes::from("three")), (true, Bytes::from(vec![1, 2, 3]))]);
        let mut outbox = Written::outbox(after.said, after.kept, after.waiting);
        assert!(outbox.has_since(1) && !outbox.has_since(0) && !outbox.has_since(3));
        assert_eq!(outbox.say_again(1), Some(0));
        let said: Vec<_> = std::iter::from_fn(|| outbox.pop()).map(|next| next.payload).collect();
        assert_eq!(said, [Bytes::from("two"), Bytes::from("three"), Bytes::from(vec![1, 2, 3])]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_or_broken_is_refused() {
        let mut large = written(0);
        large.waiting.push((true, Bytes::from(vec![0; LARGEST])));
        assert_eq!(large.write(), None);
        let bytes = written(960).write().unwrap();
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(Written::read(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Written::read(b"{}").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_takes_is_not_taken() {
        let heir = Heir::default();
        assert!(!heir.is_there() && heir.take(Vec::new()).await.is_none());
        let (way, mut calls) = mpsc::channel(1);
        heir.appears(way);
        let answers = async move {
            for answer in [Some(true), Some(false), None] {
                let Handing { taken, .. } = calls.recv().await.unwrap();
                let _: Option<Result<(), bool>> = answer.map(|answer| taken.send(answer));
            }
            std::future::pending::<()>().await;
        };
        let given = async { [heir.take(vec![1]).await, heir.take(vec![2]).await, heir.take(vec![3]).await] };
        tokio::select! {
            given = given => assert_eq!(given, [Some(true), Some(false), None]),
            () = answers => {}
        }
        assert!(!heir.is_there() && heir.take(vec![4]).await.is_none(), "it is gone again");
    }
}
