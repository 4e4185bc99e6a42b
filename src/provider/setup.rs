//! Which provider, which call, in which of the provider's variants.
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    quirk::{Network, Quirks},
    wire::{Coding, Media},
};

/// Whose side is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Twilio Media Streams, bidirectional.
    Twilio,
    /// SignalWire's streams: Twilio's dialect, wider.
    SignalWire,
    /// Telnyx media streaming in RTP mode.
    Telnyx,
    /// Plivo audio streams.
    Plivo,
    /// Vonage Voice over a WebSocket.
    Vonage,
    /// jambonz `listen`, streaming.
    Jambonz,
    /// FreeSWITCH with drachtio's `mod_audio_fork`: speaks; most builds cannot be spoken to ([`Setup::plays_back`]).
    AudioFork,
    /// Asterisk's WebSocket channel.
    ChanWebSocket,
    /// Asterisk's AudioSocket, over TCP.
    AudioSocket,
}

impl Provider {
    /// Every one of them.
    pub const ALL: [Self; 9] = [
        Self::Twilio,
        Self::SignalWire,
        Self::Telnyx,
        Self::Plivo,
        Self::Vonage,
        Self::Jambonz,
        Self::AudioFork,
        Self::ChanWebSocket,
        Self::AudioSocket,
    ];

    /// Its name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Twilio => "twilio",
            Self::SignalWire => "signalwire",
            Self::Telnyx => "telnyx",
            Self::Plivo => "plivo",
            Self::Vonage => "vonage",
            Self::Jambonz => "jambonz",
            Self::AudioFork => "freeswitch",
            Self::ChanWebSocket => "asterisk",
            Self::AudioSocket => "audiosocket",
        }
    }

    /// What it sends where nothing else is asked for.
    pub fn media(self) -> Media {
        match self {
            Self::Twilio | Self::SignalWire | Self::Telnyx | Self::Plivo => Media::MULAW,
            Self::Vonage | Self::AudioFork => Media::l16(16_000),
            Self::Jambonz | Self::ChanWebSocket => Media::l16(24_000),
            Self::AudioSocket => Media::l16(8_000),
        }
    }

    /// The subprotocol that it offers and insists on.
    pub fn subprotocol(self) -> Option<&'static str> {
        match self {
            Self::Jambonz => Some("audio.jambonz.org"),
            Self::AudioFork => Some("audio.drachtio.org"),
            Self::ChanWebSocket => Some("media"),
            _ => None,
        }
    }

    /// Whether it can carry this.
    fn carries(self, media: Media) -> bool {
        let l16 = |rates: &[u32]| media.coding == Coding::L16 && rates.contains(&media.rate);
        let g711 = media == Media::MULAW || media == Media::ALAW;
        match self {
            Self::Twilio => media == Media::MULAW,
            Self::SignalWire => media == Media::MULAW || l16(&[16_000, 24_000]),
            Self::Telnyx => {
                let linear = matches!(media.coding, Coding::L16 | Coding::L16Be);
                g711 || linear && [8_000, 16_000, 24_000, 48_000].contains(&media.rate)
            }
            Self::Plivo => media == Media::MULAW || l16(&[8_000, 16_000]),
            Self::Vonage => l16(&[8_000, 16_000, 24_000]),
            Self::Jambonz | Self::AudioFork => l16(&[8_000, 16_000, 24_000, 48_000, 64_000]),
            Self::ChanWebSocket => g711 || l16(&[8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000]),
            Self::AudioSocket => l16(&[8_000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000]),
        }
    }
}

impl std::str::FromStr for Provider {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|provider| provider.name() == name);
        found.ok_or_else(|| format!("there is no provider `{name}`; known: {known}"))
    }
}

/// The ids of a call, each in its provider's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// The account at the provider.
    pub account: String,
    /// The call.
    pub call: String,
    /// The stream of its audio; with AudioSocket the UUID that the dialplan gives.
    pub stream: String,
}

impl Ids {
    /// Ids of a call that never was: the same seed, the same ids.
    pub fn invent(provider: Provider, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut number = || dice.random::<u128>();
        match provider {
            Provider::Twilio => Self {
                account: format!("AC{:032x}", number()),
                call: format!("CA{:032x}", number()),
                stream: format!("MZ{:032x}", number()),
            },
            Provider::Telnyx => {
                Self { account: uuid(number()), call: format!("v3:{:032x}", number()), stream: uuid(number()) }
            }
            Provider::Plivo => {
                Self { account: "MA000000000000000000".to_owned(), call: uuid(number()), stream: uuid(number()) }
            }
            _ => Self { account: uuid(number()), call: uuid(number()), stream: uuid(number()) },
        }
    }
}

/// A number as RFC 9562 writes UUIDs, of version 4.
fn uuid(number: u128) -> String {
    let hex = format!("{:032x}", number & !(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// A call, before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Whose side is played.
    pub provider: Provider,
    /// Who calls.
    pub from: String,
    /// The number that was called.
    pub to: String,
    /// What the markup gave to the stream: custom parameters, headers or metadata, by provider. The call token is one.
    pub parameters: Vec<(String, String)>,
    /// The caller's voice on the wire.
    pub media: Media,
    /// What is expected back.
    pub reply: Media,
    /// Asterisk's control messages are JSON, not plain words.
    pub json_control: bool,
    /// FreeSWITCH's module is one of those that play what comes back.
    pub plays_back: bool,
    /// The call's ids.
    pub ids: Ids,
    /// Unix time of the line's beginning, ms, for those who tell it.
    pub epoch_ms: u64,
    /// From the provider's playout to the caller's ear.
    pub ear_delay: Duration,
    /// What the network does.
    pub network: Network,
    /// What the provider does beside its reference.
    pub quirks: Quirks,
    /// Keep every message both ways; a call of an hour has a hundred megabytes of them.
    pub journal: bool,
    /// Of all chance.
    pub seed: u64,
}

/// A provider cannot do what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot carry {media}", provider.name())]
pub struct SetupError {
    /// The provider.
    pub provider: Provider,
    /// What was asked for.
    pub media: Media,
}

impl Setup {
    /// A call from one invented number to another, as the provider does it where nothing else is said.
    pub fn new(provider: Provider, seed: u64) -> Self {
        Self {
            provider,
            from: "+15005550006".to_owned(),
            to: "+13125550101".to_owned(),
            parameters: Vec::new(),
            media: provider.media(),
            reply: provider.media(),
            json_control: true,
            plays_back: false,
            ids: Ids::invent(provider, seed),
            epoch_ms: 1_767_225_600_000,
            // Asterisk tells a mark when the frame before it goes to the core, about a frame before it is heard.
            ear_delay: if provider == Provider::ChanWebSocket { super::wire::FRAME } else { Duration::ZERO },
            network: Network::default(),
            quirks: Quirks::default(),
            journal: true,
            seed,
        }
    }

    /// The same call with this on the wire, both ways.
    ///
    /// # Errors
    /// When the provider cannot carry it.
    pub fn with_media(mut self, media: Media) -> Result<Self, SetupError> {
        (self.media, self.reply) = (media, media);
        self.check()?;
        Ok(self)
    }

    /// Whether the provider can carry what is asked for.
    ///
    /// # Errors
    /// What it cannot carry.
    pub fn check(&self) -> Result<(), SetupError> {
        let refused = [self.media, self.reply].into_iter().find(|media| !self.provider.carries(*media));
        refused.map_or(Ok(()), |media| Err(SetupError { provider: self.provider, media }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_providers_form_and_come_back_with_the_seed() {
        let ids = Ids::invent(Provider::Twilio, 7);
        assert!(ids.stream.starts_with("MZ") && ids.stream.len() == 34, "{ids:?}");
        assert_eq!(ids, Ids::invent(Provider::Twilio, 7));
        assert_ne!(ids, Ids::invent(Provider::Twilio, 8));
        let stream = Ids::invent(Provider::AudioSocket, 1).stream;
        assert_eq!((stream.len(), stream.as_bytes()[14]), (36, b'4'), "{stream}");
    }

    #[test]
    fn what_a_provider_cannot_carry_is_refused() {
        for (provider, media, good) in [
            (Provider::Twilio, Media::l16(16_000), false),
            (Provider::SignalWire, Media::l16(24_000), true),
            (Provider::Telnyx, Media { coding: Coding::L16Be, rate: 16_000 }, true),
            (Provider::Plivo, Media::l16(24_000), false),
            (Provider::Vonage, Media::MULAW, false),
            (Provider::AudioSocket, Media::l16(192_000), true),
        ] {
            assert_eq!(Setup::new(provider, 1).with_media(media).is_ok(), good, "{provider:?} {media}");
        }
        let error = Setup::new(Provider::Twilio, 1).with_media(Media::ALAW).unwrap_err();
        assert_eq!(error.to_string(), "twilio cannot carry A-law 8000 Hz");
    }
}
