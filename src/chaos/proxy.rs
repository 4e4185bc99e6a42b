//! The proxy's sockets: one task a connection, which does what its two [`super::lane`]s say.
//!
//! The only part of the room that waits, reads a clock or knows TCP.
use std::{
    io,
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{self, Instant},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    lane::{Action, Lane},
    script::{Direction, Kind, Script},
    stats::{Book, Counters, ProxyStats},
};

/// What the kernel keeps of each direction: less than it would, so that who does not read is soon felt by who writes.
const KERNEL_BUFFER: u32 = 64 << 10;
/// Bytes taken by one read.
const READ: usize = 16 << 10;
/// Time for both sides to end a connection that was closed.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often a connection that is held is asked whether its client has gone, and how long a full table of files rests.
const LOOK: Duration = Duration::from_secs(1);
/// Timers refuse times that are far away.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);

/// A running fault proxy. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    control: watch::Sender<Control>,
    counters: Arc<Counters>,
    _stop_on_drop: DropGuard,
}

/// What is done to all connections at once.
#[derive(Debug, Clone)]
struct Control {
    book: Arc<Book>,
    cut: bool,
    resets: u64,
}

impl Proxy {
    /// Listens on `listen` (port 0 takes a free one), and connects each client to `target`.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(listen: SocketAddr, target: SocketAddr, script: Script) -> io::Result<Self> {
        let socket = socket(listen)?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(1_024)?;
        let addr = listener.local_addr()?;
        let (counters, stop) = (Arc::<Counters>::default(), CancellationToken::new());
        let book = Book::new(script, counters.clone());
        let (control, orders) = watch::channel(Control { book, cut: false, resets: 0 });
        let (tasks, until) = (TaskTracker::new(), stop.clone());
        let all = tasks.clone();
        tasks.spawn(async move { until.run_until_cancelled(accept(listener, target, orders, &all, &until)).await });
        Ok(Self { addr, control, counters, _stop_on_drop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What was seen and done so far.
    pub fn stats(&self) -> ProxyStats {
        self.counters.lock().clone()
    }

    /// Resets every connection that is open now.
    pub fn reset_all(&self) {
        self.control.send_modify(|control| control.resets += 1);
    }

    /// Nothing passes on any connection, and new ones hang, until [`Self::heal`].
    pub fn cut(&self) {
        self.control.send_modify(|control| control.cut = true);
    }

    /// What [`Self::cut`] held back passes, all of it; a scripted blackhole that fell together with it is over too.
    pub fn heal(&self) {
        self.control.send_modify(|control| control.cut = false);
    }

    /// Another script, on all connections. What is at work ends; a moment that has passed comes at once, and a place in the
    /// stream that has passed not any more. Counters go on.
    pub fn set(&self, script: Script) {
        let book = Book::new(script, self.counters.clone());
        self.control.send_modify(|control| control.book = book);
    }
}

fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    Ok(socket)
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    orders: watch::Receiver<Control>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let mut number = 0;
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "the fault proxy cannot take a connection");
                time::sleep(LOOK).await;
                continue;
            }
        };
        number += 1;
        let (orders, stop) = (orders.clone(), stop.clone());
        tasks.spawn(async move {
            // On the heap: both directions with their sockets are large.
            stop.run_until_cancelled(Box::pin(serve(client, target, number, orders))).await;
        });
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Both sides have said so, or the client has before anybody was connected.
    Done,
    Close,
    Reset,
    /// A side takes nothing any more; what it has still said is passed on first.
    Lost,
}

/// Counts an open connection, however it ends.
struct Open(Arc<Counters>);

impl Open {
    fn new(counters: Arc<Counters>) -> Self {
        let mut stats = counters.lock();
        stats.connections += 1;
        stats.connections_now += 1;
        drop(stats);
        Self(counters)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().connections_now -= 1;
    }
}

async fn serve(client: TcpStream, target: SocketAddr, number: u64, mut orders: watch::Receiver<Control>) {
    let began = Instant::now();
    let control = orders.borrow_and_update().clone();
    let _open = Open::new(control.book.counters.clone());
    let _ = client.set_nodelay(true);
    let hold = match control.book.at_connect(number) {
        Some(Kind::Refuse) => return end(End::Reset, &client, None).await,
        Some(Kind::Stall { for_ms }) => for_ms.map_or(Duration::MAX, Duration::from_millis),
        _ => Duration::ZERO,
    };
    let wire = |direction| Wire {
        lane: Lane::new(control.book.clone(), number, direction),
        direction,
        began,
        resets: control.resets,
        orders: orders.clone(),
    };
    let (mut up, mut down) = (wire(Direction::ToServer), wire(Direction::ToClient));
    if let Err(why) = up.before_connect(&client, hold).await {
        return end(why, &client, None).await;
    }
    let server = match connect(target).await {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(%error, %target, "nobody is there behind the fault proxy");
            return end(End::Reset, &client, None).await;
        }
    };
    let why = {
        let (up, down) = (up.pump(&client, &server), down.pump(&server, &client));
        tokio::pin!(up, down);
        tokio::select! {
            biased;
            first = &mut up => both(first, down).await,
            first = &mut down => both(first, up).await,
        }
    };
    end(why, &client, Some(&server)).await;
}

/// How a connection ends one direction of which has ended so.
async fn both(first: End, other: impl Future<Output = End>) -> End {
    if let End::Close | End::Reset = first {
        return first;
    }
    match (first, other.await) {
        (_, other @ (End::Close | End::Reset)) => other,
        (End::Done, End::Done) => End::Done,
        _ => End::Reset,
    }
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let server = socket(target)?.connect(target).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Ends both sides; dropping them does the rest.
async fn end(why: End, client: &TcpStream, server: Option<&TcpStream>) {
    let sides = || [Some(client), server].into_iter().flatten();
    match why {
        End::Done | End::Lost => {}
        // With no time to linger, closing the socket sends a reset.
        End::Reset => sides().for_each(|side| drop(SockRef::from(side).set_linger(Some(Duration::ZERO)))),
        End::Close => {
            sides().for_each(|side| drop(SockRef::from(side).shutdown(Shutdown::Write)));
            let all = async {
                for side in sides() {
                    drain(side).await;
                }
            };
            let _ = time::timeout(GOODBYE, all).await;
        }
    }
}

/// Takes in what still comes: unread bytes would make a reset of the end.
async fn drain(side: &TcpStream) {
    let mut sink = vec![0; READ];
    while side.readable().await.is_ok() {
        match side.try_read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// One direction with its clock and its orders.
struct Wire {
    lane: Lane,
    direction: Direction,
    began: Instant,
    /// Resets that were ordered before this connection.
    resets: u64,
    orders: watch::Receiver<Control>,
}

impl Wire {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Follows what was ordered; true: a reset.
    fn obey(&mut self, now: Duration) -> bool {
        let control = self.orders.borrow_and_update();
        self.lane.adopt(now, &control.book);
        self.lane.cut(control.cut);
        if control.resets > self.resets {
            control.book.counters.fault(Kind::Reset.name());
            return true;
        }
        false
    }

    async fn sleep_until(began: Instant, at: Option<Duration>) {
        let longest = began.elapsed() + LONGEST_SLEEP;
        time::sleep_until(began + at.map_or(longest, |at| at.min(longest))).await;
    }

    /// Waits until the server may be connected: where nothing passes, nobody hears of a connection.
    async fn before_connect(&mut self, client: &TcpStream, hold: Duration) -> Result<(), End> {
        loop {
            let now = self.now();
            if self.obey(now) {
                return Err(End::Reset);
            }
            if now >= hold && !self.lane.held(now) {
                return Ok(());
            }
            match self.lane.ending() {
                Some(Action::Reset) => return Err(End::Reset),
                Some(_) => return Err(End::Close),
                None => {}
            }
            // Nothing may be read, but that the client has gone can be seen.
            if client.ready(Interest::READABLE).now_or_never().and_then(Result::ok).is_some_and(|r| r.is_read_closed())
            {
                return Err(End::Done);
            }
            let next = self.lane.deadline(now).unwrap_or(Duration::MAX).min(now + LOOK);
            let next = if hold > now { next.min(hold) } else { next };
            tokio::select! {
                ordered = self.orders.changed() => if ordered.is_err() { return Err(End::Done) },
                () = Self::sleep_until(self.began, Some(next)) => {}
            }
        }
    }

    /// Passes bytes until one of the ends.
    async fn pump(&mut self, from: &TcpStream, to: &TcpStream) -> End {
        let mut buffer = vec![0; READ];
        loop {
            let now = self.now();
            if self.obey(now) {
                return End::Reset;
            }
            let full = match self.lane.poll(now) {
                Some(Action::Write(bytes)) => match to.try_write(&bytes) {
                    Ok(written) => {
                        self.lane.wrote(now, written);
                        self.counters().passed(self.direction, written);
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                    Err(_) => return End::Lost,
                },
                Some(Action::Shut) => {
                    let _ = SockRef::from(to).shutdown(Shutdown::Write);
                    continue;
                }
                Some(Action::Close) => return End::Close,
                Some(Action::Reset) => return End::Reset,
                None => false,
            };
            if self.lane.finished() {
                return End::Done;
            }
            let room = self.lane.room(now).min(READ);
            let next = self.lane.deadline(now);
            tokio::select! {
                biased;
                ordered = self.orders.changed() => if ordered.is_err() { return End::Lost },
                () = Self::sleep_until(self.began, next) => {}
                _ = to.writable(), if full => {}
                _ = from.readable(), if room > 0 => self.read(from, buffer.get_mut(..room).unwrap_or_default()),
            }
        }
    }

    fn read(&mut self, from: &TcpStream, buffer: &mut [u8]) {
        let got = from.try_read(buffer);
        let now = self.now();
        match got {
            Ok(0) => self.lane.end(),
            Ok(n) => self.lane.take(now, Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.lane.gone(),
        }
    }

    fn counters(&self) -> Arc<Counters> {
        self.orders.borrow().book.counters.clone()
    }
}

#[cfg(test)]
mod tests;
