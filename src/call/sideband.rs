//! A call whose audio goes past us: by WebRTC or telephone, straight to the service. We join it by its id, so that it obeys our
//! clock all the same, and count what it costs.
//!
//! [`Watch`] decides, in virtual time; [`run`] waits and dials. The socket may end although the call goes on, and the call
//! may end without a word on it (realtime-protocol section 8): so it is joined again until the service no longer knows it,
//! and whatever becomes of the socket, the clock runs on. Ends by hanging up.
use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    At,
    books::{Booked, Books},
    core::Life,
    end::End,
};
use crate::{
    admit::{Cut, License},
    net::ws::{Frame, Socket},
    observe::fact::Fact,
    upstream::{
        Event, UpstreamError, Wanted, ga,
        limits::{self, Source},
        open::Upstream,
        rest::Act,
    },
};

/// Pauses between joins.
const JOIN_AGAIN: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// A socket that says nothing is asked whether it lives, and left after another while.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// Pauses between tries to hang up.
const HANG_UP_AGAIN: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// A call is hung up so long before a server that goes away is gone.
const BEFORE_THE_END: Duration = Duration::from_secs(3);
/// Longest try to end a call that is to end.
const HANG_UP_WITHIN: Duration = Duration::from_secs(600);

/// A call to watch.
#[derive(Debug)]
pub struct Watched {
    /// Its limits.
    pub life: Life,
    /// Its right to go on, and who speaks for it.
    pub license: License,
    /// The service's id of it, how it came about, and where its rows go.
    pub books: Books,
    /// The account that it runs on.
    pub upstream: Upstream,
    /// Set when the server goes away, and nobody will watch any more: the moment at which its patience ends.
    pub drain: watch::Receiver<Option<Instant>>,
    /// It goes away at once.
    pub stop: CancellationToken,
}

/// When the call must end.
#[derive(Debug, Clone, Copy)]
struct Watch {
    max: Duration,
    idle: Option<Duration>,
    credential: Option<Duration>,
    /// When the service last said something.
    heard: At,
    /// Since when nobody listens: its silence is then ours.
    deaf: Option<At>,
}

impl Watch {
    fn deadline(&self) -> At {
        let idle = self.idle.filter(|_| self.deaf.is_none()).map(|idle| self.heard + idle);
        [Some(self.max), idle, self.credential].into_iter().flatten().min().unwrap_or(self.max)
    }

    /// Somebody listens again: what was not heard meanwhile is nobody's silence.
    fn listens(&mut self, now: At) {
        if let Some(since) = self.deaf.take() {
            self.heard += now.saturating_sub(since);
        }
    }

    fn verdict(&self, now: At) -> Option<End> {
        if now >= self.max {
            return Some(End::MaxTime(self.max));
        }
        if self.credential.is_some_and(|end| now >= end) {
            return Some(End::TokenExpired);
        }
        self.idle.filter(|idle| self.deaf.is_none() && now >= self.heard + *idle).map(End::Idle)
    }
}

/// Watches a call to its end, and hangs up.
pub async fn run(watched: Watched) -> End {
    Fact::CallStarted { door: watched.books.door.into() }.record();
    let began = Instant::now();
    let Watched { books, life, mut license, upstream, mut drain, stop } = watched;
    let call = books.call.clone();
    let watch =
        Watch { max: life.max, idle: life.idle, credential: life.credential, heard: At::ZERO, deaf: Some(At::ZERO) };
    // Whatever goes wrong in here, the call is hung up.
    let watching = AssertUnwindSafe(listen(&books, watch, &mut license, &upstream, &mut drain)).catch_unwind();
    let end = tokio::select! {
        biased;
        () = stop.cancelled() => End::Drained,
        end = Box::pin(watching) => end.unwrap_or(End::Internal),
    };
    // Even where it seems to be over: that a service does not know a call at one door says little of the other.
    let within = if end == End::Drained { BEFORE_THE_END } else { HANG_UP_WITHIN };
    hang_up(&upstream, &call, &license, within).await;
    let close = end.report().close;
    Fact::CallEnded { close, length: began.elapsed(), bytes_in: 0, bytes_out: 0 }.record();
    end
}

/// Listens until the call must end, or is over.
async fn listen(
    books: &Books,
    mut watch: Watch,
    license: &mut License,
    upstream: &Upstream,
    drain: &mut Draining,
) -> End {
    let began = Instant::now();
    let (who, call) = (license.who().clone(), books.call.as_str());
    let (mut joins, mut joined, mut socket): (usize, bool, Option<Socket>) = (0, false, None);
    let mut writer = None;
    loop {
        if let Some(end) = watch.verdict(began.elapsed()) {
            return end;
        }
        let until = began + watch.deadline();
        let heard = async {
            match &mut socket {
                Some(socket) => hear(socket).await,
                None => {
                    if joins > 0 {
                        let pause = JOIN_AGAIN.get(joins - 1).or(JOIN_AGAIN.last());
                        time::sleep(pause.copied().unwrap_or_default()).await;
                    }
                    Heard::Joined(Box::new(upstream.open(&Wanted::join(call), &who, call).await))
                }
            }
        };
        let heard = tokio::select! {
            biased;
            () = going_away(drain) => return End::Drained,
            why = license.cut() => return match why {
                Cut::Revoked => End::Revoked,
                Cut::Ended => End::EndedByTenant,
            },
            () = time::sleep_until(until) => continue,
            heard = heard => heard,
        };
        match heard {
            Heard::Joined(session) => match *session {
                Ok(session) => {
                    writer = ga::decode(&session.created).writer().map(str::to_owned).or(writer);
                    (joined, socket) = (true, Some(session.socket));
                    joins += 1; // one that ends at once is not joined again at once
                    watch.listens(began.elapsed());
                }
                // It is over; before the first join it may only not be there yet.
                Err(error) if is_over(&error) && (joined || joins >= JOIN_AGAIN.len()) => return End::Asked,
                Err(error) => {
                    tracing::warn!(%error, call, "a call cannot be joined; its clock runs on");
                    joins += 1;
                }
            },
            Heard::Said(event) => {
                joins = 1;
                watch.heard = began.elapsed();
                limits::heard(upstream.board(), who.tenant_id(), &event);
                writer = event.writer().map(str::to_owned).or(writer);
                if let Some(booked) = Booked::counted(&event) {
                    let prices = books.prices.load();
                    books.book(&who, "", Booked { writer: writer.clone(), ..booked }, &prices);
                }
                if let Event::ReplyDone { usage: Some(usage), .. } = event {
                    Fact::Tokens { usage }.record();
                }
            }
            Heard::Closed(error) => {
                upstream.board().refused(Source::Close, who.tenant_id(), &error);
                watch.deaf = Some(began.elapsed());
                socket = None; // whether the call goes on, the next join shows
            }
        }
    }
}

type Draining = watch::Receiver<Option<Instant>>;

/// Waits until the server is about to be gone.
async fn going_away(drain: &mut Draining) {
    loop {
        let end = *drain.borrow_and_update();
        let passed = async {
            match end {
                Some(end) => time::sleep_until(end.checked_sub(BEFORE_THE_END).unwrap_or(end)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = passed => return,
            // It may stay after all.
            changed = drain.changed() => if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

enum Heard {
    Joined(Box<Result<crate::upstream::open::Session, UpstreamError>>),
    Said(Event),
    Closed(UpstreamError),
}

/// The next thing that is said. A socket that is dead in silence is found out.
async fn hear(socket: &mut Socket) -> Heard {
    let mut asked = false;
    loop {
        match time::timeout(ASK_AFTER, socket.next()).await {
            Ok(Ok(Frame::Text(text))) => return Heard::Said(ga::glance(&text)),
            Ok(Ok(Frame::Closed { code, reason })) => return Heard::Closed(UpstreamError::closed(code, &reason)),
            Ok(Ok(Frame::Binary(_) | Frame::Pong)) => asked = false,
            Ok(Err(error)) => return Heard::Closed(UpstreamError::Broken(error.to_string())),
            Err(_) if asked => {
                return Heard::Closed(UpstreamError::Timeout { stage: "answer a ping", after: ASK_AFTER });
            }
            Err(_) => {
                socket.send_ping();
                asked = true;
            }
        }
    }
}

/// The service does not know the call, or no longer.
fn is_over(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Http { status, .. } if status.as_u16() == 404)
}

/// Ends a call at the service, trying again for so long: until that is done it costs.
pub async fn hang_up(upstream: &Upstream, call: &str, license: &License, within: Duration) {
    let end = Instant::now() + within;
    for tried in 0.. {
        let act = upstream.rest().act(call, Act::HangUp, None, license.who());
        let error = match time::timeout_at(end, act).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) if is_over(&error) => return,
            // It rings still, and was never taken.
            Ok(Err(UpstreamError::Http { status, .. })) if status.as_u16() == 409 => {
                let turned_away = upstream.rest().act(call, Act::Reject, None, license.who()).await;
                return turned_away
                    .unwrap_or_else(|error| tracing::warn!(%error, call, "a call could not be turned away"));
            }
            // Asking again changes nothing.
            Ok(Err(error @ UpstreamError::Http { .. })) if !error.verdict().transient => {
                return tracing::error!(%error, call, "a call could not be hung up");
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no time is left".to_owned(),
        };
        tracing::warn!(error, call, tried, "a call could not be hung up");
        let pause = HANG_UP_AGAIN.get(tried).or(HANG_UP_AGAIN.last()).copied().unwrap_or_default();
        if Instant::now() + pause >= end {
            break;
        }
        time::sleep(pause).await;
    }
    tracing::error!(call, "a call could not be hung up: it may go on at the service, and cost");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_limit_ends_the_call() {
        let watch = Watch {
            max: 60 * SECOND,
            idle: Some(10 * SECOND),
            credential: Some(30 * SECOND),
            heard: At::ZERO,
            deaf: None,
        };
        for (heard, now, deadline, end) in [
            (0, 9, 10, None),
            (0, 10, 10, Some(End::Idle(10 * SECOND))),
            (8, 17, 18, None),
            (25, 29, 30, None),
            (25, 30, 30, Some(End::TokenExpired)),
            (55, 60, 30, Some(End::MaxTime(60 * SECOND))),
        ] {
            let watch = Watch { heard: heard * SECOND, ..watch };
            assert_eq!((watch.deadline(), watch.verdict(now * SECOND)), (deadline * SECOND, end), "{heard} {now}");
        }
        let free = Watch { idle: None, credential: None, ..watch };
        assert_eq!((free.deadline(), free.verdict(59 * SECOND)), (60 * SECOND, None));
        // While nobody listens, nobody is silent.
        let mut deaf = Watch { credential: None, heard: 5 * SECOND, deaf: Some(8 * SECOND), ..watch };
        assert_eq!((deaf.deadline(), deaf.verdict(40 * SECOND)), (60 * SECOND, None));
        deaf.listens(28 * SECOND);
        assert_eq!((deaf.deadline(), deaf.verdict(34 * SECOND)), (35 * SECOND, None));
    }
}
