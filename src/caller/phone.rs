//! A call with a microphone and a loudspeaker on it: the one place of this room that keeps time.
//!
//! Sends a frame when it is due, plays what comes, drops what `clear` names, and tells the relay what was heard. A lost
//! connection stops neither: the call keeps what is said meanwhile. What to say, and when a call is over, is decided by
//! whoever holds the phone.
use std::{future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{Call, Event, FRAME, Loudspeaker, Microphone};
use crate::{audio::Format, client::wire::ServerMsg};

/// Something happened on the phone.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The recording's last frame has left; silence may follow. Once per recording.
    Spoken,
    /// Something came from the server.
    Event(Event),
}

/// Speaks and listens in real time. Nothing moves while [`Phone::next`] is not polled.
#[derive(Debug)]
pub struct Phone {
    call: Call,
    mic: Microphone,
    speaker: Loudspeaker,
    reports: bool,
    speaking: bool,
    began: Instant,
    out: Format,
    /// Stands for audio that came before any reply.
    no_reply: Arc<str>,
}

impl Phone {
    /// Takes a call that is ready and begins to record at once. Playback positions are reported every `report_every`;
    /// `None`: never, the relay then trusts its own clock.
    pub fn new(call: Call, mut mic: Microphone, report_every: Option<Duration>) -> Self {
        let began = Instant::now();
        mic.open(Duration::ZERO);
        Self {
            speaking: !mic.is_done(),
            speaker: Loudspeaker::new(report_every.unwrap_or(Duration::from_secs(1))),
            reports: report_every.is_some(),
            out: call.ready().audio.output,
            no_reply: Arc::from(""),
            call,
            mic,
            began,
        }
    }

    /// What happens next, and when: the duration since the phone began. `None` after the call's end. Cancel safe.
    pub async fn next(&mut self) -> Option<(Duration, Step)> {
        loop {
            let now = self.began.elapsed();
            self.speak(now);
            self.report(now);
            if self.speaking && self.mic.is_done() {
                self.speaking = false;
                return Some((now, Step::Spoken));
            }
            let wake = [self.mic.deadline(), self.speaker.deadline()].into_iter().flatten().min();
            let alarm = async {
                match wake {
                    Some(at) => sleep_until(self.began + at).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                biased; // a frame that is due goes first: a flood of audio must not hold it up
                () = alarm => {}
                event = self.call.next() => {
                    let now = self.began.elapsed();
                    return event.map(|event| { self.hear(now, &event); (now, Step::Event(event)) });
                }
            }
        }
    }

    /// The call, to send on.
    pub fn call(&mut self) -> &mut Call {
        &mut self.call
    }

    /// Says more, behind what is still being said.
    pub fn say(&mut self, frames: impl IntoIterator<Item = bytes::Bytes>) {
        self.mic.say(frames);
        self.speaking = !self.mic.is_done();
    }

    /// What has been heard.
    pub fn speaker(&self) -> &Loudspeaker {
        &self.speaker
    }

    /// What has been said.
    pub fn mic(&self) -> &Microphone {
        &self.mic
    }

    /// Now, as [`Phone::next`] counts it.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Gives the call back.
    pub fn into_call(self) -> Call {
        self.call
    }

    /// A call that is over says so by its last event; until then frames are lost, as on a phone.
    fn speak(&mut self, now: Duration) {
        while let Some(frame) = self.mic.take(now) {
            let _over = self.call.audio(frame);
        }
    }

    fn report(&mut self, now: Duration) {
        while let Some((reply, ms)) = self.speaker.report(now) {
            if self.reports && !reply.is_empty() {
                let _over = self.call.played(&reply, ms);
            }
        }
    }

    fn hear(&mut self, now: Duration, event: &Event) {
        match event {
            Event::Audio { reply, data } => {
                // An Opus message is one packet, and a packet is one frame.
                let len = if self.out.sample_bytes().is_some() { self.out.duration(data.len()) } else { FRAME };
                self.speaker.push(now, reply.as_ref().unwrap_or(&self.no_reply), len);
            }
            Event::Message(message) => {
                if let ServerMsg::Clear { reply } = message.as_ref() {
                    self.speaker.clear(now, reply);
                    self.report(now);
                }
            }
            // While the connection is lost the loudspeaker plays what it has, and its position stands where that ends.
            Event::Unknown(_) | Event::Dropped(_) | Event::Resumed { .. } | Event::Ended(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::caller::{
        Options, connect,
        testbed::{Fake, READY},
    };

    #[tokio::test]
    async fn a_recording_takes_its_time_and_arrives_whole() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            let began = Instant::now();
            for n in 0..10 {
                assert_eq!(door.read_binary().await, [n; 160]);
            }
            // Loopback and a busy machine may add to it, nothing can take from it.
            assert!(began.elapsed() > Duration::from_millis(150), "{:?}", began.elapsed());
            assert_eq!(door.read_text().await, json!({"type": "commit"}));
            door.close(1000, "").await;
        })
        .await;
        let call = connect(&fake.url, &Options::default()).await.unwrap();
        let mic = Microphone::new((0..10).map(|n| Bytes::from(vec![n; 160])), None);
        let mut phone = Phone::new(call, mic, None);
        let (at, step) = phone.next().await.unwrap();
        assert_eq!(step, Step::Spoken);
        assert!(at >= Duration::from_millis(200), "{at:?}");
        phone.call().commit().unwrap();
        assert!(matches!(phone.next().await, Some((_, Step::Event(Event::Ended(end)))) if end.is_normal()));
        assert_eq!(phone.next().await, None);
        fake.finished().await;
    }

    #[tokio::test]
    async fn what_was_heard_is_told_and_a_clear_is_obeyed() {
        let fake = Fake::start(async |mut door| {
            door.text(READY).await;
            door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
            door.binary(&[0; 160 * 50]).await; // a second
            let first = door.read_text().await;
            assert!(first["type"] == "played" && first["ms"].as_u64().unwrap() >= 40, "{first}");
            door.text(r#"{"type":"clear","reply":"r1"}"#).await;
            door.binary(&[0; 160]).await; // overtaken by the clear
            let mut last = first;
            door.ping(b"").await;
            while let Some(message) = door.next().await {
                match message {
                    Message::Text(text) => last = serde_json::from_str(&text).unwrap(),
                    Message::Pong(_) => break,
                    other => panic!("{other:?}"),
                }
            }
            let heard = last["ms"].as_u64().unwrap();
            door.close(1000, &heard.to_string()).await;
        })
        .await;
        let call = connect(&fake.url, &Options::default()).await.unwrap();
        let mut phone = Phone::new(call, Microphone::mute(), Some(Duration::from_millis(40)));
        let end = loop {
            if let (_, Step::Event(Event::Ended(end))) = phone.next().await.unwrap() {
                break end;
            }
        };
        let heard = phone.speaker().position(phone.now(), "r1");
        assert!(heard < Duration::from_secs(1), "{heard:?}");
        assert_eq!(end.reason, heard.as_millis().to_string(), "the last report is where it was cut");
        assert_eq!(phone.speaker().queued(phone.now()), Duration::ZERO);
        fake.finished().await;
    }
}
