//! What goes wrong on the way, and when: the script's types and its file. What the keys mean stands on the [page](super).
use std::time::Duration;

use super::frames::Part;
use crate::scripted::{self, Delay, Keys, Nth};

/// Longest piece that `glue` puts together, bytes: what is kept of a direction without delay.
pub(super) const BUFFER: usize = 64 << 10;

/// All faults of a proxy. The default has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    /// Seeds the chances.
    pub seed: u64,
    /// In the order of the file.
    pub list: Vec<Fault>,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: Kind,
    /// On which connection, from 1; `None`: on every one.
    pub connection: Option<u64>,
    /// To which bytes.
    pub direction: Direction,
    /// When.
    pub when: When,
    /// So much later, ms.
    pub after_ms: u64,
    /// In this share of the cases, 0 to 1.
    pub chance: f64,
    /// At most so often in all.
    pub times: Option<u64>,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the server, which the proxy connects to, to the client.
    ToClient,
    /// From the client, which connects to the proxy, to the server.
    ToServer,
    /// Each of both.
    #[default]
    Both,
}

/// The moment of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long after the connection was taken, ms.
    At(u64),
    /// Once so many bytes have come in its direction.
    Bytes(u64),
    /// At a WebSocket frame of its direction.
    Frame {
        /// Which one.
        nth: Nth,
        /// Where in it.
        part: Part,
    },
}

/// What goes wrong. The keys are explained in the [page](super).
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the page's table is their documentation")]
pub enum Kind {
    Refuse,
    Stall { for_ms: Option<u64> },
    Delay { delay: Delay, for_ms: Option<u64> },
    Rate { bytes_per_s: u64, for_ms: Option<u64> },
    Drip { bytes: usize, every_ms: u64, for_ms: Option<u64> },
    Slice { min: usize, max: usize, for_ms: Option<u64> },
    Glue { bytes: usize, ms: u64, for_ms: Option<u64> },
    Blackhole { for_ms: Option<u64> },
    HalfClose,
    Close,
    Reset,
    Flip { bit: Option<u8>, per_byte: Option<f64>, for_ms: Option<u64> },
}

impl Kind {
    const NAMES: [&'static str; 12] = [
        "refuse",
        "stall",
        "delay",
        "rate",
        "drip",
        "slice",
        "glue",
        "blackhole",
        "half_close",
        "close",
        "reset",
        "flip",
    ];

    /// Its name in the file and in the statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Stall { .. } => "stall",
            Self::Delay { .. } => "delay",
            Self::Rate { .. } => "rate",
            Self::Drip { .. } => "drip",
            Self::Slice { .. } => "slice",
            Self::Glue { .. } => "glue",
            Self::Blackhole { .. } => "blackhole",
            Self::HalfClose => "half_close",
            Self::Close => "close",
            Self::Reset => "reset",
            Self::Flip { .. } => "flip",
        }
    }

    /// Whether it comes in place of a connection to the server.
    pub(super) fn is_at_connect(self) -> bool {
        matches!(self, Self::Refuse | Self::Stall { .. })
    }
}

impl Fault {
    /// Happens on every connection from its begin, in both directions, each time.
    pub fn new(kind: Kind) -> Self {
        let (connection, direction) = (None, Direction::Both);
        Self { kind, connection, direction, when: When::At(0), after_ms: 0, chance: 1.0, times: None }
    }

    /// Only on the n-th connection, from 1.
    #[must_use]
    pub fn on(self, connection: u64) -> Self {
        Self { connection: Some(connection), ..self }
    }

    /// Only to these bytes.
    #[must_use]
    pub fn to(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }

    /// At this moment.
    #[must_use]
    pub fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    /// At most so often in all.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    pub(super) fn after(&self) -> Duration {
        Duration::from_millis(self.after_ms)
    }

    fn from_keys(keys: &mut Keys<'_>, name: &str) -> Result<Self, String> {
        let kind = kind(keys, name)?;
        let mut fault = Self::new(kind);
        fault.connection = keys.integer("connection", 1, u64::MAX)?;
        if !kind.is_at_connect() {
            let directions =
                [("to_client", Direction::ToClient), ("to_server", Direction::ToServer), ("both", Direction::Both)];
            fault.direction = keys.word("direction", &directions)?.unwrap_or_default();
            fault.when = when(keys)?;
            fault.after_ms = keys.integer("after_ms", 0, 86_400_000)?.unwrap_or(0);
        }
        fault.chance = keys.share("chance")?.unwrap_or(1.0);
        fault.times = keys.integer("times", 1, u64::MAX)?;
        Ok(fault)
    }
}

impl Script {
    /// No faults yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, list: Vec::new() }
    }

    /// One fault more.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> Self {
        self.list.push(fault);
        self
    }

    /// Reads a script.
    ///
    /// # Errors
    /// What is wrong, with the line and what is allowed.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        let (seed, list) = scripted::read(text, Fault::from_keys)?;
        Ok(Self { seed, list })
    }
}

fn kind(keys: &mut Keys<'_>, name: &str) -> Result<Kind, String> {
    Ok(match name {
        "refuse" => Kind::Refuse,
        "stall" => Kind::Stall { for_ms: keys.span()? },
        "delay" => {
            let ms = keys.integer("ms", 0, 3_600_000)?.unwrap_or(0);
            let jitter_ms = keys.integer("jitter_ms", 0, 3_600_000)?.unwrap_or(0);
            Kind::Delay { delay: Delay { ms, jitter_ms }, for_ms: keys.span()? }
        }
        "rate" => {
            let bytes_per_s = keys.integer("bytes_per_s", 1, 1 << 40)?.unwrap_or(8_000);
            Kind::Rate { bytes_per_s, for_ms: keys.span()? }
        }
        "drip" => Kind::Drip {
            bytes: size(keys, "bytes")?.unwrap_or(1),
            every_ms: keys.integer("every_ms", 1, 3_600_000)?.unwrap_or(10),
            for_ms: keys.span()?,
        },
        "slice" => {
            let min = size(keys, "min")?.unwrap_or(1);
            let max = size(keys, "max")?.unwrap_or(min);
            if max < min {
                return keys.mistake(format_args!("`max` is {max}; allowed: not less than `min`, which is {min}"));
            }
            Kind::Slice { min, max, for_ms: keys.span()? }
        }
        "glue" => Kind::Glue {
            bytes: size(keys, "bytes")?.unwrap_or(BUFFER),
            ms: keys.integer("ms", 1, 3_600_000)?.unwrap_or(100),
            for_ms: keys.span()?,
        },
        "blackhole" => Kind::Blackhole { for_ms: keys.span()? },
        "half_close" => Kind::HalfClose,
        "close" => Kind::Close,
        "reset" => Kind::Reset,
        "flip" => {
            let bit = keys.small("bit", 0, 7)?.and_then(|bit| u8::try_from(bit).ok());
            let per_byte = keys.share("per_byte")?;
            Kind::Flip { bit, per_byte, for_ms: if per_byte.is_some() { keys.span()? } else { None } }
        }
        other => return keys.unknown_kind(other, &Kind::NAMES),
    })
}

fn size(keys: &mut Keys<'_>, key: &'static str) -> Result<Option<usize>, String> {
    Ok(keys.integer(key, 1, BUFFER as u64)?.and_then(|size| usize::try_from(size).ok()))
}

fn when(keys: &mut Keys<'_>) -> Result<When, String> {
    let at = keys.integer("at_ms", 0, 86_400_000)?.map(When::At);
    let bytes = keys.integer("after_bytes", 0, u64::MAX)?.map(When::Bytes);
    let nth = keys.nth("frame")?;
    let part = keys.word("part", &[("before", Part::Before), ("middle", Part::Middle)])?;
    if part.is_some() && nth.is_none() {
        return keys.mistake("`part` needs a `frame`");
    }
    let frame = nth.map(|nth| When::Frame { nth, part: part.unwrap_or_default() });
    let mut moments = [at, bytes, frame].into_iter().flatten();
    match (moments.next(), moments.next()) {
        (Some(_), Some(_)) => keys.mistake("a fault has one moment; take one of at_ms, after_bytes, frame"),
        (when, _) => Ok(when.unwrap_or(When::At(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the page, so that it cannot rot.
    fn example() -> String {
        let page = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//!"));
        let page: Vec<&str> = page.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        let from = page.iter().position(|line| *line == "```toml").unwrap();
        let len = page[from + 1..].iter().position(|line| *line == "```").unwrap();
        page[from + 1..from + 1 + len].join("\n")
    }

    #[test]
    fn the_example_of_the_page_is_read_and_can_be_built() {
        let middle = When::Frame { nth: Nth::At(40), part: Part::Middle };
        let delay = Kind::Delay { delay: Delay { ms: 200, jitter_ms: 200 }, for_ms: None };
        let blackhole = Fault::new(Kind::Blackhole { for_ms: Some(10_000) }).when(When::At(5_000)).times(3);
        let built = Script::new(7)
            .with(Fault::new(delay).to(Direction::ToClient))
            .with(Fault::new(Kind::Reset).on(2).to(Direction::ToClient).when(middle))
            .with(Fault { chance: 0.25, ..blackhole });
        assert_eq!(Script::from_toml(&example()).unwrap(), built);
    }

    #[test]
    fn every_kind_can_be_written_and_the_page_names_it() {
        for name in Kind::NAMES {
            let script = Script::from_toml(&format!("[[fault]]\nkind = \"{name}\"")).unwrap();
            assert_eq!(script.list[0].kind.name(), name);
            assert!(include_str!("mod.rs").contains(&format!("//! | `{name}` |")), "{name} is missing on the page");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, want) in [
            ("sed = 1", "unknown field `sed`"),
            ("[[fault]]\nms = 1", "line 1: a fault needs a `kind`"),
            ("\n[[fault]]\nkind = \"explode\"", "line 2: fault kind `explode` is not known; allowed: refuse, stall"),
            (
                "[[fault]]\nkind = \"reset\"\nms = 3",
                "line 3: fault `reset` has no key `ms` here; it has: kind, connection",
            ),
            ("[[fault]]\nkind = \"refuse\"\nat_ms = 3", "line 3: fault `refuse` has no key `at_ms` here"),
            (
                "[[fault]]\nkind = \"reset\"\ndirection = \"up\"",
                "line 3: `direction` is \"up\"; allowed: \"to_client\", \"to_server\", \"both\"",
            ),
            ("[[fault]]\nkind = \"reset\"\npart = \"middle\"", "line 1: `part` needs a `frame`"),
            ("[[fault]]\nkind = \"reset\"\nframe = 1\nat_ms = 1", "line 1: a fault has one moment"),
            ("[[fault]]\nkind = \"reset\"\nframe = 0", "line 3: `frame` is 0; allowed: a number from 1, or \"each\""),
            (
                "[[fault]]\nkind = \"slice\"\nmin = 4\nmax = 2",
                "line 1: `max` is 2; allowed: not less than `min`, which is 4",
            ),
            (
                "[[fault]]\nkind = \"glue\"\nbytes = 99_999",
                "line 3: `bytes` is 99999; allowed: a whole number from 1 to 65536",
            ),
            ("[[fault]]\nkind = \"flip\"\nbit = 8", "line 3: `bit` is 8; allowed: a whole number from 0 to 7"),
            (
                "[[fault]]\nkind = \"rate\"\nbytes_per_s = 0",
                "line 3: `bytes_per_s` is 0; allowed: a whole number from 1",
            ),
        ] {
            let error = Script::from_toml(text).unwrap_err();
            assert!(error.contains(want), "{text}\n  gives: {error}\n  wants: {want}");
        }
    }
}
