//! Audio of a client that owns its conversation, for a service that takes PCM at another rate than its protocol says.
//!
//! The protocol knows only 24 kHz; some compatible servers hear `pcm16` as 16 kHz (Qwen-Omni, alibabacloud help pages, read
//! 2026-11). Only the base64 of an append changes; everything else of the message stays as it is.
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use crate::{
    audio::{Format, lane::Uplink},
    client::openai::{Kind, Said},
};

/// One session's change of rate.
#[derive(Debug)]
pub struct Rerate(Uplink);

impl Rerate {
    /// From the protocol's rate to `rate`; `None`: they are the same.
    pub fn to(rate: u32) -> Option<Self> {
        let lane = Uplink::towards(Format::PCM_24K, rate);
        (!lane.passthrough()).then_some(Self(lane))
    }

    /// An append with its audio at the service's rate. Anything else, and audio that cannot be read, stays as it is: the
    /// service says what is wrong with it.
    pub fn apply(&mut self, text: Bytes) -> Bytes {
        self.converted(&text).unwrap_or(text)
    }

    fn converted(&mut self, text: &Bytes) -> Option<Bytes> {
        let Kind::Append { audio } = Said::read(text.clone()).kind else { return None };
        let samples = STANDARD.decode(text.get(audio.clone())?).ok()?;
        let mut out = Vec::new();
        self.0.push(&samples, &mut out).ok()?;
        let (head, tail) = (text.get(..audio.start)?, text.get(audio.end..)?);
        Some(Bytes::from([head, STANDARD.encode(out).as_bytes(), tail].concat()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::audio::testing::{correlation, hello, hello_at};

    #[test]
    fn the_service_hears_the_same_at_its_own_rate() {
        let mut rerate = Rerate::to(16_000).unwrap();
        let bytes: Vec<u8> = hello().iter().flat_map(|s| s.to_le_bytes()).collect();
        let mut heard = Vec::new();
        for piece in bytes.chunks(4_802) {
            let text = format!(
                r#"{{"event_id":"e","type":"input_audio_buffer.append","audio":"{}","x":1}}"#,
                STANDARD.encode(piece)
            );
            let value: Value = serde_json::from_slice(&rerate.apply(text.into())).unwrap();
            assert_eq!((value["event_id"].as_str(), value["x"].as_u64()), (Some("e"), Some(1)));
            let audio = STANDARD.decode(value["audio"].as_str().unwrap()).unwrap();
            heard.extend(audio.as_chunks::<2>().0.iter().map(|s| i16::from_le_bytes(*s)));
        }
        let (alike, _) = correlation(&hello_at(16_000), &heard, 160);
        assert!(alike >= 0.99, "{alike}");
    }

    #[test]
    fn what_is_no_audio_stays_as_it_is() {
        assert!(Rerate::to(24_000).is_none());
        let mut rerate = Rerate::to(16_000).unwrap();
        for text in [r#"{"type":"response.create"}"#, r#"{"type":"input_audio_buffer.append","audio":"no base64!"}"#] {
            assert_eq!(rerate.apply(Bytes::from(text)), text);
        }
    }
}
