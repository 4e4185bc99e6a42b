//! Asterisk's `chan_websocket`: bare audio in the channel's format, and control in plain words or in JSON.
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Command, Dialect, OnClear, Pieces, Rules, Said, Status, excerpt, object, string, text};
use crate::provider::{
    setup::Setup,
    wire::{Coding, Media, Message},
};

/// Asterisk frames and paces; XOFF at 900 frames, XON below 800, nothing is taken above 1,000.
pub(in crate::provider) const RULES: Rules = Rules {
    pieces: Pieces::Multiple,
    on_clear: OnClear::Lost,
    whole_frames: true,
    marks_wait: true,
    capacity: Some(1_000),
    overflow: "more than 1000 frames are queued; what came was ignored",
    flow: Some((900, 800)),
};

/// A longer message ends the call, bytes.
const LONGEST: usize = 65_500;

/// One channel.
#[derive(Debug)]
pub(in crate::provider) struct ChanWebSocket {
    setup: Setup,
    json: bool,
    channel: String,
}

impl ChanWebSocket {
    pub(in crate::provider) fn new(setup: &Setup) -> Self {
        let channel = format!("pbx1-{}.1", setup.epoch_ms / 1_000);
        Self { setup: setup.clone(), json: setup.json_control, channel }
    }

    /// An event in either form: JSON with the channel's id, or words, where some fields stand bare.
    fn event(&self, name: &str, fields: Value, words: &str) -> Message {
        if !self.json {
            return Message::Text(if words.is_empty() { name.to_owned() } else { format!("{name} {words}") });
        }
        let mut message = json!({ "event": name, "channel_id": self.channel });
        if let (Value::Object(message), Value::Object(fields)) = (&mut message, fields) {
            message.extend(fields);
        }
        text(&message)
    }

    fn command(&self, sent: &str) -> Command {
        if self.json {
            let Ok(message) = serde_json::from_str::<Value>(sent) else {
                return Command::Fault(format!("a control message that is not JSON: {}", excerpt(sent)));
            };
            let name = string(&message, &["command"]).unwrap_or_default();
            return command(name, string(&message, &["correlation_id"]).map(str::to_owned), true);
        }
        let (name, id) = sent.split_once(' ').map_or((sent, None), |(name, id)| (name, Some(id.to_owned())));
        command(name, id.filter(|id| !id.is_empty()), false)
    }

    fn status(&self, status: &Status) -> Message {
        let (xoff, xon) = RULES.flow.unwrap_or_default();
        let Status { queued, full, buffering, paused } = status;
        let fields = json!({
            "queue_length": queued, "xon_level": xon, "xoff_level": xoff, "queue_full": full,
            "bulk_media": buffering, "media_paused": paused,
        });
        let words = format!(
            "channel_id:{} queue_length:{queued} xon_level:{xon} xoff_level:{xoff} queue_full:{full} \
             bulk_media:{buffering} media_paused:{paused}",
            self.channel
        );
        self.event("STATUS", fields, &words)
    }
}

fn command(name: &str, id: Option<String>, json: bool) -> Command {
    match name {
        "ANSWER" => Command::Nothing,
        "HANGUP" => Command::HangUp,
        "START_MEDIA_BUFFERING" => Command::Buffer,
        "STOP_MEDIA_BUFFERING" => Command::Buffered(id),
        "MARK_MEDIA" => Command::Mark(id.unwrap_or_default()),
        "FLUSH_MEDIA" => Command::Clear,
        "PAUSE_MEDIA" => Command::Pause(true),
        "CONTINUE_MEDIA" => Command::Pause(false),
        "GET_STATUS" => Command::Status,
        "REPORT_QUEUE_DRAINED" => Command::TellDrained,
        "SET_MEDIA_DIRECTION" if json => Command::Nothing,
        other => Command::Fault(format!("an unknown command `{}`", excerpt(other))),
    }
}

/// A format's name in Asterisk.
fn format_name(media: Media) -> String {
    match (media.coding, media.rate) {
        (Coding::Mulaw, _) => "ulaw".to_owned(),
        (Coding::Alaw, _) => "alaw".to_owned(),
        (_, 8_000) => "slin".to_owned(),
        (_, rate) => format!("slin{}", rate / 1_000),
    }
}

impl Dialect for ChanWebSocket {
    fn start(&mut self) -> Vec<Message> {
        let (format, frame) = (format_name(self.setup.media), self.setup.media.frame_bytes());
        let (connection, channel) = (&self.setup.ids.stream, "WebSocket/voxrelay-0x1");
        if self.json {
            return vec![text(&json!({
                "event": "MEDIA_START",
                "connection_id": connection,
                "channel": channel,
                "channel_id": self.channel,
                "format": format,
                "optimal_frame_size": frame,
                "ptime": 20,
                "channel_variables": object(&self.setup.parameters),
            }))];
        }
        vec![Message::Text(format!(
            "MEDIA_START connection_id:{connection} channel:{channel} channel_id:{} format:{format} \
             optimal_frame_size:{frame} ptime:20",
            self.channel
        ))]
    }

    fn media(&mut self, frame: &[u8], _: u64) -> Message {
        Message::Binary(Bytes::copy_from_slice(frame))
    }

    fn digit(&mut self, digit: char, _: u64) -> Message {
        let words = format!("digit:{digit} channel_id:{}", self.channel);
        self.event("DTMF_END", json!({ "digit": digit.to_string() }), &words)
    }

    fn take(&mut self, message: &Message) -> Vec<Command> {
        vec![match message {
            Message::Binary(audio) if audio.len() > LONGEST => {
                Command::Fatal(format!("a message of {} bytes; allowed: {LONGEST}", audio.len()))
            }
            Message::Binary(audio) => Command::Play(audio.clone()),
            Message::Text(text) => self.command(text),
            Message::Close { .. } => Command::HangUp,
        }]
    }

    fn say(&mut self, said: &Said<'_>) -> Option<Message> {
        let id = |id: Option<&str>| id.map_or(json!({}), |id| json!({ "correlation_id": id }));
        Some(match said {
            Said::Mark { name, .. } => self.event("MEDIA_MARK_PROCESSED", id(Some(name)), name),
            Said::Buffered(of) => self.event("MEDIA_BUFFERING_COMPLETED", id(*of), of.unwrap_or_default()),
            Said::Xoff => self.event("MEDIA_XOFF", json!({}), ""),
            Said::Xon => self.event("MEDIA_XON", json!({}), ""),
            Said::Drained => self.event("QUEUE_DRAINED", json!({}), ""),
            Said::Status(status) => self.status(status),
            Said::Cleared | Said::Error => return None,
        })
    }
}
