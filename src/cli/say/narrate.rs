//! A call in words: what `say` and `talk` print while it goes on.
//!
//! Knows the conversation, and what is being said but is not complete. Prints through a [`Screen`]; decides nothing.
use std::{io::Write, time::Duration};

use super::{
    conversation::{Conversation, Patience, Verdict},
    screen::Screen,
    table::{name_of, seconds, table},
};
use crate::{
    caller::Event,
    client::wire::{Role, ServerMsg},
};

/// Tells a call.
pub(in crate::cli) struct Narrator {
    pub(in crate::cli) conversation: Conversation,
    words: Vec<Words>,
}

/// What one item's words are so far.
struct Words {
    item: String,
    who: &'static str,
    reply: Option<String>,
    text: String,
}

impl Narrator {
    /// `auto`: turns are found by the service.
    pub(in crate::cli) fn new(auto: bool, patience: Patience) -> Self {
        Self { conversation: Conversation::new(auto, patience), words: Vec::new() }
    }

    /// Takes an event and says what there is to say about it; `heard` is how much of a reply has been.
    pub(in crate::cli) fn event<W: Write>(
        &mut self,
        screen: &mut Screen<W>,
        now: Duration,
        event: &Event,
        heard: impl Fn(&str) -> Duration,
    ) -> anyhow::Result<()> {
        self.conversation.handle(now, event);
        match event {
            Event::Message(message) => self.message(screen, now, message, heard),
            Event::Audio { reply: None, .. } => Ok(screen.at(now, "audio came before any reply; it is not kept")?),
            Event::Unknown(text) => {
                let text: String = text.chars().take(200).collect();
                Ok(screen.at(now, &format!("a message that this version does not know: {text}"))?)
            }
            Event::Dropped(end) => Ok(screen.at(now, &format!("connection lost ({end}), coming back"))?),
            Event::Resumed { after } => Ok(screen.at(now, &format!("back after {:.1} s", after.as_secs_f64()))?),
            Event::Audio { .. } | Event::Ended(_) => Ok(()),
        }
    }

    fn message<W: Write>(
        &mut self,
        screen: &mut Screen<W>,
        now: Duration,
        message: &ServerMsg,
        heard: impl Fn(&str) -> Duration,
    ) -> anyhow::Result<()> {
        let text = match message {
            ServerMsg::SpeechStarted { at_ms } => format!("speech begins at {}", seconds(*at_ms)),
            ServerMsg::SpeechStopped { at_ms } => format!("speech ends at {}", seconds(*at_ms)),
            ServerMsg::ReplyStarted { reply } => format!("{} starts", self.name(reply)),
            ServerMsg::Clear { reply } => {
                format!("{} is cut off; {:.2} s of it were heard", self.name(reply), heard(reply).as_secs_f64())
            }
            ServerMsg::ReplyEnded { reply, status, audio_ms, heard_ms, .. } => {
                self.unfinished_words(screen, now, reply)?;
                let (audio, heard) = (seconds(*audio_ms), seconds(*heard_ms));
                format!("{} {}: {heard} heard of {audio}", self.name(reply), name_of(*status))
            }
            ServerMsg::Transcript { .. } => return self.transcript(screen, now, message),
            ServerMsg::ToolCall { name, .. } => {
                format!("the agent asks for the tool {name}; it is told that there is none here")
            }
            ServerMsg::Notice { code, message, .. } => format!("notice {code}: {message}"),
            ServerMsg::Error { error } => {
                let field = error.field.as_ref().map(|field| format!(" (field `{field}`)")).unwrap_or_default();
                format!("error {}: {}{field}", error.code, error.message)
            }
            ServerMsg::Draining { deadline_ms } => format!("the server goes away in {}", seconds(*deadline_ms)),
            ServerMsg::Ready { .. } | ServerMsg::Resumed { .. } | ServerMsg::Ack { .. } | ServerMsg::Pong { .. } => {
                return Ok(());
            }
        };
        Ok(screen.at(now, &text)?)
    }

    /// `reply 2`, or the id of a reply that never started.
    pub(in crate::cli) fn name(&self, reply: &str) -> String {
        let number = self.conversation.turns().iter().position(|turn| turn.reply == reply);
        number.map_or_else(|| format!("reply {reply}"), |index| format!("reply {}", index + 1))
    }

    /// What is being said right now.
    pub(in crate::cli) fn saying(&self) -> Option<String> {
        self.words.last().map(|words| format!("{}: {}", words.who, words.text.trim()))
    }

    /// The table of where the milliseconds went, if there was a turn.
    pub(in crate::cli) fn table<W: Write>(&self, screen: &mut Screen<W>) -> anyhow::Result<()> {
        screen.line("")?;
        if !self.conversation.turns().is_empty() {
            for line in table(self.conversation.turns()) {
                screen.line(&line)?;
            }
            screen.line("")?;
        }
        Ok(())
    }

    fn transcript<W: Write>(
        &mut self,
        screen: &mut Screen<W>,
        now: Duration,
        message: &ServerMsg,
    ) -> anyhow::Result<()> {
        let ServerMsg::Transcript { role, item, reply, delta, text, last } = message else { return Ok(()) };
        let who = match role {
            Role::User => "you",
            Role::Assistant => "agent",
        };
        let at = self.words.iter().position(|words| words.item == *item);
        if *last {
            let said = at.map(|at| self.words.remove(at).text).unwrap_or_default();
            let text = text.as_deref().unwrap_or(&said);
            return Ok(screen.at(now, &format!("{who}: {}", text.trim()))?);
        }
        let more = delta.as_deref().unwrap_or_default();
        match at.and_then(|at| self.words.get_mut(at)) {
            Some(words) => words.text.push_str(more),
            None => self.words.push(Words { item: item.clone(), who, reply: reply.clone(), text: more.to_owned() }),
        }
        Ok(())
    }

    /// The words of a reply that was cut off have no final form.
    fn unfinished_words<W: Write>(&mut self, screen: &mut Screen<W>, now: Duration, reply: &str) -> anyhow::Result<()> {
        for words in self.words.extract_if(.., |words| words.reply.as_deref() == Some(reply)) {
            screen.at(now, &format!("{}: {} ...", words.who, words.text.trim()))?;
        }
        Ok(())
    }
}

/// What a verdict means for whoever has waited for an answer.
///
/// # Errors
/// Every verdict but an answer; `what` is what was said to the agent.
pub(in crate::cli) fn answered(verdict: Verdict, what: &str) -> anyhow::Result<()> {
    Err(match verdict {
        Verdict::Answered => return Ok(()),
        Verdict::NoSpeech => {
            anyhow::anyhow!("no answer: the service told of no speech in {what} (--manual commits it anyway)")
        }
        Verdict::Failed(why) => anyhow::anyhow!("no answer: {why}"),
        Verdict::Late(quiet) => anyhow::anyhow!("no answer: nothing has come for {} s (--wait)", quiet.as_secs()),
        Verdict::Endless(total) => {
            anyhow::anyhow!("given up {} s after the recording's end (--deadline)", total.as_secs())
        }
        Verdict::Over(end) => anyhow::anyhow!("the call ended before it was answered: {end}"),
    })
}
