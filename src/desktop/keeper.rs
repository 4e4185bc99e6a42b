//! Watches one stream, and knows when to give it up and when to try again.
//!
//! Pure: opens nothing, looks at a stream's [`Health`] when asked, and is told `now`.
use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{
    io::{Side, Want},
    tap::Health,
};

/// A device that has not called back for so long is gone, or sleeps. A first callback can take two seconds (PulseAudio
/// under load, measured).
const SILENT: Duration = Duration::from_secs(4);
/// More errors than this in a second are no hiccups. A healthy stream has none; a lost one has hundreds.
const STORM: u64 = 25;
/// The first pause before another try; each is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Where a stream cannot keep up, the next one gets twice the time, up to this.
const LONGEST_PERIOD: Duration = Duration::from_millis(80);

/// Why a stream is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The device said so.
    Gone(String),
    /// Nothing but errors.
    Errors(String),
    /// It has not called back for too long.
    Silent,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(text) | Self::Errors(text) if text.is_empty() => f.write_str("no reason given"),
            Self::Gone(text) => f.write_str(text),
            Self::Errors(text) => write!(f, "too many errors: {text}"),
            Self::Silent => write!(f, "it has been silent for {} s", SILENT.as_secs()),
        }
    }
}

/// One side's.
#[derive(Debug)]
pub struct Keeper {
    /// Which.
    pub side: Side,
    wanted: Option<String>,
    period: Duration,
    watch: Option<Watch>,
    /// When to try to open; `None`: it is open, or being opened.
    try_at: Option<Instant>,
    pause: Duration,
    /// Failures since it was last open.
    pub failures: u32,
}

/// A stream that is open.
#[derive(Debug)]
struct Watch {
    callbacks: u64,
    called_at: Instant,
    /// The second that is being counted, and the errors before it.
    second: Instant,
    errors: u64,
    /// Errors at the last look.
    seen: u64,
}

impl Keeper {
    /// For a device of this name, or the default one.
    pub fn new(side: Side, want: Want) -> Self {
        let Want { device: wanted, period } = want;
        Self { side, wanted, period, watch: None, try_at: None, pause: FIRST_PAUSE, failures: 0 }
    }

    /// What to try, one after the other: what was asked for, then the system's default.
    pub fn wants(&self) -> Vec<Want> {
        let named = self.wanted.clone().map(Some);
        named.into_iter().chain([None]).map(|device| Want { device, period: self.period }).collect()
    }

    /// It is open.
    pub fn opened(&mut self, now: Instant) {
        self.watch = Some(Watch { callbacks: 0, called_at: now, second: now, errors: 0, seen: 0 });
        (self.try_at, self.pause, self.failures) = (None, FIRST_PAUSE, 0);
    }

    /// Whether it must be given up. It is then no longer watched, and another try is due at once.
    pub fn look(&mut self, now: Instant, health: &Health) -> Option<Why> {
        let watch = self.watch.as_mut()?;
        let text = || health.why().unwrap_or_default().to_owned();
        let callbacks = health.callbacks();
        if callbacks != watch.callbacks {
            (watch.callbacks, watch.called_at) = (callbacks, now);
        }
        if now.duration_since(watch.second) >= Duration::from_secs(1) {
            (watch.second, watch.errors) = (now, watch.seen);
        }
        watch.seen = health.errors();
        let why = if health.is_gone() {
            Why::Gone(text())
        } else if watch.seen > watch.errors + STORM {
            // It calls back between its errors: it is there, but too slow.
            if callbacks > 0 {
                self.period = (self.period * 2).min(LONGEST_PERIOD.max(self.period));
            }
            Why::Errors(text())
        } else if now.duration_since(watch.called_at) >= SILENT {
            Why::Silent
        } else {
            return None;
        };
        self.watch = None;
        self.try_at = Some(now);
        Some(why)
    }

    /// Whether to try to open it now. `true` once per try.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.try_at.take_if(|at| *at <= now).is_some()
    }

    /// It could not be opened.
    pub fn failed(&mut self, now: Instant) {
        self.failures += 1;
        self.try_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::tap;

    const PERIOD: Duration = Duration::from_millis(10);

    fn keeper(device: Option<&str>) -> Keeper {
        Keeper::new(Side::Loudspeaker, Want { device: device.map(str::to_owned), period: PERIOD })
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_named_device_goes_before_the_default() {
        let devices = |keeper: &Keeper| keeper.wants().into_iter().map(|want| want.device).collect::<Vec<_>>();
        assert_eq!(devices(&keeper(Some("x"))), [Some("x".to_owned()), None]);
        assert_eq!(devices(&keeper(None)), [None]);
    }

    #[test]
    fn a_device_that_says_so_is_gone_at_once_and_tried_with_growing_pauses() {
        let began = Instant::now();
        let (playback, end) = tap::loudspeaker(8_000);
        let mut keeper = keeper(None);
        assert!(!keeper.is_due(began), "never opened: not ours to open");
        keeper.opened(began);
        assert_eq!(keeper.look(began + ms(10), end.health()), None);
        playback.complaints().complain(true, || "unplugged".into());
        assert_eq!(keeper.look(began + ms(20), end.health()), Some(Why::Gone("unplugged".into())));
        assert_eq!(keeper.look(began + ms(30), end.health()), None, "told once");
        let mut now = began + ms(30);
        for pause in [250, 500, 1_000, 2_000, 2_000] {
            assert!(keeper.is_due(now) && !keeper.is_due(now));
            keeper.failed(now);
            assert!(!keeper.is_due(now + ms(pause - 1)));
            now += ms(pause);
        }
        assert!(keeper.is_due(now));
        assert_eq!(keeper.failures, 5);
        keeper.opened(now);
        assert_eq!(keeper.failures, 0);
    }

    #[test]
    fn hiccups_are_forgiven_and_a_storm_is_not() {
        let began = Instant::now();
        let (mut playback, end) = tap::loudspeaker(8_000);
        let mut keeper = keeper(None);
        keeper.opened(began);
        let complaints = playback.complaints();
        for second in 0..10 {
            for _ in 0..STORM {
                complaints.complain(false, || "xrun".into());
            }
            playback.fill([0.0].iter_mut(), began, |_, _| {});
            assert_eq!(keeper.look(began + ms(second * 1_000), end.health()), None, "{second}");
        }
        for _ in 0..=2 * STORM {
            complaints.complain(false, || unreachable!("one text is enough"));
        }
        assert_eq!(keeper.look(began + ms(9_010), end.health()), Some(Why::Errors("xrun".into())));
        assert_eq!(keeper.wants()[0].period, PERIOD * 2, "the next one gets more time");
    }

    #[test]
    fn a_device_that_only_fails_gets_no_more_time_for_it() {
        let began = Instant::now();
        let (playback, end) = tap::loudspeaker(8_000);
        let mut keeper = keeper(None);
        keeper.opened(began);
        for _ in 0..1_000 {
            playback.complaints().complain(false, || "no such device".into());
        }
        assert!(matches!(keeper.look(began, end.health()), Some(Why::Errors(_))));
        assert_eq!(keeper.wants()[0].period, PERIOD);
    }

    #[test]
    fn a_device_that_calls_no_more_is_given_up() {
        let began = Instant::now();
        let (mut playback, end) = tap::loudspeaker(8_000);
        let mut keeper = keeper(None);
        keeper.opened(began);
        assert_eq!(keeper.look(began + ms(3_900), end.health()), None);
        playback.fill([0.0].iter_mut(), began, |_, _| {});
        assert_eq!(keeper.look(began + ms(3_990), end.health()), None);
        assert_eq!(keeper.look(began + ms(7_980), end.health()), None);
        assert_eq!(keeper.look(began + ms(7_990), end.health()), Some(Why::Silent));
    }
}
