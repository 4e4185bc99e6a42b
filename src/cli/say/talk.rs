//! One call of `say`: speaks, listens, shows, and keeps what was heard.
//!
//! Stands between the phone, which keeps time, and the conversation, which knows when it is over.
use std::{io::Write, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::{
    What,
    codec::Ear,
    conversation::{Ask, Conversation, Patience, Verdict},
    narrate::{Narrator, answered},
    screen::Screen,
};
use crate::{
    audio::{Codec, Format, decode::write_wav},
    caller::{Call, Event, Microphone, Phone, Step},
    client::wire::ServerMsg,
};

/// How often the relay is told what was heard.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// How often the changing line changes while nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// How long the server may take to close.
pub(in crate::cli) const GOODBYE: Duration = Duration::from_secs(3);
/// What an agent is told that asks for a tool.
pub(in crate::cli) const NO_TOOLS: &str = "error: this caller has no tools";

/// A call in progress, and everything that it fills.
pub(super) struct Talk<'a, W> {
    phone: Phone,
    narrator: Narrator,
    ear: Ear,
    out: Format,
    /// A reply's samples as they came, heard or not.
    tape: Vec<(Arc<str>, Vec<i16>)>,
    screen: &'a mut Screen<W>,
    manual: bool,
    length: Duration,
}

impl<'a, W: Write> Talk<'a, W> {
    pub(super) fn begin(
        mut call: Call,
        what: What,
        patience: Patience,
        screen: &'a mut Screen<W>,
    ) -> anyhow::Result<Self> {
        let out = call.ready().audio.output;
        let ear = Ear::new(out).context("the relay chose an output format that is not possible")?;
        let (mic, manual, length) = match what {
            What::Text(text) => {
                screen.line(&format!("typing: {text}"))?;
                call.text(&text)?;
                (Microphone::mute(), true, Duration::ZERO)
            }
            What::Recording { name, speech, length, truncated, manual } => {
                screen.line(&format!("saying {name}: {:.2} s", length.as_secs_f64()))?;
                if truncated {
                    screen.line("warning: the file is cut off or damaged; this is what could be read of it")?;
                }
                let silence = (!manual).then_some(speech.silence);
                (Microphone::new(speech.frames, silence), manual, length)
            }
        };
        let mut narrator = Narrator::new(!manual, patience);
        if mic.is_done() {
            narrator.conversation.ask(Duration::ZERO, Ask::Text);
            narrator.conversation.spoken(Duration::ZERO);
        }
        let phone = Phone::new(call, mic, Some(REPORT_EVERY));
        Ok(Self { phone, narrator, ear, out, tape: Vec::new(), screen, manual, length })
    }

    /// Until there is nothing more to wait for. `None`: stopped by Ctrl-C or SIGTERM.
    pub(super) async fn listen(&mut self) -> anyhow::Result<Option<Verdict>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let now = self.phone.now();
            let playing = self.phone.speaker().queued(now) > Duration::ZERO;
            if playing {
                self.narrator.conversation.playing(now);
            }
            match self.narrator.conversation.verdict(now) {
                // The relay may think that all has been heard a moment before it has.
                Some(Verdict::Answered | Verdict::NoSpeech | Verdict::Failed(_)) if playing => {}
                Some(verdict) => return Ok(Some(verdict)),
                None => {}
            }
            self.status(now)?;
            let step = tokio::select! {
                _ = interrupt.recv() => return Ok(None),
                _ = terminate.recv() => return Ok(None),
                step = timeout(TICK, self.phone.next()) => step,
            };
            match step {
                Ok(Some((now, Step::Spoken))) => self.spoken(now)?,
                Ok(Some((now, Step::Event(event)))) => self.event(now, &event)?,
                Ok(None) => bail!("the call is over"),
                Err(_tick) => {}
            }
        }
    }

    fn spoken(&mut self, now: Duration) -> anyhow::Result<()> {
        self.narrator.conversation.spoken(now);
        if self.manual {
            self.screen.at(now, "the recording is through: commit")?;
            self.narrator.conversation.ask(now, Ask::Commit);
            // A call that is over meanwhile says so by its next event.
            let _over = self.phone.call().commit();
        } else {
            self.screen.at(now, "the recording is through; sending silence until the last turn is answered")?;
        }
        Ok(())
    }

    fn event(&mut self, now: Duration, event: &Event) -> anyhow::Result<()> {
        let speaker = self.phone.speaker();
        self.narrator.event(self.screen, now, event, |reply| speaker.position(now, reply))?;
        match event {
            Event::Audio { reply: Some(reply), data } => self.record(now, reply, data)?,
            Event::Message(message) => {
                if let ServerMsg::ToolCall { call_id, .. } = message.as_ref() {
                    self.narrator.conversation.ask(now, Ask::Tool);
                    let _over = self.phone.call().tool_result(call_id, NO_TOOLS);
                }
            }
            Event::Audio { reply: None, .. }
            | Event::Unknown(_)
            | Event::Dropped(_)
            | Event::Resumed { .. }
            | Event::Ended(_) => {}
        }
        Ok(())
    }

    fn record(&mut self, now: Duration, reply: &Arc<str>, data: &[u8]) -> anyhow::Result<()> {
        if self.tape.last().is_none_or(|(last, _)| last != reply) {
            self.tape.push((Arc::clone(reply), Vec::new()));
        }
        let Some((_, samples)) = self.tape.last_mut() else { return Ok(()) };
        if let Err(error) = self.ear.hear(data, samples) {
            self.screen.at(now, &format!("a message of {} bytes of audio is not {}: {error}", data.len(), self.out))?;
            // The loudspeaker has counted it: what follows must not move up.
            samples.resize(samples.len() + self.out.rate as usize / 50, 0);
        }
        Ok(())
    }

    /// The changing line: how far the recording is, what plays, what is being said.
    fn status(&mut self, now: Duration) -> anyhow::Result<()> {
        if !self.screen.is_live() {
            return Ok(());
        }
        let mut parts = Vec::new();
        if self.phone.mic().is_done() {
            parts.push(format!("{:6.1} s", now.as_secs_f64()));
        } else {
            let said = self.phone.mic().sent().min(self.length);
            parts.push(format!("saying {:.1} of {:.1} s", said.as_secs_f64(), self.length.as_secs_f64()));
        }
        if let Some(reply) = self.phone.speaker().playing(now) {
            let heard = self.phone.speaker().position(now, reply);
            parts.push(format!("hearing {}, {:.1} s", self.narrator.name(reply), heard.as_secs_f64()));
        }
        parts.extend(self.narrator.saying());
        Ok(self.screen.status(&parts.join(" | "))?)
    }

    /// Hangs up, prints the table, saves what was heard.
    pub(super) async fn finish(self, verdict: Option<Verdict>, out: &Path) -> anyhow::Result<()> {
        let Self { phone, narrator, out: format, tape, screen, .. } = self;
        let now = phone.now();
        let (dry, dry_time) = phone.speaker().underruns();
        let mut heard = Vec::new();
        for (reply, samples) in tape {
            let played = Format { codec: Codec::Pcm16, ..format }.bytes(phone.speaker().position(now, &reply)) / 2;
            let part = samples.get(..played).unwrap_or(&samples).to_vec();
            heard.push((reply, part, samples.len()));
        }
        if !matches!(verdict, Some(Verdict::Over(_))) {
            let end = phone.into_call().hang_up(GOODBYE).await;
            if !end.is_normal() {
                screen.line(&format!("warning: the call was not closed as asked for: {end}"))?;
            }
        }
        narrator.table(screen)?;
        if dry > 0 {
            screen.line(&format!("the loudspeaker ran dry {dry} times, {} ms in all", dry_time.as_millis()))?;
        }
        save(&heard, format, &narrator.conversation, out, screen)?;
        match verdict {
            Some(verdict) => answered(verdict, "this recording"),
            None => bail!("stopped by Ctrl-C or SIGTERM"),
        }
    }
}

/// Writes the heard parts one after the other, and says which they are.
fn save<W: Write>(
    heard: &[(Arc<str>, Vec<i16>, usize)],
    format: Format,
    conversation: &Conversation,
    out: &Path,
    screen: &mut Screen<W>,
) -> anyhow::Result<()> {
    let pcm = Format { codec: Codec::Pcm16, rate: format.rate };
    let bytes: Vec<u8> = heard.iter().flat_map(|(_, part, _)| part).flat_map(|sample| sample.to_le_bytes()).collect();
    if bytes.is_empty() {
        return Ok(screen.line("nothing was heard, so nothing is saved")?);
    }
    let length = |samples: usize| pcm.duration(samples * 2).as_secs_f64();
    let parts = heard.iter().filter(|(_, part, _)| !part.is_empty()).map(|(reply, part, all)| {
        let number = conversation.turns().iter().position(|turn| turn.reply.as_str() == &**reply).map_or(0, |i| i + 1);
        let cut = if part.len() < *all { format!(", cut from {:.2} s", length(*all)) } else { String::new() };
        format!("reply {number} ({:.2} s{cut})", length(part.len()))
    });
    let parts = parts.collect::<Vec<_>>().join(", ");
    write_wav(out, pcm, &bytes)?;
    screen.line(&format!("saved {}: {:.2} s, {parts}", out.display(), length(bytes.len() / 2)))?;
    Ok(())
}
