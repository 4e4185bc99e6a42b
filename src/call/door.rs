//! Between a client's frames and the core: which inputs a frame becomes, and which bytes an output becomes.
//!
//! Holds what must last from frame to frame (lanes, translations) and decides nothing.
use std::sync::Arc;

use bytes::Bytes;

use super::{
    At,
    core::{Core, Input},
    end::End,
    written::WrittenDoor,
};
use crate::{
    audio::lane::{AudioError, Downlink, Uplink},
    beta::{self, BetaClient},
    client::{
        openai::{self, Kind, Said},
        thin,
        wire::{AudioFormats, ClientMsg, ServerMsg},
    },
    config::AgentConfig,
    upstream::{Intent, SessionSetup},
};

/// A client's protocol, as one call speaks it.
#[derive(Debug)]
pub enum Door {
    /// `voxrelay.v1`: raw audio, and notes.
    Thin(Box<Thin>),
    /// OpenAI's own.
    OpenAi(OpenAi),
}

/// What the thin door keeps.
#[derive(Debug)]
pub struct Thin {
    setup: SessionSetup,
    audio: AudioFormats,
    uplink: Uplink,
    downlink: Downlink,
    /// Leave the client's socket alone while a chunk gathers.
    gather: bool,
    converted: Vec<u8>,
}

/// What the OpenAI door keeps.
#[derive(Debug, Default)]
pub struct OpenAi {
    /// A legacy client.
    beta: Option<Box<BetaClient>>,
    /// The model that the client asked for.
    asked: Option<String>,
}

impl Door {
    /// A thin client with these formats.
    pub fn thin(setup: SessionSetup, audio: AudioFormats, gather: bool) -> Self {
        Self::Thin(Box::new(Thin::new(setup, audio, gather)))
    }

    /// A door that another process had. `agent`: who speaks; none: whoever spoke there.
    pub fn restored(written: WrittenDoor, agent: Option<Arc<AgentConfig>>, gather: bool) -> Self {
        match written {
            WrittenDoor::Thin { audio, input, output, auto_turns, half, persona } => {
                let agent = agent.unwrap_or_else(|| Arc::new(*persona));
                let thin = Thin::new(SessionSetup { agent, input, output, auto_turns }, audio, gather);
                Self::Thin(Box::new(Thin { uplink: thin.uplink.with_half(half), ..thin }))
            }
            WrittenDoor::OpenAi { asked, beta, .. } => Self::OpenAi(OpenAi { beta, asked }),
        }
    }

    /// What another process must know of it. `intent`: the kind of session behind it.
    pub fn written(&self, intent: Intent) -> WrittenDoor {
        match self {
            Self::Thin(thin) => WrittenDoor::Thin {
                audio: thin.audio,
                input: thin.setup.input,
                output: thin.setup.output,
                auto_turns: thin.setup.auto_turns,
                half: thin.uplink.half(),
                persona: Box::new(AgentConfig::clone(&thin.setup.agent)),
            },
            Self::OpenAi(openai) => {
                WrittenDoor::OpenAi { asked: openai.asked.clone(), beta: openai.beta.clone(), intent }
            }
        }
    }

    /// An OpenAI client that `asked` for a model; `beta`: one that asked for the shape of the beta.
    pub fn openai(asked: Option<String>, beta: bool) -> Self {
        let mut door = OpenAi { beta: None, asked };
        if beta {
            door.speak_beta();
        }
        Self::OpenAi(door)
    }

    /// Its name, for the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Thin(_) => "thin",
            Self::OpenAi(_) => "openai",
        }
    }

    /// The client's socket may be left alone while a chunk gathers.
    pub fn gathers(&self) -> bool {
        matches!(self, Self::Thin(thin) if thin.gather)
    }

    /// The service finds the turns, and we need not hear of them at once.
    pub fn auto_turns(&self) -> bool {
        matches!(self, Self::Thin(thin) if thin.setup.auto_turns)
    }

    /// How to set the session up; `None`: the client does.
    pub fn setup(&self) -> Option<&SessionSetup> {
        match self {
            Self::Thin(thin) => Some(&thin.setup),
            Self::OpenAi(_) => None,
        }
    }

    /// Takes a binary message.
    pub fn binary(&mut self, core: &mut Core, now: At, bytes: &Bytes) {
        match self {
            Self::OpenAi(_) => {
                core.count_message();
                core.handle(now, Input::SaidAudio(bytes));
            }
            Self::Thin(_) if bytes.is_empty() => core.handle(now, Input::Ignored),
            Self::Thin(thin) => {
                thin.converted.clear();
                match thin.uplink.push(bytes, &mut thin.converted) {
                    Ok(length) => core.handle(now, Input::Audio { length, upstream: &thin.converted }),
                    Err(error) => core.handle(now, Input::InvalidAudio(error.to_string())),
                }
            }
        }
    }

    /// Takes a text message.
    pub fn text(&mut self, core: &mut Core, now: At, text: Bytes) {
        match self {
            Self::Thin(thin) => thin.text(core, now, &text),
            Self::OpenAi(openai) => openai.text(core, now, text),
        }
    }

    /// Our own words as the client knows them; `None`: it has no such words.
    pub fn write(&self, message: &ServerMsg) -> Option<Bytes> {
        match self {
            Self::Thin(_) => Some(thin::write(message)),
            Self::OpenAi(_) => openai::write(message),
        }
    }

    /// What is said first to a client that is back: its next token, and how many of its messages we have.
    pub fn resumed(&self, call: &str, token: String, got: u64) -> Bytes {
        let resume = Some(token);
        match self {
            Self::Thin(_) => thin::write(&ServerMsg::Resumed { call: call.to_owned(), resume, got }),
            Self::OpenAi(_) => openai::resumed(call, resume.as_deref(), got),
        }
    }

    /// A message of the service in the client's shape: none, one or more.
    pub fn relay(&mut self, text: Bytes, mut each: impl FnMut(Bytes)) {
        match self {
            Self::OpenAi(OpenAi { beta: Some(beta), .. }) => beta.down(text).into_iter().for_each(each),
            Self::OpenAi(_) | Self::Thin(_) => each(text),
        }
    }

    /// 20 ms of reply audio as the client wants it.
    ///
    /// # Errors
    /// When it cannot be converted: a bug of ours.
    pub fn play(&mut self, frame: &Bytes) -> Result<Bytes, AudioError> {
        match self {
            Self::Thin(thin) if !thin.downlink.passthrough() => {
                let mut out = Vec::new();
                thin.downlink.frame(frame, &mut out)?;
                Ok(out.into())
            }
            Self::Thin(_) | Self::OpenAi(_) => Ok(frame.clone()),
        }
    }

    /// What the conversion still holds of a reply that is complete.
    pub fn tail(&mut self) -> Option<Bytes> {
        let Self::Thin(thin) = self else { return None };
        let mut out = Vec::new();
        thin.downlink.flush(&mut out).unwrap_or(false).then(|| out.into())
    }

    /// Forgets what the conversion holds of a reply.
    pub fn drop_audio(&mut self) {
        if let Self::Thin(thin) = self {
            thin.downlink.reset();
        }
    }

    /// Forgets what the conversion holds of the caller's audio.
    pub fn drop_input(&mut self) {
        if let Self::Thin(thin) = self {
            thin.uplink.reset();
        }
    }

    /// Gives buffers back.
    pub fn shrink(&mut self) {
        if let Self::Thin(thin) = self {
            thin.converted = Vec::new();
        }
    }

    /// Close code and reason of an end.
    pub fn close(&self, end: &End) -> (u16, String) {
        match self {
            Self::Thin(_) => {
                let report = end.report();
                (report.close, report.code.unwrap_or_default().to_owned())
            }
            Self::OpenAi(_) => openai::close(end),
        }
    }
}

impl Thin {
    fn new(setup: SessionSetup, audio: AudioFormats, gather: bool) -> Self {
        let (uplink, downlink) = (Uplink::towards(audio.input, setup.input.rate), Downlink::new(audio.output));
        Self { setup, audio, uplink, downlink, gather, converted: Vec::new() }
    }

    fn text(&mut self, core: &mut Core, now: At, text: &[u8]) {
        let input = match thin::read(text) {
            thin::Text::Message(message) => {
                if message == ClientMsg::Commit && !self.setup.auto_turns {
                    self.converted.clear();
                    self.uplink.flush(&mut self.converted);
                    core.handle(now, Input::Flushed(&self.converted));
                }
                Input::Message(message)
            }
            thin::Text::Unknown => Input::Ignored,
            thin::Text::Invalid { field, message } => Input::Invalid { field, message },
        };
        core.handle(now, input);
    }
}

impl OpenAi {
    fn speak_beta(&mut self) {
        self.beta = Some(Box::new(BetaClient::new(self.asked.clone())));
    }

    fn text(&mut self, core: &mut Core, now: At, text: Bytes) {
        core.count_message();
        let said = Said::read(text);
        // Not every legacy client says so at the door.
        if self.beta.is_none() && said.kind == Kind::Configure && beta::is_beta_update(&said.text) {
            self.speak_beta();
        }
        match &mut self.beta {
            Some(beta) if !matches!(said.kind, Kind::Append { .. } | Kind::Invalid { .. }) => {
                for text in beta.up(said.text) {
                    core.handle(now, Input::Said(Said::read(text)));
                }
            }
            _ => core.handle(now, Input::Said(said)),
        }
    }
}
