//! What a device is, to us: something that takes one end of a ring and says how it is called.
use std::{fmt, time::Duration};

use super::tap::{MicEnd, SpeakerEnd};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Audio in.
    Microphone,
    /// Audio out.
    Loudspeaker,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Microphone => "microphone",
            Self::Loudspeaker => "loudspeaker",
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// A device's name or id, or a part of its name that only one has; `None`: the system's default.
    pub device: Option<String>,
    /// Audio per callback, roughly: the device may round it.
    pub period: Duration,
}

/// A stream that runs until it is dropped. Dropping may wait for the device: not on a task that has other things to do.
pub struct Running<End> {
    /// What people call the device.
    pub device: String,
    /// Our end of its ring.
    pub end: End,
    /// Stops it.
    pub guard: Box<dyn Send>,
}

impl<End> fmt::Debug for Running<End> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Opens devices. All of it may take a second and block: call it where that does not matter.
pub trait AudioIo: fmt::Debug + Send + Sync {
    /// Whether there is such a device, as far as that can be told without opening it.
    ///
    /// # Errors
    /// When there is none.
    fn check(&self, _side: Side, _want: &Want) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Begins to record.
    ///
    /// # Errors
    /// When there is no such device, or it does not work.
    fn open_microphone(&self, want: &Want) -> Result<Running<MicEnd>, DeviceError>;

    /// Begins to play.
    ///
    /// # Errors
    /// When there is no such device, or it does not work.
    fn open_loudspeaker(&self, want: &Want) -> Result<Running<SpeakerEnd>, DeviceError>;
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No device of that name.
    #[error("there is no {side} `{wanted}`; there {}", list(names))]
    NotFound {
        /// Which of the two.
        side: Side,
        /// What was asked for.
        wanted: String,
        /// What there is.
        names: Vec<String>,
    },
    /// More than one device could be meant.
    #[error("`{wanted}` could be any of these {side}s: {}", names.join(", "))]
    Ambiguous {
        /// Which of the two.
        side: Side,
        /// What was asked for.
        wanted: String,
        /// What it may mean.
        names: Vec<String>,
    },
    /// The system has no default.
    #[error("this computer has no {side}")]
    None {
        /// Which of the two.
        side: Side,
    },
    /// There is one, but it does not work.
    #[error("the {side} {device} does not work: {why}")]
    Failed {
        /// Which of the two.
        side: Side,
        /// Its name.
        device: String,
        /// What the system said.
        why: String,
    },
}

fn list(names: &[String]) -> String {
    match names {
        [] => "is none at all".to_owned(),
        names => format!("are: {}", names.join(", ")),
    }
}

/// Finds `wanted` among `names` (name and id of each): the same id or name, else the only one whose name holds it.
///
/// # Errors
/// When there is none, or more than one.
pub fn find(side: Side, wanted: &str, names: &[(String, String)]) -> Result<usize, DeviceError> {
    if let Some(index) = names.iter().position(|(name, id)| name == wanted || id == wanted) {
        return Ok(index);
    }
    let folded = wanted.to_lowercase();
    let part_of = |(_, (name, id)): &(usize, &(String, String))| {
        name.to_lowercase().contains(&folded) || id.to_lowercase().contains(&folded)
    };
    let some: Vec<(usize, &(String, String))> = names.iter().enumerate().filter(part_of).collect();
    let told = |(name, id): &(String, String)| if name == id { name.clone() } else { format!("{name} ({id})") };
    match some.as_slice() {
        [(index, _)] if !wanted.is_empty() => Ok(*index),
        [] | [_] => {
            let names = names.iter().map(told).collect();
            Err(DeviceError::NotFound { side, wanted: wanted.to_owned(), names })
        }
        some => {
            let names = some.iter().map(|(_, names)| told(names)).collect();
            Err(DeviceError::Ambiguous { side, wanted: wanted.to_owned(), names })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_name_id_or_a_part_that_only_one_has() {
        let names: Vec<(String, String)> = [("Headset", "hw:1"), ("Headset, second", "hw:2"), ("Webcam", "webcam")]
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .to_vec();
        for (wanted, want) in [("Headset", 0), ("hw:2", 1), ("webc", 2), ("SECOND", 1)] {
            assert_eq!(find(Side::Microphone, wanted, &names), Ok(want), "{wanted}");
        }
        for (wanted, want) in [
            (
                "Trumpet",
                "there is no microphone `Trumpet`; there are: Headset (hw:1), Headset, second (hw:2), Webcam (webcam)",
            ),
            ("head", "`head` could be any of these microphones: Headset (hw:1), Headset, second (hw:2)"),
            ("", "`` could be any of these microphones"),
        ] {
            let error = find(Side::Microphone, wanted, &names).unwrap_err().to_string();
            assert!(error.starts_with(want), "{wanted}: {error}");
        }
        let none = find(Side::Loudspeaker, "x", &[]).unwrap_err();
        assert_eq!(none.to_string(), "there is no loudspeaker `x`; there is none at all");
    }
}
