//! Does what a fault says to a session. Which fault is due, [`super::faults`] knows.
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{config::Delay, faults::FaultKind, outbox::Output, session::Session, validate::Refusal};

/// For ever, as far as a session is concerned.
const FOR_EVER: Duration = Duration::from_secs(1 << 40);

/// Faults that last.
#[derive(Debug, Default)]
pub(super) struct Damage {
    lag: Option<(Delay, Duration)>,
    /// Type of event (`None`: any), and how many more.
    duplicate: Vec<(Option<String>, u64)>,
    swallow: Vec<(String, u64)>,
    unknown_fields_until: Option<Duration>,
}

impl Damage {
    /// How often an event of this type is sent: once, twice or not at all.
    pub(super) fn copies(&mut self, kind: &str) -> usize {
        if let Some((_, left)) = self.swallow.iter_mut().find(|(event, left)| event == kind && *left > 0) {
            *left -= 1;
            return 0;
        }
        let twice = self
            .duplicate
            .iter_mut()
            .find(|(event, left)| *left > 0 && event.as_deref().is_none_or(|event| event == kind));
        match twice {
            Some((_, left)) => {
                *left -= 1;
                2
            }
            None => 1,
        }
    }

    /// Adds what nobody knows.
    pub(super) fn fields(&self, event: &mut Map<String, Value>, now: Duration) {
        if self.unknown_fields_until.is_some_and(|until| now < until) {
            event.insert("sim_unknown".into(), json!({ "why": "a fault", "delta": [1, null, "x"] }));
        }
    }

    /// How much later events come at the moment.
    pub(super) fn lag(&self, now: Duration) -> Option<Delay> {
        self.lag.filter(|(_, until)| now < *until).map(|(delay, _)| delay)
    }
}

impl Session {
    /// Lets a fault happen, unless it has happened often enough.
    pub(super) fn fault(&mut self, fault: usize) {
        let Some(kind) = self.faults.fire(fault) else { return };
        let until = |for_ms: Option<u64>| for_ms.map(|ms| self.now + Duration::from_millis(ms));
        match kind {
            // Other doors have seen to these.
            FaultKind::Refuse { .. } | FaultKind::Hang { .. } | FaultKind::Expiry { .. } => {}
            FaultKind::SlowStream { .. } | FaultKind::BreakStream { .. } | FaultKind::Answer { .. } => {}
            FaultKind::NoCreated => self.hold(FOR_EVER),
            FaultKind::Delay { delay, for_ms } => self.damage.lag = Some((delay, until(for_ms).unwrap_or(FOR_EVER))),
            FaultKind::StallSend { for_ms } => self.hold(until(for_ms).unwrap_or(FOR_EVER)),
            FaultKind::StallRead { for_ms } => self.reading(Output::StallReads { until: until(for_ms) }),
            FaultKind::SlowRead { bytes_per_s, for_ms } => {
                self.reading(Output::SlowReads { bytes_per_s, until: until(for_ms) });
            }
            FaultKind::Die { mid_frame, reset } => {
                // Nobody will see the end of it: any event will do.
                let partial = mid_frame.then(|| {
                    let delta = "A".repeat(4_096);
                    json!({ "type": "response.output_audio.delta", "delta": delta }).to_string()
                });
                self.die(partial, reset);
            }
            FaultKind::Close { code, reason } => self.close(code, &reason),
            FaultKind::Error { code, error_type, message, count } => {
                let refusal = Refusal { kind: error_type.into(), code: code.map(Into::into), message, param: None };
                for _ in 0..count {
                    self.refuse(&refusal, None);
                }
            }
            FaultKind::FailResponse { code, message } => self.fail_active(&code, &message),
            FaultKind::FailTranscript => self.fail_transcript(),
            FaultKind::ReorderTranscripts => self.hold_transcript(),
            FaultKind::Duplicate { event, count } => self.damage.duplicate.push((event, count)),
            FaultKind::Swallow { event, count } => self.damage.swallow.push((event, count)),
            FaultKind::UnknownEvents { count } => {
                for n in 0..count {
                    self.send("sim.unknown_event", json!({ "number": n, "delta": "bm90IGF1ZGlv" }));
                }
            }
            FaultKind::UnknownFields { for_ms } => {
                self.damage.unknown_fields_until = Some(until(for_ms).unwrap_or(FOR_EVER));
            }
            FaultKind::Oversized { bytes } => {
                let (head, tail) = (r#"{"type":"sim.oversized","padding":""#, r#""}"#);
                let padding = "A".repeat(bytes.saturating_sub(head.len() + tail.len()));
                self.send_raw(format!("{head}{padding}{tail}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_doubled_and_lost_as_often_as_told() {
        let mut damage = Damage {
            duplicate: vec![(Some("a".into()), 1), (None, 1)],
            swallow: vec![("b".into(), 1)],
            ..Damage::default()
        };
        let copies: Vec<usize> = ["b", "b", "a", "a", "a"].into_iter().map(|kind| damage.copies(kind)).collect();
        assert_eq!(copies, [0, 2, 2, 1, 1]);
    }
}
