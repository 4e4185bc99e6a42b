//! The service's side of a call: the session that runs, and the one that shall follow it.
//!
//! Opens, switches and says goodbye as it is told; a session that waits is kept alive. Decides nothing.
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio_util::task::TaskTracker;

use super::way::{On, Opened, Opening, Way, Whose};
use crate::{
    admit::{quota::SessionSeat, router::Route},
    net::ws::{Frame, Socket},
    upstream::{Intent, Shape, UpstreamError, open::Session},
};

/// How long a goodbye to a session may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A session's socket, and how its messages are written.
#[derive(Debug)]
pub struct Up {
    /// Its id at the service.
    pub id: String,
    /// Its socket.
    pub socket: Socket,
    /// How its messages are written.
    pub shape: Shape,
    /// Its place among those that the account may have.
    pub seat: Option<SessionSeat>,
    /// Where it runs.
    pub on: Arc<On>,
}

impl Up {
    /// Leaves it; its place is free when it is gone.
    pub async fn goodbye(self: Box<Self>) {
        self.socket.close(1000, "", GOODBYE).await;
    }
}

impl From<Opened> for Up {
    fn from(Opened { session, on }: Opened) -> Self {
        let Session { id, socket, shape, seat, .. } = session;
        Self { id, socket, shape, seat, on }
    }
}

enum State {
    Gone,
    Opening(Opening),
    Up(Box<Up>),
}

/// What has come of waiting.
#[derive(Debug)]
pub enum Came {
    /// The running session can be read, or can take more.
    Ready,
    /// The session that was missing.
    Opened(Box<Result<Opened, UpstreamError>>),
    /// The session that shall follow is up, will end at this moment in Unix seconds, and waits; or it cannot be had.
    Next(Result<Option<u64>, UpstreamError>),
}

/// The service's leg.
pub struct ServiceLeg {
    whose: Arc<Whose>,
    way: Way,
    patience: Duration,
    running: State,
    next: State,
    /// Where the last one runs, or ran.
    current: Option<Route>,
    /// The place of a session that is lost.
    seat: Option<SessionSeat>,
    goodbyes: TaskTracker,
}

impl std::fmt::Debug for ServiceLeg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceLeg").field("call", &self.whose.call).finish_non_exhaustive()
    }
}

impl ServiceLeg {
    /// A leg whose first session is being opened. `patience`: how long a lost one is tried to be had anew.
    pub fn new(whose: Whose, way: Way, patience: Duration, goodbyes: TaskTracker) -> Self {
        let whose = Arc::new(whose);
        let running = State::Opening(way.open(&whose, &goodbyes));
        Self { whose, way, patience, running, next: State::Gone, current: None, seat: None, goodbyes }
    }

    /// As [`Self::new`], for a call that had a session elsewhere, on this route; it is not opened before it is asked for.
    pub fn resumed(whose: Whose, way: Way, patience: Duration, goodbyes: TaskTracker, current: Route) -> Self {
        let (running, next, current) = (State::Gone, State::Gone, Some(current));
        Self { whose: Arc::new(whose), way, patience, running, next, current, seat: None, goodbyes }
    }

    /// `seat`: that of the session before; none: it needs one of its own.
    fn another(&self, seat: Option<SessionSeat>) -> Opening {
        self.way.reopen(&self.whose, &self.goodbyes, self.patience, self.current.clone(), seat)
    }

    /// Where its sessions come from.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// What kind of session it is.
    pub fn intent(&self) -> Intent {
        self.whose.wanted.intent
    }

    /// The session that runs.
    pub fn running(&mut self) -> Option<&mut Up> {
        match &mut self.running {
            State::Up(up) => Some(up),
            State::Gone | State::Opening(_) => None,
        }
    }

    /// As [`Self::running`], to look at.
    pub fn socket(&self) -> Option<&Socket> {
        match &self.running {
            State::Up(up) => Some(&up.socket),
            State::Gone | State::Opening(_) => None,
        }
    }

    /// The session that was opened runs.
    pub fn runs(&mut self, opened: Opened) {
        self.current = Some(opened.on.route.clone());
        self.running = State::Up(Box::new(opened.into()));
    }

    /// Where the running session runs.
    pub fn on(&self) -> Option<&Arc<On>> {
        match &self.running {
            State::Up(up) => Some(&up.on),
            State::Gone | State::Opening(_) => None,
        }
    }

    /// The running session's id.
    pub fn id(&self) -> Option<&str> {
        match &self.running {
            State::Up(up) => Some(&up.id),
            State::Gone | State::Opening(_) => None,
        }
    }

    /// The running session is lost.
    pub fn lost(&mut self) {
        if let State::Up(up) = std::mem::replace(&mut self.running, State::Gone) {
            self.seat = up.seat;
        }
    }

    /// Opens a session in place of the running one; one that is being opened to follow it will do.
    pub fn dial(&mut self) {
        if let State::Up(up) = &mut self.running {
            self.seat = up.seat.take();
        }
        self.leave();
        let seat = self.seat.take();
        self.running = State::Opening(match std::mem::replace(&mut self.next, State::Gone) {
            State::Opening(opening) => self.or_another(opening, seat),
            State::Up(up) => {
                self.goodbyes.spawn(up.goodbye());
                self.another(seat)
            }
            State::Gone => self.another(seat),
        });
    }

    /// One that was on its way may end without a session, since it has waited for a place of its own, or has been tried for long: then
    /// there is this one.
    fn or_another(&self, opening: Opening, seat: Option<SessionSeat>) -> Opening {
        let another = self.another(seat);
        Box::pin(async move {
            match opening.await {
                Err(error) if error.verdict().transient => another.await,
                done => done,
            }
        })
    }

    /// Opens a session beside the running one.
    pub fn dial_next(&mut self) {
        let another = State::Opening(self.another(None));
        if let State::Up(up) = std::mem::replace(&mut self.next, another) {
            self.goodbyes.spawn(up.goodbye());
        }
    }

    /// Leaves the running session for the one beside it.
    pub fn switch(&mut self) {
        self.leave();
        self.running = std::mem::replace(&mut self.next, State::Gone);
        self.seat = None; // the next one has its own
        self.current = self.on().map(|on| on.route.clone()).or(self.current.take());
    }

    fn leave(&mut self) {
        if let State::Up(up) = std::mem::replace(&mut self.running, State::Gone) {
            self.goodbyes.spawn(up.goodbye());
        }
    }

    /// Leaves every session.
    pub fn leave_all(&mut self) {
        if let Some(up) = self.end() {
            self.goodbyes.spawn(up.goodbye());
        }
    }

    /// Gives up the session that waits, and hands out the running one for its goodbye.
    pub fn end(&mut self) -> Option<Box<Up>> {
        if let State::Up(up) = std::mem::replace(&mut self.next, State::Gone) {
            self.goodbyes.spawn(up.goodbye());
        }
        match std::mem::replace(&mut self.running, State::Gone) {
            State::Up(up) => Some(up),
            State::Gone | State::Opening(_) => None,
        }
    }

    /// Waits for any of what [`Came`] tells.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        if let Poll::Ready(came) = self.poll_next(cx) {
            return Poll::Ready(came);
        }
        match &mut self.running {
            State::Gone => Poll::Pending,
            State::Opening(opening) => opening.as_mut().poll(cx).map(|done| Came::Opened(Box::new(done))),
            State::Up(up) if up.socket.poll_readable(cx).is_ready() => Poll::Ready(Came::Ready),
            State::Up(up) => up.socket.poll_writable(cx).map(|_| Came::Ready),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        match &mut self.next {
            State::Gone => Poll::Pending,
            State::Opening(opening) => {
                let Poll::Ready(done) = opening.as_mut().poll(cx) else { return Poll::Pending };
                Poll::Ready(Came::Next(match done {
                    Ok(opened) => {
                        let expires_at = opened.session.expires_at;
                        self.next = State::Up(Box::new(opened.into()));
                        Ok(expires_at)
                    }
                    Err(error) => {
                        self.next = State::Gone;
                        Err(error)
                    }
                }))
            }
            State::Up(up) => loop {
                // Nobody has asked it anything: it pings, which is answered here, or goes.
                let broken = match up.socket.read() {
                    Ok(Some(Frame::Closed { code, reason })) => UpstreamError::closed(code, &reason),
                    Ok(Some(_)) => continue,
                    Ok(None) => match up.socket.flush() {
                        Ok(()) if up.socket.poll_readable(cx).is_pending() => return Poll::Pending,
                        Ok(()) => continue,
                        Err(error) => UpstreamError::Broken(error.to_string()),
                    },
                    Err(error) => UpstreamError::Broken(error.to_string()),
                };
                self.next = State::Gone;
                return Poll::Ready(Came::Next(Err(broken)));
            },
        }
    }
}
