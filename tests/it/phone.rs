//! Telephones: every provider's side, played against a relay on real sockets, and whoever pretends to be one.
#[path = "phone/bad.rs"]
mod bad;
#[path = "phone/hang_up.rs"]
mod hang_up;
#[path = "phone/retries.rs"]
mod retries;
#[path = "phone/shares.rs"]
mod shares;
#[path = "phone/talks.rs"]
mod talks;
#[path = "phone/tools.rs"]
mod tools;
#[path = "phone/world.rs"]
mod world;

use std::{collections::BTreeMap, fmt::Write as _, path::Path, sync::OnceLock};

use aws_lc_rs::{
    encoding::AsDer as _,
    rsa,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use voxrelay::{
    config::{Config, NumberConfig, PhoneAccountConfig, PhoneCodec, PhoneKind, Secret},
    provider::{Coding, Media, Provider, Reach, Setup},
};

use crate::{canary, support::Rig};

const PUBLIC: &str = "https://relay.example.com";
const SEED: [u8; 32] = [7; 32];

/// What an account signs with, or shows.
fn key(provider: Provider) -> String {
    match provider {
        Provider::Telnyx => STANDARD.encode(SEED),
        other => format!("phone-key-of-{}-0123456789abcdef", other.name()),
    }
}

const ACCOUNT: &str = "AC00000000000000000000000000000000";
const API_KEY: &str = "phone-api-key-0123456789abcdef";
const PASSWORD: &str = "phone-stream-password-0123456789";

fn kind(provider: Provider) -> PhoneKind {
    match provider {
        Provider::Twilio => PhoneKind::Twilio,
        Provider::SignalWire => PhoneKind::Signalwire,
        Provider::Telnyx => PhoneKind::Telnyx,
        Provider::Plivo => PhoneKind::Plivo,
        Provider::Vonage => PhoneKind::Vonage,
        Provider::Jambonz => PhoneKind::Jambonz,
        Provider::AudioFork => PhoneKind::Freeswitch,
        Provider::ChanWebSocket | Provider::AudioSocket => PhoneKind::Asterisk,
    }
}

/// The file of a Vonage application's key: made once, it takes a while.
fn rsa_key() -> &'static Path {
    static FILE: OnceLock<tempfile::NamedTempFile> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        let der = STANDARD.encode(pair.as_der().unwrap().as_ref());
        let lines: Vec<&str> = der.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, pem).unwrap();
        file
    });
    file.path()
}

/// An account of this provider that asks for this audio.
fn account(provider: Provider, audio: Option<(PhoneCodec, u32)>) -> PhoneAccountConfig {
    let secret = || Some(Secret::new(key(provider)));
    let mut account = PhoneAccountConfig { kind: Some(kind(provider)), ..PhoneAccountConfig::default() };
    (account.codec, account.rate) = audio.map_or((None, None), |(codec, rate)| (Some(codec), Some(rate)));
    account.account = Some(ACCOUNT.to_owned());
    match provider {
        Provider::Twilio | Provider::Plivo => account.auth_token = secret(),
        Provider::SignalWire => {
            (account.auth_token, account.signing_key) = (secret(), secret());
            account.stream_password = Some(Secret::new(PASSWORD));
        }
        Provider::Telnyx => {
            let pair = Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap();
            account.public_key = Some(STANDARD.encode(pair.public_key().as_ref()));
            account.api_key = Some(Secret::new(API_KEY));
        }
        Provider::Vonage => {
            account.signing_key = secret();
            account.private_key = Some(rsa_key().to_owned());
        }
        Provider::Jambonz => {
            account.signing_key = secret();
            account.api_key = Some(Secret::new(API_KEY));
            account.stream_password = Some(Secret::new(PASSWORD));
        }
        Provider::AudioFork | Provider::ChanWebSocket | Provider::AudioSocket => {
            account.api_key = Some(Secret::new(API_KEY));
            account.context = Some("voxrelay".to_owned());
            account.stream_password = Some(Secret::new(PASSWORD));
        }
    }
    account
}

/// Any number reaches the default agent, through these accounts.
fn phones(config: &mut Config, accounts: impl IntoIterator<Item = (String, PhoneAccountConfig)>) {
    Provider::ALL.into_iter().map(key).for_each(|key| canary::plant(&key));
    canary::plant(PASSWORD);
    canary::plant(API_KEY);
    config.phone.public_url = Some(PUBLIC.to_owned());
    config.phone.accounts = accounts.into_iter().collect::<BTreeMap<_, _>>();
    let any = NumberConfig { number: "*".to_owned(), agent: "default".to_owned(), account: None, tenant: None };
    config.phone.numbers = vec![any];
}

/// How the provider of this account finds the relay.
fn reach(rig: &Rig, provider: Provider, account: &str) -> Reach {
    Reach {
        voice_url: Some(format!("http://{}/phone/{account}/voice", rig.relay.addr())),
        public_url: Some(PUBLIC.to_owned()),
        auth_token: Some(key(provider).into()),
        stream_password: Some(PASSWORD.into())
            .filter(|_| kind(provider) == PhoneKind::Asterisk || provider == Provider::AudioFork),
        ..Reach::default()
    }
}

/// A call at a provider, before it begins.
fn setup(provider: Provider, seed: u64) -> Setup {
    let mut setup = Setup::new(provider, seed);
    (setup.plays_back, setup.journal) = (true, false);
    setup.epoch_ms = 1_767_225_600_000;
    if provider == Provider::Vonage {
        setup.ids.account = ACCOUNT.to_owned();
    }
    setup
}

/// A door, with one kind of audio.
struct DoorOf {
    name: String,
    provider: Provider,
    /// What the account asks for.
    audio: Option<(PhoneCodec, u32)>,
    /// What the caller's leg has, and what is sent back, where the provider does not do as the account asks.
    leg: Option<(Media, Media)>,
    /// Asterisk's control in plain words.
    plain: bool,
}

fn doors() -> Vec<DoorOf> {
    let l16 = |rate| Some((PhoneCodec::L16, rate));
    let pcmu = Some((PhoneCodec::Pcmu, 8_000));
    let be = Media { coding: Coding::L16Be, rate: 16_000 };
    let slin = |rate| Some((Media::l16(rate), Media::l16(rate)));
    let ulaw = Some((Media::MULAW, Media::MULAW));
    let rows = [
        (Provider::Twilio, None, None, false),
        (Provider::Telnyx, pcmu, None, false),
        (Provider::Telnyx, pcmu, Some((Media::ALAW, Media::MULAW)), false),
        (Provider::Telnyx, l16(16_000), slin(16_000), false),
        (Provider::Telnyx, l16(16_000), Some((be, be)), false),
        (Provider::SignalWire, pcmu, None, false),
        (Provider::SignalWire, l16(24_000), None, false),
        (Provider::Plivo, pcmu, None, false),
        (Provider::Plivo, l16(16_000), None, false),
        (Provider::Vonage, l16(8_000), None, false),
        (Provider::Vonage, l16(16_000), None, false),
        (Provider::Vonage, l16(24_000), None, false),
        (Provider::Jambonz, l16(8_000), None, false),
        (Provider::Jambonz, l16(16_000), None, false),
        (Provider::Jambonz, l16(24_000), None, false),
        (Provider::ChanWebSocket, None, ulaw, false),
        (Provider::ChanWebSocket, None, slin(16_000), true),
        (Provider::ChanWebSocket, None, slin(24_000), false),
        (Provider::AudioFork, None, None, false),
        (Provider::AudioSocket, None, slin(8_000), false),
        (Provider::AudioSocket, None, slin(16_000), false),
        (Provider::AudioSocket, None, slin(24_000), false),
    ];
    let mut doors = Vec::new();
    for (provider, audio, leg, plain) in rows {
        let mut name = format!("{}{}", provider.name(), doors.len());
        if let Some((media, _)) = leg {
            let _ = write!(name, "-{}", media.rate / 1_000);
        }
        doors.push(DoorOf { name, provider, audio, leg, plain });
    }
    doors
}

/// One door of each provider, for what no codec makes any difference to.
fn one_of_each() -> Vec<DoorOf> {
    let mut doors = doors();
    doors.dedup_by_key(|door| door.provider);
    doors
}
