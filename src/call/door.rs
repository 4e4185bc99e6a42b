//! Between a client's frames and the core: which inputs a frame becomes, and which bytes an output becomes.
//!
//! Holds what must last from frame to frame (lanes, translations) and decides nothing.
use std::sync::Arc;

use bytes::Bytes;

use super::{
    At,
    core::{Core, Input},
    end::End,
    phone::{Phone, Remote},
    written::WrittenDoor,
};
use crate::{
    audio::{
        lane::{AudioError, Downlink, Uplink},
        level::is_louder,
    },
    beta::{self, BetaClient},
    client::{
        openai::{self, Kind, Said},
        phone::Packet,
        thin,
        wire::{AudioFormats, ClientMsg, ServerMsg},
    },
    config::AgentConfig,
    net::outbox::Outbox,
    upstream::{Intent, SessionSetup},
};

/// A client's protocol, as one call speaks it.
#[derive(Debug)]
pub enum Door {
    /// `voxrelay.v1`: raw audio, and notes.
    Thin(Box<Lanes>),
    /// A telephone's media stream.
    Phone(Box<Phone>),
    /// OpenAI's own.
    OpenAi(OpenAi),
}

/// The two ways of a caller's audio, where the conversation is ours.
#[derive(Debug)]
pub struct Lanes {
    pub(super) setup: SessionSetup,
    pub(super) audio: AudioFormats,
    pub(super) uplink: Uplink,
    pub(super) downlink: Downlink,
    /// Leave the client's socket alone while a chunk gathers.
    gather: bool,
    pub(super) converted: Vec<u8>,
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
        Self::Thin(Box::new(Lanes::new(setup, audio, gather)))
    }

    /// A telephone.
    pub fn phone(phone: Phone) -> Self {
        Self::Phone(Box::new(phone))
    }

    /// A door that another process had. `agent`: who speaks; none: whoever spoke there.
    pub fn restored(written: WrittenDoor, agent: Option<Arc<AgentConfig>>, gather: bool) -> Self {
        match written {
            WrittenDoor::Thin { audio, input, output, auto_turns, half, persona } => {
                let agent = agent.unwrap_or_else(|| Arc::new(*persona));
                let lanes = Lanes::new(SessionSetup { agent, input, output, auto_turns }, audio, gather);
                Self::Thin(Box::new(Lanes { uplink: lanes.uplink.with_half(half), ..lanes }))
            }
            WrittenDoor::OpenAi { asked, beta, .. } => Self::OpenAi(OpenAi { beta, asked }),
        }
    }

    /// What another process must know of it; none: its client cannot come back to another one. `intent`: the kind of session
    /// behind it.
    pub fn written(&self, intent: Intent) -> Option<WrittenDoor> {
        Some(match self {
            Self::Thin(lanes) => WrittenDoor::Thin {
                audio: lanes.audio,
                input: lanes.setup.input,
                output: lanes.setup.output,
                auto_turns: lanes.setup.auto_turns,
                half: lanes.uplink.half(),
                persona: Box::new(AgentConfig::clone(&lanes.setup.agent)),
            },
            Self::OpenAi(openai) => {
                WrittenDoor::OpenAi { asked: openai.asked.clone(), beta: openai.beta.clone(), intent }
            }
            Self::Phone(_) => return None,
        })
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
            Self::Phone(phone) => phone.name(),
            Self::OpenAi(_) => "openai",
        }
    }

    fn lanes(&self) -> Option<&Lanes> {
        match self {
            Self::Thin(lanes) => Some(lanes),
            Self::Phone(phone) => Some(&phone.lanes),
            Self::OpenAi(_) => None,
        }
    }

    fn lanes_mut(&mut self) -> Option<&mut Lanes> {
        match self {
            Self::Thin(lanes) => Some(lanes),
            Self::Phone(phone) => Some(&mut phone.lanes),
            Self::OpenAi(_) => None,
        }
    }

    /// The client's socket may be left alone while a chunk gathers.
    pub fn gathers(&self) -> bool {
        self.lanes().is_some_and(|lanes| lanes.gather)
    }

    /// The service finds the turns, and we need not hear of them at once.
    pub fn auto_turns(&self) -> bool {
        self.lanes().is_some_and(|lanes| lanes.setup.auto_turns)
    }

    /// How to set the session up; `None`: the client does.
    pub fn setup(&self) -> Option<&SessionSetup> {
        self.lanes().map(|lanes| &lanes.setup)
    }

    /// The other side takes no more audio for the moment.
    pub fn is_full(&self, now: At) -> bool {
        matches!(self, Self::Phone(phone) if phone.is_full(now))
    }

    /// Takes a binary message.
    pub fn binary(&mut self, core: &mut Core, now: At, bytes: &Bytes) {
        match self {
            Self::OpenAi(_) => {
                core.count_message();
                core.handle(now, Input::SaidAudio(bytes));
            }
            Self::Phone(phone) => phone.take(core, now, &Packet::Binary(bytes.clone())),
            Self::Thin(_) if bytes.is_empty() => core.handle(now, Input::Ignored),
            Self::Thin(lanes) => lanes.take(core, now, bytes),
        }
    }

    /// Takes a text message.
    pub fn text(&mut self, core: &mut Core, now: At, text: Bytes) {
        match self {
            Self::Thin(lanes) => lanes.text(core, now, &text),
            Self::Phone(phone) => phone.take(core, now, &Packet::Text(text)),
            Self::OpenAi(openai) => openai.text(core, now, text),
        }
    }

    /// Says our own words as the client knows them, if it does; before audio that is queued where it is `urgent`. How many bytes.
    pub fn tell(&mut self, now: At, message: &ServerMsg, urgent: bool, outbox: &mut Outbox) -> usize {
        let text = match self {
            Self::Phone(phone) => return phone.tell(now, message, outbox),
            Self::Thin(_) | Self::OpenAi(_) => self.write(message),
        };
        let Some(text) = text else { return 0 };
        let length = text.len();
        if urgent {
            outbox.urgent(text)
        } else {
            outbox.text(text)
        }
        length
    }

    /// Our own words as the client knows them; `None`: it has no such words.
    pub fn write(&self, message: &ServerMsg) -> Option<Bytes> {
        match self {
            Self::Thin(_) => Some(thin::write(message)),
            Self::OpenAi(_) => openai::write(message),
            Self::Phone(_) => None,
        }
    }

    /// What is said first to a client that is back: its next token, and how many of its messages we have.
    pub fn resumed(&self, call: &str, token: String, got: u64) -> Bytes {
        let resume = Some(token);
        match self {
            Self::OpenAi(_) => openai::resumed(call, resume.as_deref(), got),
            // No telephone has a token to come back with.
            Self::Thin(_) | Self::Phone(_) => thin::write(&ServerMsg::Resumed { call: call.to_owned(), resume, got }),
        }
    }

    /// A message of the service in the client's shape: none, one or more.
    pub fn relay(&mut self, text: Bytes, mut each: impl FnMut(Bytes)) {
        match self {
            Self::OpenAi(OpenAi { beta: Some(beta), .. }) => beta.down(text).into_iter().for_each(each),
            Self::OpenAi(_) | Self::Thin(_) | Self::Phone(_) => each(text),
        }
    }

    /// Says 20 ms of reply audio as the client wants it. How many bytes.
    ///
    /// # Errors
    /// When it cannot be converted: a bug of ours.
    pub fn play(&mut self, frame: &Bytes, outbox: &mut Outbox) -> Result<usize, AudioError> {
        let audio = match self {
            Self::Phone(phone) => return phone.play(frame, outbox),
            Self::Thin(lanes) => lanes.convert(frame)?,
            Self::OpenAi(_) => frame.clone(),
        };
        let length = audio.len();
        outbox.binary(audio);
        Ok(length)
    }

    /// Says what the conversion still holds of a reply that is complete. How many bytes.
    pub fn tail(&mut self, outbox: &mut Outbox) -> usize {
        let tail = match self {
            Self::Phone(phone) => return phone.tail(outbox),
            Self::Thin(lanes) => lanes.tail(),
            Self::OpenAi(_) => None,
        };
        let length = tail.as_ref().map_or(0, Bytes::len);
        tail.into_iter().for_each(|tail| outbox.binary(tail));
        length
    }

    /// Forgets what the conversion holds of a reply.
    pub fn drop_audio(&mut self) {
        if let Some(lanes) = self.lanes_mut() {
            lanes.downlink.reset();
        }
    }

    /// Forgets what the conversion holds of the caller's audio.
    pub fn drop_input(&mut self) {
        if let Some(lanes) = self.lanes_mut() {
            lanes.uplink.reset();
        }
    }

    /// It is a telephone's.
    pub fn is_phone(&self) -> bool {
        matches!(self, Self::Phone(_))
    }

    /// Its client has closed the socket: what that says.
    pub fn closed(&self) -> End {
        if self.is_phone() { End::HungUp } else { End::Asked }
    }

    /// Presses keys; `false`: the line has no way to do so but by sound.
    pub fn press(&self, keys: &str, outbox: &mut Outbox) -> bool {
        matches!(self, Self::Phone(phone) if phone.press(keys, outbox))
    }

    /// What can be asked of whoever has the line.
    pub fn remote(&self) -> Option<&Remote> {
        if let Self::Phone(phone) = self { phone.remote() } else { None }
    }

    /// The last word of a call that ends, where closing the socket does not say it.
    pub fn farewell(&self, outbox: &mut Outbox) {
        if let Self::Phone(phone) = self {
            phone.farewell(outbox);
        }
    }

    /// Gives buffers back.
    pub fn shrink(&mut self) {
        if let Some(lanes) = self.lanes_mut() {
            lanes.converted = Vec::new();
        }
    }

    /// Close code and reason of an end.
    pub fn close(&self, end: &End) -> (u16, String) {
        match self {
            Self::Thin(_) => {
                let report = end.report();
                (report.close, report.code.unwrap_or_default().to_owned())
            }
            Self::Phone(phone) => phone.close(end),
            Self::OpenAi(_) => openai::close(end),
        }
    }
}

impl Lanes {
    /// Between these formats and what the service takes and gives.
    pub fn new(setup: SessionSetup, audio: AudioFormats, gather: bool) -> Self {
        let (uplink, downlink) = (Uplink::towards(audio.input, setup.input.rate), Downlink::new(audio.output));
        Self { setup, audio, uplink, downlink, gather, converted: Vec::new() }
    }

    /// Takes the caller's audio.
    pub(super) fn take(&mut self, core: &mut Core, now: At, bytes: &[u8]) {
        self.converted.clear();
        match self.uplink.push(bytes, &mut self.converted) {
            Ok(length) => {
                let barge_in = self.setup.agent.barge_in;
                if barge_in.is_guarded() {
                    let loud = is_louder(self.setup.input, &self.converted, barge_in.loud_db);
                    core.handle(now, Input::Sounds { length, loud });
                }
                core.handle(now, Input::Audio { length, upstream: &self.converted });
            }
            Err(error) => core.handle(now, Input::InvalidAudio(error.to_string())),
        }
    }

    /// 20 ms of reply audio as the client wants it.
    pub(super) fn convert(&mut self, frame: &Bytes) -> Result<Bytes, AudioError> {
        if self.downlink.passthrough() {
            return Ok(frame.clone());
        }
        let mut out = Vec::new();
        self.downlink.frame(frame, &mut out)?;
        Ok(out.into())
    }

    /// What the conversion still holds of a reply that is complete.
    pub(super) fn tail(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.downlink.flush(&mut out).unwrap_or(false).then(|| out.into())
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
