//! The buffer in front of the caller's ear.
//!
//! A leg's clock ticks every 20 ms; each tick takes a frame from the queue, and what is taken will sound: clearing reaches
//! only what is still queued. Tags (marks and their like) travel in the queue and come out when the audio before them has
//! been played. Knows no provider; what a tag means is the [`super::line`]'s business.
use std::{collections::VecDeque, time::Duration};

use super::wire::{FRAME, Media};

/// What stands in the queue between pieces of audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// A mark, checkpoint or notify; the string is the relay's.
    Mark(String),
    /// The end of a buffered turn (`chan_websocket`), and its id.
    Buffered(Option<String>),
}

#[derive(Debug)]
enum Unit {
    Audio { samples: Vec<i16>, used: usize },
    Tag(Tag),
}

/// What a tick has brought to the ear.
#[derive(Debug)]
pub(super) struct Tick {
    pub(super) at: Duration,
    /// Taken from the queue; empty: there was nothing.
    pub(super) samples: Vec<i16>,
}

/// The queue and its clock.
#[derive(Debug)]
pub(super) struct Playout {
    media: Media,
    /// A unit is played as one frame, whatever its length, as Asterisk and Vonage do; otherwise audio is one stream.
    whole_frames: bool,
    /// A tag waits for the next tick even where nothing is queued before it.
    tags_wait: bool,
    /// How much later than it comes audio behind silence is played.
    holds: Duration,
    queue: VecDeque<Unit>,
    samples: usize,
    units: usize,
    next_tick: Option<Duration>,
    last_tick: Option<Duration>,
    /// The frame that was taken last is played until then.
    busy_until: Duration,
    due: VecDeque<(Duration, Tag)>,
    paused: bool,
}

impl Playout {
    pub(super) fn new(media: Media, whole_frames: bool, tags_wait: bool, holds: Duration) -> Self {
        Self {
            media,
            whole_frames,
            tags_wait,
            holds,
            queue: VecDeque::new(),
            samples: 0,
            units: 0,
            next_tick: None,
            last_tick: None,
            busy_until: Duration::ZERO,
            due: VecDeque::new(),
            paused: false,
        }
    }

    /// Queued frames: units where a unit is one, else 20 ms of sound.
    pub(super) fn frames(&self) -> usize {
        if self.whole_frames { self.units } else { self.samples.div_ceil(self.media.frame_samples().max(1)) }
    }

    /// What is queued and has not been taken.
    pub(super) fn queued(&self) -> Duration {
        self.media.length(self.samples)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn pause(&mut self, now: Duration, paused: bool) {
        self.paused = paused;
        self.next_tick = None;
        if !paused && !self.queue.is_empty() {
            self.wake(now);
        }
    }

    pub(super) fn push(&mut self, now: Duration, samples: Vec<i16>) {
        if samples.is_empty() {
            return;
        }
        self.samples += samples.len();
        self.units += 1;
        self.queue.push_back(Unit::Audio { samples, used: 0 });
        self.wake(now + self.holds);
    }

    pub(super) fn tag(&mut self, now: Duration, tag: Tag) {
        if self.queue.is_empty() && !self.tags_wait {
            let at = self.due.back().map_or(now, |(at, _)| now.max(*at)).max(self.busy_until);
            self.due.push_back((at, tag));
        } else {
            self.queue.push_back(Unit::Tag(tag));
            self.wake(now);
        }
    }

    /// Drops what is queued. The frame that is being played goes on. Returns the tags that did not come out.
    pub(super) fn clear(&mut self) -> Vec<Tag> {
        let queued = std::mem::take(&mut self.queue).into_iter();
        let tags = queued.filter_map(|unit| if let Unit::Tag(tag) = unit { Some(tag) } else { None });
        let tags = std::mem::take(&mut self.due).into_iter().map(|(_, tag)| tag).chain(tags).collect();
        (self.samples, self.units, self.next_tick) = (0, 0, None);
        tags
    }

    /// Takes the tags out and leaves the audio.
    pub(super) fn clear_tags(&mut self) -> Vec<Tag> {
        let mut tags: Vec<Tag> = std::mem::take(&mut self.due).into_iter().map(|(_, tag)| tag).collect();
        let (audio, queued): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|unit| matches!(unit, Unit::Audio { .. }));
        tags.extend(queued.into_iter().filter_map(|unit| if let Unit::Tag(tag) = unit { Some(tag) } else { None }));
        self.queue = audio;
        tags
    }

    /// Makes the clock tick once more although nothing may be queued.
    pub(super) fn wake(&mut self, now: Duration) {
        if !self.paused && self.next_tick.is_none() {
            let grid = FRAME.as_nanos();
            let ticks = now.as_nanos().div_ceil(grid);
            let at = Duration::from_nanos(u64::try_from(ticks * grid).unwrap_or(u64::MAX));
            self.next_tick = Some(self.last_tick.map_or(at, |last| at.max(last + FRAME)));
        }
    }

    pub(super) fn next_tick(&self) -> Option<Duration> {
        self.next_tick
    }

    /// When the next tag comes out, as far as that is known already.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.front().map(|(at, _)| *at)
    }

    /// The tag whose time has come.
    pub(super) fn take_due(&mut self) -> Option<Tag> {
        self.due.pop_front().map(|(_, tag)| tag)
    }

    /// Plays the next frame; call it when [`Self::next_tick`] has come.
    pub(super) fn tick(&mut self) -> Option<Tick> {
        let at = self.next_tick.take()?;
        self.last_tick = Some(at);
        let frame = self.media.frame_samples();
        let mut taken = Vec::new();
        while let Some(unit) = self.queue.front_mut() {
            if self.whole_frames && !taken.is_empty() {
                break; // however short it was
            }
            let Unit::Audio { samples, used } = unit else {
                if let Some(Unit::Tag(tag)) = self.queue.pop_front() {
                    self.due.push_back((at + self.media.length(taken.len()), tag));
                }
                continue;
            };
            if taken.len() >= frame {
                break;
            }
            let rest = samples.get(*used..).unwrap_or_default();
            let part = rest.get(..frame - taken.len()).unwrap_or(rest);
            taken.extend_from_slice(part);
            *used += part.len();
            if *used >= samples.len() {
                self.queue.pop_front();
                self.units -= 1;
            }
        }
        self.samples -= taken.len();
        self.busy_until = at + self.media.length(taken.len());
        if !self.queue.is_empty() {
            self.next_tick = Some(at + FRAME);
        }
        Some(Tick { at, samples: taken })
    }
}
