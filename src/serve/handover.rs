//! From one process to the next: the listening socket, and the calls (docs/deploys.md).
//!
//! Over a Unix socket of the running relay. The next one says `voxrelay handover N`, N being the form in which calls are written
//! down; gets the listening socket with the answer; says `serving` once it does, is told `yours`, and from then on gets calls, each
//! of which it takes (`+`) or not (`-`), and hears of telephone calls whose streams are on their way. It asks for a call (`?` and a
//! token's hash) whose client has come to it already, and says which stream has come to it (`!` and its token's digest). Whoever says
//! something else is left alone, and changes nothing.
use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Shared,
    phone::{News, Slot, Tickets},
};
use crate::{
    audio::lane::upstream_input,
    call::{
        books::Books,
        door::Door,
        driver::{self, Call, Client},
        returns::{Arrival, Returns},
        tools::OwnTool,
        way::Way,
        written::{Handing, Heir, LARGEST, Written, WrittenDoor},
    },
    config::{KeyHash, USUAL_UPSTREAM},
    net::inherit,
    upstream::{Intent, Wanted},
    wall::unix_now,
    webhook::Hooks,
};

/// The form of what is said here, calls above all: another number wherever a build cannot read what the one before wrote.
const FORM: u32 = 5;
const HELLO: &str = "voxrelay handover";
const SERVING: &str = "serving";
const YOURS: &str = "yours";
/// What a message begins with: a call follows, or news of streams that are on their way.
const CALL: u8 = b'c';
const TICKETS: u8 = b't';
/// News in a message.
const NEWS: usize = 64;
/// A process that connects says what it wants within this.
const ASKS_WITHIN: Duration = Duration::from_secs(2);
/// The relay that runs answers within this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// One that has the listening socket serves within this, or not at all.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
/// Processes that ask at once; more wait.
const ASKERS: usize = 8;
/// A client that has come here before its call is kept waiting for it so long.
const COMES_WITHIN: Duration = Duration::from_secs(3);

/// Why a relay that is to follow another one does not start.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The path is of no use.
    #[error("{path}: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody listens there who is none of us.
    #[error("{0}: whoever listens there is another user's process")]
    Foreign(PathBuf),
    /// Another build, or another process is following already.
    #[error("the relay that listens at {path} does not hand over: {said}; it goes on serving")]
    Refused {
        /// Where.
        path: PathBuf,
        /// In its words.
        said: String,
    },
}

/// The relay that runs, while this one gets ready.
#[derive(Debug)]
pub(super) struct Predecessor {
    stream: UnixStream,
    path: PathBuf,
    listener: Option<TcpListener>,
}

impl Predecessor {
    /// Asks whoever listens at `path`; `None`: nobody does.
    ///
    /// # Errors
    /// When it is none of us, or does not hand over.
    pub(super) async fn ask(path: &Path) -> Result<Option<Self>, HandoverError> {
        let path = path.to_owned();
        let failed = |source| HandoverError::Path { path: path.clone(), source };
        let Some(mut stream) = inherit::connect(&path).await.map_err(failed)? else { return Ok(None) };
        if !inherit::is_ours(&stream) {
            return Err(HandoverError::Foreign(path));
        }
        stream.write_all(format!("{HELLO} {FORM}\n").as_bytes()).await.map_err(failed)?;
        let (said, socket) = inherit::hear_with(&stream, ANSWERS_WITHIN).await.map_err(failed)?;
        let Some(socket) = socket.filter(|_| said == format!("{HELLO} {FORM}")) else {
            return Err(HandoverError::Refused { path, said });
        };
        Ok(Some(Self { stream, path, listener: Some(TcpListener::from(socket)) }))
    }

    /// Its listening socket, if that is the one to listen on.
    pub(super) fn listener(&mut self, wanted: SocketAddr) -> Option<io::Result<tokio::net::TcpListener>> {
        let listener = self.listener.take()?;
        let found = listener.local_addr().ok()?;
        let same = found.ip() == wanted.ip() && [0, found.port()].contains(&wanted.port());
        same.then(|| listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)))
    }

    /// Tells it that this process serves: it leaves.
    ///
    /// # Errors
    /// When it has another one that does.
    pub(super) async fn leaves(&mut self) -> Result<(), HandoverError> {
        let path = self.path.clone();
        let failed = |source| HandoverError::Path { path: path.clone(), source };
        self.stream.write_all(format!("{SERVING}\n").as_bytes()).await.map_err(failed)?;
        match inherit::hear_with(&self.stream, ANSWERS_WITHIN).await {
            Ok((said, _)) if said == YOURS => Ok(()),
            Ok((said, _)) => Err(HandoverError::Refused { path, said }),
            Err(source) => Err(HandoverError::Path { path, source }),
        }
    }

    /// Takes its calls over, until it has none any more.
    pub(super) async fn take_over(self, shared: Arc<Shared>, wishes: Wishes) {
        let (mut reader, writer) = self.stream.into_split();
        let Wishes { mut words, come, told } = wishes;
        let (answers, mut answer) = mpsc::channel::<Vec<u8>>(64);
        let reading = async {
            while let Ok(bytes) = inherit::message(&mut reader, LARGEST + 1).await {
                let call = match bytes.split_first() {
                    Some((&CALL, call)) => call,
                    Some((&TICKETS, news)) => {
                        hear(&shared, news, &told);
                        continue;
                    }
                    _ => return,
                };
                let taken = match Written::read(call).and_then(|written| restore(&shared, written)) {
                    Ok(()) => b'+',
                    Err(why) => {
                        tracing::warn!(why, "a call of the process before could not be taken over");
                        b'-'
                    }
                };
                come.send_modify(|come| *come += 1);
                if answers.send(vec![taken]).await.is_err() {
                    return;
                }
            }
        };
        let writing = async {
            let mut writer: OwnedWriteHalf = writer;
            loop {
                let word = tokio::select! {
                    Some(word) = answer.recv() => word,
                    Some(word) = words.recv() => word,
                    else => return,
                };
                if writer.write_all(&word).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
        tracing::info!("the process before has left");
    }
}

/// What is asked of the process before, and how many calls have come from it.
#[derive(Debug)]
pub(super) struct Wishes {
    words: mpsc::Receiver<Vec<u8>>,
    come: watch::Sender<usize>,
    /// It has told of all streams that were on their way.
    told: watch::Sender<bool>,
}

/// Where clients wait whose calls the process before still has.
#[derive(Debug, Clone)]
pub(super) struct WaitingRoom {
    words: mpsc::Sender<Vec<u8>>,
    come: watch::Receiver<usize>,
    told: watch::Receiver<bool>,
}

impl WaitingRoom {
    pub(super) fn new() -> (Self, Wishes) {
        let ((words, wished), (come, coming)) = (mpsc::channel(64), watch::channel(0));
        let (told, tells) = watch::channel(false);
        (Self { words, come: coming, told: tells }, Wishes { words: wished, come, told })
    }

    /// Waits until the process before has told of all streams that were on their way then.
    pub(super) async fn tickets(&self) {
        let mut told = self.told.clone();
        // One that is gone tells no more.
        let _ = time::timeout(COMES_WITHIN, told.wait_for(|told| *told)).await;
    }

    /// A stream has come here: its token is good there no more.
    pub(super) fn used(&self, slot: &Slot) {
        let mut word = vec![b'!'];
        word.extend(slot.0);
        // Where so much is said at once, it is good there for as long as there is somebody there to show it to.
        let _ = self.words.try_send(word);
    }

    /// Hands somebody to their call as soon as it has come.
    ///
    /// # Errors
    /// Gives the arrival back, when it does not come.
    pub(super) async fn wait(
        mut self,
        returns: &Returns,
        door: &'static str,
        mut arrival: Box<Arrival>,
    ) -> Result<(), Box<Arrival>> {
        let end = Instant::now() + COMES_WITHIN;
        let mut word = vec![b'?'];
        word.extend(arrival.token.0);
        self.come.mark_unchanged();
        if self.words.send(word).await.is_err() {
            return returns.hand_over(door, arrival); // it may have come as the last one
        }
        loop {
            arrival = match returns.hand_over(door, arrival) {
                Err(arrival) => arrival,
                Ok(()) => return Ok(()),
            };
            match time::timeout_at(end, self.come.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return returns.hand_over(door, arrival),
                Err(_) => return Err(arrival),
            }
        }
    }
}

/// Hears of streams that are on their way.
fn hear(shared: &Shared, bytes: &[u8], told: &watch::Sender<bool>) {
    let news: Vec<News> = match ciborium::from_reader(bytes) {
        Ok(news) => news,
        Err(error) => return tracing::warn!(%error, "the process before says of telephone calls what cannot be read"),
    };
    for news in news {
        if news == News::Told {
            told.send_replace(true);
        }
        shared.phones.tickets.hear(news, |tenant, user| {
            let who = shared.gate.by_phone(tenant)?;
            Some(match user {
                Some(user) => shared.gate.for_user(who, user),
                None => who,
            })
        });
    }
}

/// Goes on with a call of the process before.
fn restore(shared: &Arc<Shared>, written: Written) -> Result<(), String> {
    let Written { id, ran, core, door, agent, tier, account, model, who, session, spent, .. } = written;
    let who = shared.gate.knows(who, unix_now()).ok_or("its credential is not good here")?;
    let way = match tier.map(|tier| Way::tier(&tier, &shared.routes, &shared.accounts, &who)) {
        Some(Some(way)) => way,
        // A tier that this process does not have leaves the call where it was.
        lost => {
            let name = if lost.is_some() {
                Some(account.as_str()).filter(|name| *name != USUAL_UPSTREAM)
            } else {
                who.upstream()
            };
            let upstream = shared.accounts.get(name).cloned().ok_or("its tenant's service is not configured")?;
            Way::fixed(upstream, name, &model)
        }
    };
    let intent = match &door {
        WrittenDoor::Thin { audio, input, .. } => {
            if *input != upstream_input(audio.input, way.home().upstream.config().input_rate) {
                return Err("its service takes audio of another rate here".to_owned());
            }
            Intent::Realtime
        }
        WrittenDoor::OpenAi { intent, .. } => *intent,
    };
    let persona = shared.agent(&agent);
    let door = Door::restored(door, persona.clone(), shared.config.audio.gather);
    let mut core = core;
    if let Some(setup) = door.setup() {
        core.has_own_tools(OwnTool::of(&setup.agent));
    }
    // An agent that is not configured here has no secret to sign with.
    let hooks = match persona.filter(|_| door.setup().is_some()) {
        Some(persona) => shared.hooks(&agent, &persona, &who, (&id, door.name())),
        None => Hooks::none(),
    };
    let hold = door.setup().and_then(|setup| shared.hold(&setup.agent));
    let name = door.name();
    let slot = shared.slots.clone().try_acquire_owned().map_err(|_| "all lines are taken")?;
    let license = shared.gate.admit(&id, &who, name).map_err(|denied| denied.to_string())?;
    let books = Books {
        ledger: shared.ledger.clone(),
        prices: shared.prices.clone(),
        call: id.clone(),
        agent,
        account,
        model: model.clone(),
        writer: door.setup().and_then(|setup| setup.agent.transcription.clone()),
        door: name,
    };
    let call = Call {
        core,
        door,
        license,
        wanted: Wanted::new(model, intent),
        way,
        client: Client::Away { outbox: Written::outbox(written.said, written.kept, written.waiting), ran, session },
        ticket: Some(shared.returns.restored(name, written.tokens)),
        books,
        reconnect: shared.reconnect(),
        turns: shared.turns(&who),
        hold,
        hooks,
        budgets: shared.budgets.clone(),
        spent,
        heir: shared.heir.clone(),
        goodbyes: shared.calls.clone(),
        drain: shared.drain.clone(),
        stop: shared.stop.clone(),
        id: id.clone(),
    };
    let span = tracing::info_span!("call", id, tenant = who.tenant_id());
    let task = async move {
        tracing::info!("the call goes on here");
        let end = driver::run(call).await;
        tracing::debug!(%end, "end");
        drop(slot);
    };
    shared.calls.spawn(Box::pin(task).instrument(span));
    Ok(())
}

/// Waits at `listener` for the process that follows, and gives it `socket`. Returns when that one serves.
async fn successor(listener: UnixListener, socket: Arc<OwnedFd>) -> UnixStream {
    let mut askers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if askers.len() < ASKERS => match accepted {
                Ok((stream, _)) => drop(askers.spawn(asked(stream, socket.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "nobody can ask for a handover now");
                    time::sleep(ASKS_WITHIN).await;
                }
            },
            Some(asked) = askers.join_next() => {
                if let Ok(Some(mut stream)) = asked
                    && stream.write_all(format!("{YOURS}\n").as_bytes()).await.is_ok()
                {
                    return stream;
                }
            }
        }
    }
}

/// Somebody asks; `Some`: it is a relay, which has the listening socket and serves.
async fn asked(mut stream: UnixStream, socket: Arc<OwnedFd>) -> Option<UnixStream> {
    use std::os::fd::AsFd as _;
    if !inherit::is_ours(&stream) {
        tracing::warn!("another user's process asked for a handover, and was not heard");
        return None;
    }
    let (said, _) = inherit::hear_with(&stream, ASKS_WITHIN)
        .await
        .inspect_err(|error| tracing::debug!(%error, "somebody asked for a handover and did not say so"))
        .ok()?;
    let want = format!("{HELLO} {FORM}");
    if said != want {
        let shown: String = said.chars().filter(|c| !c.is_control()).take(40).collect();
        tracing::warn!(said = shown, "somebody asked for a handover in another form: refused");
        let _ = stream.write_all(format!("refused: found `{shown}`; allowed: `{want}`\n").as_bytes()).await;
        return None;
    }
    inherit::say_with(&stream, &want, socket.as_fd()).await.ok()?;
    let (said, _) = inherit::hear_with(&stream, SERVES_WITHIN).await.ok()?;
    (said == SERVING).then_some(stream)
}

/// This process, as long as it may be followed by another one.
#[derive(Debug)]
pub(super) struct Offer {
    /// Where it may ask.
    pub(super) path: PathBuf,
    /// What it gets.
    pub(super) socket: Arc<OwnedFd>,
    /// Told when it serves.
    pub(super) heir: Heir,
    /// Likewise; and that it does no more.
    pub(super) followed: watch::Sender<u64>,
    /// Calls are told so by this one.
    pub(super) drain: watch::Sender<Option<Instant>>,
    /// This process leaves in any case.
    pub(super) leaving: CancellationToken,
    /// Calls that it may ask for.
    pub(super) returns: Returns,
    /// Telephone calls whose streams may go there.
    pub(super) tickets: Arc<Tickets>,
}

impl Offer {
    /// Waits for the process that follows, and gives it every call that is to go there. If that one dies while this one is still
    /// here, this one stays, and waits for the next.
    pub(super) async fn keep(self, mut listener: UnixListener) {
        loop {
            let stream = successor(listener, self.socket.clone()).await;
            let (way, mut calls) = mpsc::channel(4);
            self.heir.appears(way);
            self.followed.send_modify(|changes| *changes += 1);
            tracing::info!("another process serves from now on: this one leaves");
            let (reader, writer) = stream.into_split();
            let mut waiting = VecDeque::new();
            let Err(error) = self.give(reader, writer, &mut calls, &mut waiting).await else { return };
            listener = match self.is_alone().await {
                Ok(Some(listener)) => listener,
                Ok(None) => return tracing::warn!(%error, "calls cannot be given away any more: they end here"),
                Err(problem) => {
                    return tracing::warn!(%error, %problem, "the process that follows is gone: calls end with this one");
                }
            };
            tracing::warn!(%error, "the process that followed is gone: this one serves again");
            // Before calls that were on their way hear that they were not taken: they stay.
            self.drain.send_replace(None);
            drop((waiting, calls));
            self.followed.send_modify(|changes| *changes += 1);
        }
    }

    async fn give(
        &self,
        mut reader: OwnedReadHalf,
        mut writer: OwnedWriteHalf,
        calls: &mut mpsc::Receiver<Handing>,
        waiting: &mut VecDeque<oneshot::Sender<bool>>,
    ) -> io::Result<()> {
        let mut news = self.tickets.follow();
        let mut said = Vec::new();
        loop {
            tokio::select! {
                handing = calls.recv() => {
                    let Some(Handing { call, taken }) = handing else { return Ok(()) };
                    waiting.push_back(taken);
                    say(&mut writer, CALL, &call).await?;
                }
                1.. = news.recv_many(&mut said, NEWS) => {
                    let mut bytes = Vec::new();
                    ciborium::into_writer(&said, &mut bytes).map_err(io::Error::other)?;
                    said.clear();
                    say(&mut writer, TICKETS, &bytes).await?;
                }
                word = reader.read_u8() => match word? {
                    word @ (b'+' | b'-') => {
                        let Some(taken) = waiting.pop_front() else { return Err(nonsense()) };
                        // Whoever gave it may have lost patience.
                        let _: Result<(), bool> = taken.send(word == b'+');
                    }
                    b'?' => self.returns.recall(&KeyHash(digest(&mut reader).await?)),
                    b'!' => self.tickets.withdraw(&Slot(digest(&mut reader).await?)),
                    _ => return Err(nonsense()),
                }
            }
        }
    }

    /// Where the next process may ask, if the one that followed is dead and this one can go on in its place.
    async fn is_alone(&self) -> io::Result<Option<UnixListener>> {
        // One that lives listens there: it serves, and this one must leave.
        if self.leaving.is_cancelled() || inherit::connect(&self.path).await?.is_some() {
            return Ok(None);
        }
        inherit::listen(&self.path).map(Some)
    }
}

/// One message.
async fn say(writer: &mut OwnedWriteHalf, what: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len() + 1).map_err(io::Error::other)?;
    writer.write_all(&length.to_be_bytes()).await?;
    writer.write_u8(what).await?;
    writer.write_all(bytes).await
}

async fn digest(reader: &mut OwnedReadHalf) -> io::Result<[u8; 32]> {
    let mut digest = [0; 32];
    time::timeout(ASKS_WITHIN, reader.read_exact(&mut digest)).await??;
    Ok(digest)
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it says what nobody understands")
}
