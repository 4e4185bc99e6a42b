//! What providers tell of a call, each in its own form, signed as it signs.
use secrecy::SecretString;
use serde_json::{Value, json};

use super::Order;
use crate::provider::{
    Provider, Setup,
    webhook::{self, Request, WebhookError},
};

/// A step of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Begun,
    Ringing,
    Answered,
    Machine,
    StreamStarted,
    StreamEnded,
    Completed(u64),
    Busy,
    NoAnswer,
    Rejected,
    Canceled,
}

impl Step {
    /// Twilio's word, which most others share.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Begun => "initiated",
            Self::Ringing => "ringing",
            Self::Answered => "in-progress",
            Self::Machine => "machine_end_beep",
            Self::StreamStarted => "stream-started",
            Self::StreamEnded => "stream-stopped",
            Self::Completed(_) => "completed",
            Self::Busy => "busy",
            Self::NoAnswer => "no-answer",
            Self::Rejected => "failed",
            Self::Canceled => "canceled",
        }
    }
}

/// How a step is told at `url`; `None`: the provider does not tell it.
pub(super) fn request(
    order: &Order,
    setup: &Setup,
    url: &str,
    step: Step,
    sequence: u64,
    unix_s: u64,
) -> Option<Result<Request, WebhookError>> {
    let key = order.key.as_ref();
    match order.provider {
        Provider::Twilio | Provider::SignalWire => Some(form(setup, url, &twilio(order, step, sequence), key, unix_s)),
        Provider::Plivo => Some(form(setup, url, &plivo(order, step, sequence)?, key, unix_s)),
        Provider::Telnyx => Some(webhook::told(setup, telnyx(order, step, sequence)?.to_string(), key, unix_s)),
        Provider::Vonage => Some(webhook::told(setup, vonage(order, step)?.to_string(), key, unix_s)),
        Provider::Jambonz => Some(webhook::told(setup, jambonz(order, step)?.to_string(), key, unix_s)),
        _ => None,
    }
}

type Pairs = Vec<(&'static str, String)>;

fn form(
    setup: &Setup,
    url: &str,
    pairs: &Pairs,
    key: Option<&SecretString>,
    unix_s: u64,
) -> Result<Request, WebhookError> {
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    webhook::posted(setup, url, &pairs, key, unix_s)
}

fn twilio(order: &Order, step: Step, sequence: u64) -> Pairs {
    let mut pairs = vec![
        ("AccountSid", order.ids.account.clone()),
        ("CallSid", order.ids.call.clone()),
        ("Direction", "outbound-api".to_owned()),
        ("From", order.from.clone()),
        ("SequenceNumber", sequence.to_string()),
        ("To", order.to.clone()),
    ];
    match step {
        Step::StreamStarted | Step::StreamEnded => {
            pairs.extend([("StreamEvent", step.word().to_owned()), ("StreamSid", order.ids.stream.clone())]);
        }
        Step::Machine => {
            pairs.extend([("AnsweredBy", step.word().to_owned()), ("CallStatus", "in-progress".to_owned())]);
        }
        _ => pairs.push(("CallStatus", step.word().to_owned())),
    }
    if let Step::Completed(seconds) = step {
        pairs.push(("CallDuration", seconds.to_string()));
    }
    pairs
}

/// `ring_url`, `hangup_url`, the stream's callback and the machine's.
fn plivo(order: &Order, step: Step, sequence: u64) -> Option<Pairs> {
    let event = match step {
        Step::Begun | Step::Answered => return None,
        Step::Ringing => "Ring",
        Step::Machine => "MachineDetection",
        Step::StreamStarted => "StartStream",
        Step::StreamEnded => "StopStream",
        _ => "Hangup",
    };
    let mut pairs = vec![
        ("CallUUID", order.ids.call.clone()),
        ("Direction", "outbound".to_owned()),
        ("Event", event.to_owned()),
        ("From", order.from.trim_start_matches('+').to_owned()),
        ("RequestUUID", order.ids.account.clone()),
        ("Sequence", sequence.to_string()),
        ("To", order.to.trim_start_matches('+').to_owned()),
    ];
    match step {
        Step::Machine => pairs.push(("Machine", "true".to_owned())),
        Step::StreamStarted | Step::StreamEnded => pairs.push(("StreamID", order.ids.stream.clone())),
        Step::Rejected => pairs.push(("CallStatus", "rejected".to_owned())),
        Step::Canceled => pairs.push(("CallStatus", "cancel".to_owned())),
        Step::NoAnswer => pairs.push(("CallStatus", "no-answer".to_owned())),
        _ => pairs.push(("CallStatus", step.word().to_owned())),
    }
    if let Step::Completed(seconds) = step {
        pairs.push(("Duration", seconds.to_string()));
    }
    Some(pairs)
}

fn telnyx(order: &Order, step: Step, sequence: u64) -> Option<Value> {
    let (kind, more) = match step {
        Step::Begun => ("call.initiated", ("direction", "outgoing")),
        Step::Ringing => return None,
        Step::Answered => ("call.answered", ("state", "answered")),
        Step::Machine => ("call.machine.greeting.ended", ("result", "beep_detected")),
        Step::StreamStarted => ("streaming.started", ("state", "answered")),
        Step::StreamEnded => ("streaming.stopped", ("state", "answered")),
        Step::Completed(_) => ("call.hangup", ("hangup_cause", "normal_clearing")),
        Step::Busy => ("call.hangup", ("hangup_cause", "user_busy")),
        Step::NoAnswer => ("call.hangup", ("hangup_cause", "timeout")),
        Step::Rejected => ("call.hangup", ("hangup_cause", "call_rejected")),
        Step::Canceled => ("call.hangup", ("hangup_cause", "originator_cancel")),
    };
    let mut payload = json!({"call_control_id": order.ids.call, "call_leg_id": order.ids.stream,
        "direction": "outgoing", "from": order.from, "to": order.to});
    if let Value::Object(fields) = &mut payload {
        fields.insert(more.0.to_owned(), json!(more.1));
    }
    Some(json!({"data": {"event_type": kind, "id": format!("{}-{sequence}", order.ids.stream), "record_type": "event",
        "payload": payload}, "meta": {"attempt": 1}}))
}

fn vonage(order: &Order, step: Step) -> Option<Value> {
    let status = match step {
        Step::Begun => "started",
        Step::Answered | Step::StreamStarted => "answered",
        Step::Machine => "machine",
        Step::StreamEnded => "disconnected",
        Step::NoAnswer => "timeout",
        Step::Rejected => "rejected",
        Step::Canceled => "cancelled",
        other => other.word(),
    };
    let is_stream = matches!(step, Step::StreamStarted | Step::StreamEnded);
    // The stream is a leg of its own.
    let (uuid, to) = match is_stream {
        true => (order.ids.stream.clone(), "wss://relay/phone/vonage/stream".to_owned()),
        false => (order.ids.call.clone(), order.to.trim_start_matches('+').to_owned()),
    };
    let mut body = json!({"status": status, "uuid": uuid, "to": to, "direction": "outbound",
        "from": order.from.trim_start_matches('+'), "conversation_uuid": format!("CON-{}", order.ids.stream)});
    if let Value::Object(fields) = &mut body {
        match step {
            Step::Machine => drop(fields.insert("sub_state".to_owned(), json!("beep_start"))),
            Step::Completed(seconds) => drop(fields.insert("duration".to_owned(), json!(seconds.to_string()))),
            _ => {}
        }
    }
    Some(body)
}

fn jambonz(order: &Order, step: Step) -> Option<Value> {
    let mut body = json!({"call_sid": order.ids.call, "account_sid": order.ids.account, "direction": "outbound",
        "from": order.from, "to": order.to, "call_status": step.word()});
    let fields = body.as_object_mut()?;
    match step {
        Step::Begun => drop(fields.insert("call_status".to_owned(), json!("trying"))),
        Step::Machine => {
            fields.remove("call_status");
            fields.insert("type".to_owned(), json!("amd_tone_detected"));
        }
        Step::StreamStarted | Step::StreamEnded => return None,
        Step::Completed(seconds) => drop(fields.insert("duration".to_owned(), json!(seconds))),
        _ => {}
    }
    Some(body)
}
