//! A telephone's side of a call: its dialect, its lanes, and what of a line lasts from message to message.
//!
//! Stands where the thin client's messages are read and written, so that the core hears the same of a telephone as of any caller: audio,
//! reports of what was played, keys. Decides nothing.
use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;

use super::{
    At,
    core::{Core, Input},
    door::Lanes,
    end::End,
};
use crate::{
    audio::{
        Codec,
        lane::{AudioError, FRAME},
    },
    client::{
        phone::{
            Bad, Dialect, Media, Packet, Said, Start,
            line::{ByteOrder, Order, Pauses, swap},
            marks::{Marks, Returned},
        },
        wire::{ClientMsg, ServerMsg},
    },
    config::PhoneByteOrder,
    net::outbox::Outbox,
};

/// What waits at the other side has been played by then, even if that does not say so: Asterisk's queue holds 20 s.
const FULL_AT_MOST: Duration = Duration::from_secs(25);

/// Whoever has the other end of the line, and can be asked for something beside the stream.
#[derive(Clone)]
pub struct Remote(Arc<dyn Fn(String) -> BoxFuture<'static, Result<(), String>> + Send + Sync>);

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote(..)")
    }
}

impl Remote {
    /// `transfer` takes the call to a number or an address, or says why not.
    pub fn new(transfer: impl Fn(String) -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(transfer))
    }

    /// Takes the call elsewhere; the result is for the model.
    pub fn transfer(&self, to: String) -> impl Future<Output = String> + Send + 'static {
        let transfer = (self.0)(to);
        async move {
            match transfer.await {
                Ok(()) => json!({"ok": true}),
                Err(why) => json!({"error": why}),
            }
            .to_string()
        }
    }
}

/// A telephone.
#[derive(Debug)]
pub struct Phone {
    pub(super) lanes: Lanes,
    dialect: Box<dyn Dialect>,
    order: Order,
    pauses: Pauses,
    bytes: Option<ByteOrder>,
    marks: Marks,
    /// Since when it takes no more.
    full: Option<At>,
    due: Vec<Media>,
    /// What came with the start.
    first: Option<Media>,
    remote: Option<Remote>,
}

impl Phone {
    /// A stream that has said its `start`.
    pub fn new(lanes: Lanes, dialect: Box<dyn Dialect>, start: &Start) -> Self {
        let habits = dialect.habits();
        let linear = start.input.codec == Codec::Pcm16 || start.output.codec == Codec::Pcm16;
        let bytes = (habits.odd_bytes && linear).then(ByteOrder::default);
        let marks = Marks::new(habits.mark_every);
        let (order, pauses) = (Order::default(), Pauses::default());
        Self {
            lanes,
            dialect,
            order,
            pauses,
            bytes,
            marks,
            full: None,
            due: Vec::new(),
            first: start.first.clone(),
            remote: None,
        }
    }

    /// The order of the bytes of its linear audio, where the provider leaves that open.
    pub fn with_byte_order(self, order: PhoneByteOrder) -> Self {
        let bytes = self.bytes.map(|unknown| match order {
            PhoneByteOrder::Auto => unknown,
            PhoneByteOrder::Big => ByteOrder::known(true),
            PhoneByteOrder::Little => ByteOrder::known(false),
        });
        Self { bytes, ..self }
    }

    /// With somebody who can be asked to transfer it.
    pub fn with_remote(self, remote: Option<Remote>) -> Self {
        Self { remote, ..self }
    }

    /// See [`Self::with_remote`].
    pub fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref()
    }

    /// Presses keys, if the stream can.
    pub fn press(&self, keys: &str, outbox: &mut Outbox) -> bool {
        self.dialect.press(keys).is_some_and(|packet| control(outbox, packet, false) > 0)
    }

    /// Its provider's name.
    pub fn name(&self) -> &'static str {
        self.dialect.habits().name
    }

    /// The other side takes no more audio for the moment.
    pub fn is_full(&self, now: At) -> bool {
        self.full.is_some_and(|since| now.saturating_sub(since) < FULL_AT_MOST)
    }

    /// Takes a message of the stream.
    pub fn take(&mut self, core: &mut Core, now: At, packet: &Packet) {
        if let Some(first) = self.first.take() {
            self.media(core, now, first);
        }
        let said = match self.dialect.read(packet) {
            Ok(said) => said,
            Err(Bad { field, message }) => {
                return core.handle(now, Input::Invalid { field: field.map(str::to_owned), message });
            }
        };
        match said {
            Said::Audio(media) => self.media(core, now, media),
            Said::Digit(key) => core.handle(now, Input::Key(key)),
            Said::Played(mark) => match self.marks.returned(now, &mark) {
                Some(Returned::Played(reply, ms)) => {
                    core.handle(now, Input::Message(ClientMsg::Played { reply, ms }));
                }
                Some(Returned::Trip(trip)) => core.handle(now, Input::RoundTrip(trip)),
                None => core.handle(now, Input::Ignored),
            },
            Said::Full(full) => {
                self.full = full.then_some(now);
                core.handle(now, Input::Ignored);
            }
            Said::Start(_) => {
                let message = "a second start; a stream has one".to_owned();
                core.handle(now, Input::Invalid { field: Some("start".to_owned()), message });
            }
            Said::Stop(reason) => {
                if let Some(reason) = reason {
                    tracing::info!(reason, "the exchange ends the call");
                }
                core.handle(now, Input::ClientGone(End::HungUp));
            }
            Said::Nothing => core.handle(now, Input::Ignored),
        }
    }

    fn media(&mut self, core: &mut Core, now: At, media: Media) {
        let mut due = std::mem::take(&mut self.due);
        if self.dialect.habits().reorders {
            self.order.push(media, &mut due);
        } else {
            due.push(media);
        }
        for Media { bytes, at, .. } in due.drain(..) {
            let format = self.lanes.audio.input;
            if let Some(at) = at {
                let pause = self.pauses.before(at, format.duration(bytes.len()));
                if !pause.is_zero() {
                    let silence = vec![format.silence(); format.bytes(pause)];
                    self.lanes.take(core, now, &silence);
                }
            }
            match &mut self.bytes {
                Some(order) if format.codec == Codec::Pcm16 => {
                    if let Some(swapped) = order.look(&bytes, format.rate) {
                        tracing::info!(big_endian = swapped, "the order of the stream's bytes is known");
                    }
                    let bytes = if order.is_swapped() { swap(&bytes).into() } else { bytes };
                    self.lanes.take(core, now, &bytes);
                }
                _ => self.lanes.take(core, now, &bytes),
            }
        }
        self.due = due;
    }

    /// Says what of our words a telephone understands: to drop what it has not played; and marks where a reply begins. How many bytes.
    pub fn tell(&mut self, now: At, message: &ServerMsg, outbox: &mut Outbox) -> usize {
        match message {
            ServerMsg::ReplyStarted { reply } => {
                let mark = self.marks.begin(now, reply);
                return self.set(mark, outbox);
            }
            ServerMsg::Clear { .. } => {
                self.marks.cleared();
                self.full = None;
                let clear = self.dialect.clear();
                return clear.map_or(0, |clear| control(outbox, clear, true));
            }
            ServerMsg::Error { error } => {
                tracing::info!(code = error.code, message = error.message, "the caller cannot be told");
            }
            _ => {}
        }
        0
    }

    /// Says 20 ms of a reply. How many bytes.
    ///
    /// # Errors
    /// When it cannot be converted: a bug of ours.
    pub fn play(&mut self, frame: &Bytes, outbox: &mut Outbox) -> Result<usize, AudioError> {
        let audio = self.lanes.convert(frame)?;
        Ok(self.say(audio, outbox) + self.mark_sent(outbox))
    }

    fn mark_sent(&mut self, outbox: &mut Outbox) -> usize {
        let mark = self.marks.sent(FRAME);
        self.set(mark, outbox)
    }

    fn set(&self, mark: Option<String>, outbox: &mut Outbox) -> usize {
        let mark = mark.and_then(|name| self.dialect.mark(&name));
        mark.map_or(0, |mark| control(outbox, mark, false))
    }

    fn say(&mut self, audio: Bytes, outbox: &mut Outbox) -> usize {
        let swapped = self.bytes.as_ref().is_some_and(ByteOrder::is_swapped);
        let linear = self.lanes.audio.output.codec == Codec::Pcm16;
        let audio = if swapped && linear { swap(&audio).into() } else { audio };
        self.dialect.audio(audio).map_or(0, |packet| sound(outbox, packet))
    }

    /// Says what is held back of a reply that is complete, and marks its end. How many bytes.
    pub fn tail(&mut self, outbox: &mut Outbox) -> usize {
        let tail = self.lanes.tail();
        let mut bytes = tail.map_or(0, |tail| self.say(tail, outbox));
        bytes += self.dialect.tail().map_or(0, |packet| sound(outbox, packet));
        let mark = self.marks.end();
        bytes + self.set(mark, outbox)
    }

    /// The call ends: so the line shall.
    pub fn farewell(&self, outbox: &mut Outbox) {
        if let Some(packet) = self.dialect.hang_up() {
            control(outbox, packet, false);
        }
    }

    /// Close code and reason of an end. Providers know the registered codes only.
    pub fn close(&self, end: &End) -> (u16, String) {
        let report = end.report();
        let code = match report.close {
            code @ (1000 | 1002 | 1003 | 1007 | 1008 | 1009 | 1011) => code,
            _ => 1000,
        };
        (code, report.code.unwrap_or_default().to_owned())
    }
}

fn sound(outbox: &mut Outbox, packet: Packet) -> usize {
    let length = packet.bytes().len();
    match packet {
        Packet::Text(text) => outbox.spoken(text),
        Packet::Binary(bytes) => outbox.binary(bytes),
    }
    length
}

/// Says what is no audio. How many bytes.
pub(crate) fn control(outbox: &mut Outbox, packet: Packet, urgent: bool) -> usize {
    let length = packet.bytes().len();
    match packet {
        Packet::Text(text) if urgent => outbox.urgent(text),
        Packet::Text(text) => outbox.text(text),
        // Of those whose control is binary, none has anything to say that could overtake.
        Packet::Binary(bytes) => outbox.control(bytes),
    }
    length
}

#[cfg(test)]
mod tests;
