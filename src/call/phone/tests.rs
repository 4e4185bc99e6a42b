//! Telephone, core and a provider's playout buffer in virtual time: what a caller's ear has heard, against what we think it has.
//!
//! No sockets and no clock, so the figures are exact; `--nocapture` prints them.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    audio::{
        Format,
        lane::{upstream_format, upstream_input},
        testing::{correlation, hello_at},
    },
    call::{
        core::{Life, Output, Plan},
        door::Door,
    },
    client::{
        phone::{
            asterisk::Asterisk,
            audiosocket::AudioSocket,
            freeswitch,
            jambonz::{self, Listen},
            json::Json,
            plivo, signalwire, telnyx, twilio,
            vonage::Vonage,
        },
        wire::{AudioFormats, ReplyStatus},
    },
    config::{AgentConfig, Govern, PhoneByteOrder},
    net::outbox::Kind,
    provider::{Coding, Line, Media as Wire, Message, Network, Provider, Setup},
    upstream::{Command, Ended, Event, SessionSetup},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const FRAME_20: Duration = Duration::from_millis(20);

/// Whose marks say what was heard; the others' clocks do.
fn has_marks(provider: Provider) -> bool {
    !matches!(provider, Provider::AudioFork | Provider::AudioSocket)
}

fn dialect(setup: &Setup) -> Box<dyn Dialect> {
    match setup.provider {
        Provider::Twilio => Box::new(Json::new(&twilio::TABLE, None)),
        Provider::SignalWire => Box::new(Json::new(&signalwire::TABLE, None)),
        Provider::Telnyx => Box::new(Json::new(&telnyx::TABLE, Some(format(setup.reply)))),
        Provider::Plivo => Box::new(Json::new(&plivo::TABLE, None)),
        Provider::Vonage => Box::new(Vonage),
        Provider::Jambonz => Box::new(Listen::new(&jambonz::HABITS)),
        Provider::AudioFork => Box::new(Listen::new(&freeswitch::HABITS)),
        Provider::ChanWebSocket => Box::new(Asterisk::default()),
        Provider::AudioSocket => Box::new(AudioSocket::default()),
    }
}

fn format(media: Wire) -> Format {
    let codec = match media.coding {
        Coding::Mulaw => Codec::Mulaw,
        Coding::Alaw => Codec::Alaw,
        Coding::L16 | Coding::L16Be => Codec::Pcm16,
    };
    Format { codec, rate: media.rate }
}

/// Every door with each of its kinds of audio.
fn doors() -> Vec<Setup> {
    let l16 = Wire::l16;
    let be = Wire { coding: Coding::L16Be, rate: 16_000 };
    [
        (Provider::Twilio, vec![Wire::MULAW]),
        (Provider::SignalWire, vec![Wire::MULAW, l16(24_000)]),
        (Provider::Telnyx, vec![Wire::MULAW, Wire::ALAW, l16(16_000), be]),
        (Provider::Plivo, vec![Wire::MULAW, l16(16_000)]),
        (Provider::Vonage, vec![l16(8_000), l16(16_000), l16(24_000)]),
        (Provider::Jambonz, vec![l16(8_000), l16(16_000), l16(24_000)]),
        (Provider::ChanWebSocket, vec![Wire::MULAW, l16(16_000), l16(24_000)]),
        (Provider::AudioSocket, vec![l16(8_000), l16(16_000), l16(24_000)]),
        (Provider::AudioFork, vec![l16(16_000)]),
    ]
    .into_iter()
    .flat_map(|(provider, medias)| medias.into_iter().map(move |media| (provider, media)))
    .map(|(provider, media)| {
        let mut setup = Setup::new(provider, 7).with_media(media).unwrap();
        (setup.plays_back, setup.journal) = (true, false);
        setup
    })
    .collect()
}

/// Every door once: what was heard does not depend on the codec. At 24 kHz where it has that, since nothing is converted then.
fn each_door() -> Vec<Setup> {
    let mut each: Vec<Setup> = Vec::new();
    for setup in doors() {
        match each.last_mut() {
            Some(last) if last.provider == setup.provider && setup.reply.rate == 24_000 => *last = setup,
            Some(last) if last.provider == setup.provider => {}
            _ => each.push(setup),
        }
    }
    each
}

fn named(setup: &Setup) -> String {
    format!("{} {}", setup.provider.name(), setup.reply)
}

fn core(input: Format, output: Format, lead: Duration) -> Core {
    let audio = AudioFormats { input, output };
    let life =
        Life { call: "c".into(), max: 3_600 * SECOND, idle: None, silence: None, stall: 10 * SECOND, credential: None };
    let plan = Plan {
        agent: "default".into(),
        audio,
        upstream_input: upstream_input(input, 24_000),
        upstream_output: upstream_format(output),
        auto_turns: true,
        silence: 500 * MS,
        ends_speech: 500 * MS,
        greeting: None,
        chunk: 60 * MS,
        guard: None,
        prompt: None,
        keypad: 1_500 * MS,
        lead: Some(lead),
        batch: 100 * MS,
        tool_timeout: 30 * SECOND,
        line_tools: Default::default(),
        last_words: Duration::ZERO,
        own_tools: Default::default(),
        max_backlog: 300 * SECOND,
        max_message_bytes: 1 << 18,
        transcribed: false,
        history_tokens: 0,
        govern: Govern::Never,
        base_tokens: 0,
        reply_tokens: 0,
    };
    let mut core = Core::owner(life, plan, None);
    core.handle(At::ZERO, Input::SessionUp(None));
    core
}

/// A call between a provider's line and the core.
struct Sitting {
    line: Line,
    core: Core,
    door: Door,
    outbox: Outbox,
    now: Duration,
    next_frame: Duration,
    voice: VecDeque<i16>,
    /// AudioSocket's bytes that make no frame yet.
    unread: Vec<u8>,
    upstream: Format,
    /// What went to the service, as samples of its format.
    sent_up: Vec<u8>,
    typed: Vec<String>,
    told: Vec<ServerMsg>,
    cuts: Vec<u64>,
    ended: Option<End>,
}

impl Sitting {
    fn new(setup: Setup) -> Self {
        Self::with(setup, PhoneByteOrder::Auto)
    }

    fn with(setup: Setup, order: PhoneByteOrder) -> Self {
        let provider = setup.provider;
        let mut line = Line::new(setup.clone());
        let mut dialect = dialect(&setup);
        line.open(Duration::ZERO);
        let (mut now, mut unread, mut start) = (Duration::ZERO, Vec::new(), None);
        while start.is_none() {
            while let Some(message) = line.poll(now) {
                for packet in packets(provider, message, &mut unread) {
                    if let Said::Start(found) = dialect.read(&packet).unwrap() {
                        start = Some(found);
                    }
                }
            }
            if start.is_none() {
                now += FRAME_20;
                line.speak(now, &vec![0; setup.media.frame_samples()]);
            }
        }
        let start = start.unwrap();
        let lead = dialect.habits().lead;
        let core = core(start.input, start.output, lead);
        let session = SessionSetup {
            agent: Arc::new(AgentConfig::default()),
            input: upstream_input(start.input, 24_000),
            output: upstream_format(start.output),
            auto_turns: true,
        };
        let audio = AudioFormats { input: start.input, output: start.output };
        let upstream = session.output;
        let phone = Phone::new(Lanes::new(session, audio, false), dialect, &start);
        let door = Door::phone(phone.with_byte_order(order));
        Self {
            line,
            core,
            door,
            outbox: Outbox::default(),
            now,
            next_frame: now + FRAME_20,
            voice: VecDeque::new(),
            unread,
            upstream,
            sent_up: Vec::new(),
            typed: Vec::new(),
            told: Vec::new(),
            cuts: Vec::new(),
            ended: None,
        }
    }

    /// Everything that can be done now.
    fn settle(&mut self) {
        loop {
            let provider = self.line.setup().provider;
            let mut moved = false;
            while let Some(message) = self.line.poll(self.now) {
                moved = true;
                for packet in packets(provider, message, &mut self.unread) {
                    match packet {
                        Packet::Text(text) => self.door.text(&mut self.core, self.now, text),
                        Packet::Binary(bytes) => self.door.binary(&mut self.core, self.now, &bytes),
                    }
                }
            }
            self.core.handle(self.now, Input::Tick);
            while let Some(output) = self.core.poll(self.now, !self.door.is_full(self.now)) {
                moved = true;
                self.act(output);
            }
            while let Some(queued) = self.outbox.pop() {
                moved = true;
                let message = match queued.kind {
                    Kind::Text | Kind::Spoken => Message::Text(String::from_utf8(queued.payload.to_vec()).unwrap()),
                    Kind::Binary | Kind::Control => Message::Binary(framed(provider, queued.payload)),
                    Kind::Ping => continue,
                };
                self.line.handle(self.now, message);
            }
            if !moved {
                return;
            }
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Send(message) => {
                self.door.tell(self.now, &message, false, &mut self.outbox);
                self.told.push(message);
            }
            Output::SendNow(message) => {
                self.door.tell(self.now, &message, true, &mut self.outbox);
                self.told.push(message);
            }
            Output::Audio { frame, first } => {
                self.door.play(&frame, &mut self.outbox).unwrap();
                if first {
                    self.core.handle(self.now, Input::FirstAudioLeft);
                }
            }
            Output::AudioTail => {
                self.door.tail(&mut self.outbox);
            }
            Output::DropAudio => {
                self.outbox.drop_binary();
                self.door.drop_audio();
            }
            Output::Service { command: Command::Append(audio), .. } => self.sent_up.extend_from_slice(&audio),
            Output::Service { command: Command::UserText { text }, .. } => self.typed.push(text),
            Output::Service { command: Command::Truncate { audio_end_ms, .. }, .. } => self.cuts.push(audio_end_ms),
            Output::PingService => self.core.handle(self.now, Input::ServicePong),
            Output::PingClient => self.core.handle(self.now, Input::ClientPong),
            Output::End(end) => self.ended = Some(end),
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        self.core.handle(self.now, Input::Service(event));
        self.settle();
    }

    /// Time passes; the caller's voice, or silence, comes every 20 ms.
    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        loop {
            self.settle();
            let wakes = [self.line.deadline(), self.core.deadline(!self.door.is_full(self.now)), Some(self.next_frame)];
            let wake = wakes.into_iter().flatten().filter(|at| *at > self.now).min().unwrap_or(end);
            if wake > end {
                break;
            }
            self.now = wake;
            if self.now == self.next_frame {
                let frame = self.line.setup().media.frame_samples();
                let mut samples: Vec<i16> = self.voice.drain(..frame.min(self.voice.len())).collect();
                samples.resize(frame, 0);
                self.line.speak(self.now, &samples);
                self.next_frame += FRAME_20;
            }
        }
        self.now = end;
        self.settle();
    }

    /// The service's reply, in deltas of 200 ms, all at once.
    fn reply(&mut self, name: &str, samples: &[i16]) {
        let mut bytes = Vec::new();
        match crate::audio::g711::Law::of(self.upstream.codec) {
            Some(law) => law.encode_into(samples, &mut bytes),
            None => bytes.extend(samples.iter().flat_map(|sample| sample.to_le_bytes())),
        }
        self.event(Event::ReplyCreated { response: name.into(), aside: false });
        for piece in bytes.chunks(self.upstream.bytes(200 * MS)) {
            let audio = Bytes::copy_from_slice(piece);
            self.event(Event::Audio { response: name.into(), item: format!("item_{name}"), content_index: 0, audio });
        }
    }

    fn done(&mut self, name: &str, ended: Ended) {
        let (response, reason, retry_after, limit, usage) = (name.into(), None, None, None, None);
        self.event(Event::ReplyDone { response, ended, reason, retry_after, limit, usage });
    }

    /// How the last reply ended: status, received and heard, ms.
    fn ended(&self) -> Option<(ReplyStatus, u64, u64)> {
        self.told.iter().rev().find_map(|message| match message {
            ServerMsg::ReplyEnded { status, audio_ms, heard_ms, .. } => Some((*status, *audio_ms, *heard_ms)),
            _ => None,
        })
    }
}

/// What stands in a provider's message; AudioSocket's are frames in a stream of bytes.
fn packets(provider: Provider, message: Message, unread: &mut Vec<u8>) -> Vec<Packet> {
    match message {
        Message::Text(text) => vec![Packet::Text(text.into())],
        Message::Binary(bytes) if provider != Provider::AudioSocket => vec![Packet::Binary(bytes)],
        Message::Binary(bytes) => {
            unread.extend_from_slice(&bytes);
            let mut found = Vec::new();
            while let [kind, high, low, rest @ ..] = unread.as_slice() {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(body) = rest.get(..length) else { break };
                found.push(Packet::Binary([&[*kind][..], body].concat().into()));
                unread.drain(..3 + length);
            }
            found
        }
        Message::Close { .. } => Vec::new(),
    }
}

fn framed(provider: Provider, payload: Bytes) -> Bytes {
    match payload.split_first() {
        Some((kind, body)) if provider == Provider::AudioSocket => {
            [&[*kind][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat().into()
        }
        _ => payload,
    }
}

/// The question that people try first, at each rate; made once.
fn clip(rate: u32) -> Arc<Vec<i16>> {
    static CLIPS: Mutex<BTreeMap<u32, Arc<Vec<i16>>>> = Mutex::new(BTreeMap::new());
    CLIPS.lock().unwrap().entry(rate).or_insert_with(|| Arc::new(hello_at(rate))).clone()
}

fn speech(rate: u32, from: Duration, length: Duration) -> Vec<i16> {
    let all = clip(rate);
    let at = |length: Duration| usize::try_from(length.as_millis()).unwrap() * rate as usize / 1_000;
    all[at(from)..at(from) + at(length)].to_vec()
}

fn abs(a: f64) -> f64 {
    if a < 0.0 { -a } else { a }
}

#[test]
fn what_is_said_arrives_whole_both_ways() {
    for setup in doors() {
        let name = named(&setup);
        let (media, provider) = (setup.media, setup.provider);
        let mut sitting = Sitting::new(setup);
        // An odd length: the last frame of the reply is not full.
        let said = speech(sitting.upstream.rate, Duration::ZERO, 2_013 * MS);
        let spoken = speech(media.rate, Duration::ZERO, 2_400 * MS);
        sitting.voice.extend(&spoken);
        sitting.reply("r", &said);
        sitting.done("r", Ended::Completed);
        sitting.pass(4 * SECOND);
        assert_eq!(sitting.line.violations(), [], "{name}");
        let ear = sitting.line.ear();
        let (heard, from) = (ear.heard(sitting.now), ear.rate());
        assert!(heard + 5 * MS >= 2_013 * MS, "{name}: the tail was cut off: {heard:?}");
        assert!(heard <= 2_060 * MS, "{name}: {heard:?}");
        let original = clip(from);
        let length = 2_013 * from as usize / 1_000;
        // Telnyx' order of bytes is known only when the caller has spoken.
        let swapped = sitting.line.setup().reply.coding == Coding::L16Be;
        if !swapped {
            let (alike, lag) = correlation(&original[..length], &ear.samples(sitting.now), from as usize / 200);
            assert!(alike > 0.99, "{name}: {alike} at {lag}");
        }
        // What the service got, from the first audio on.
        let mut got: Vec<i16> = Vec::new();
        match crate::audio::g711::Law::of(upstream_input(format(media), 24_000).codec) {
            Some(law) => law.decode_into(&sitting.sent_up, &mut got),
            None => got.extend(sitting.sent_up.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair))),
        }
        let rate = upstream_input(format(media), 24_000).rate;
        let original = clip(rate);
        let from = if swapped { 1_000 } else { 0 } * rate as usize / 1_000;
        let length = 2_300 * rate as usize / 1_000;
        // AudioSocket's first frame, which says its rate, is the line's silence before the voice.
        let (alike, lag) = correlation(&original[from..length], &got[from..], rate as usize / 40);
        assert!(alike > 0.98, "{name}: {alike} at {lag}");
        let clock_ms = lag * 1_000 / isize::try_from(rate).unwrap();
        println!("{name:<32} heard {heard:?} of 2.013s, to the service after {clock_ms} ms");
        assert_eq!(sitting.ended().unwrap(), (ReplyStatus::Completed, 2_013, 2_013), "{name}");
        assert!(provider != Provider::AudioSocket || sitting.line.queued().is_zero());
    }
}

#[test]
fn an_order_of_bytes_that_is_configured_holds_before_anybody_has_spoken() {
    let [big, little] = [Coding::L16Be, Coding::L16].map(|coding| Wire { coding, rate: 16_000 });
    for (media, order, good) in [
        (big, PhoneByteOrder::Big, true),
        (little, PhoneByteOrder::Little, true),
        (big, PhoneByteOrder::Little, false),
        (big, PhoneByteOrder::Auto, false),
    ] {
        let mut setup = Setup::new(Provider::Telnyx, 7).with_media(media).unwrap();
        setup.journal = false;
        let mut sitting = Sitting::with(setup, order);
        let said = speech(sitting.upstream.rate, Duration::ZERO, SECOND);
        sitting.reply("r", &said);
        sitting.done("r", Ended::Completed);
        sitting.pass(2 * SECOND);
        let original = speech(16_000, Duration::ZERO, SECOND);
        let (alike, _) = correlation(&original, &sitting.line.ear().samples(sitting.now), 80);
        assert_eq!(alike > 0.99, good, "{media} {order:?}: {alike}");
    }
}

/// The worst and the mean of figures, ms.
fn worst_and_mean(figures: &[f64]) -> (f64, f64) {
    let worst =
        figures.iter().copied().fold(0.0, |worst: f64, figure| if abs(figure) > abs(worst) { figure } else { worst });
    (worst, figures.iter().sum::<f64>() / figures.len() as f64)
}

/// Interrupts replies at many moments, each while it is generated or after. How far `heard` is from the truth, ms (positive: we
/// think that more was heard), and how long it sounds after the service's word.
fn interrupted(setup: &Setup, moments: u32) -> (Vec<f64>, Vec<f64>) {
    let (mut errors, mut silences) = (Vec::new(), Vec::new());
    for at in (0..moments).map(|n| 37 + n * 2_700 / moments) {
        let name = format!("{} at {at} ms", named(setup));
        // Another network's mood each time.
        let mut sitting = Sitting::new(Setup { seed: setup.seed + u64::from(at), ..setup.clone() });
        let said = speech(sitting.upstream.rate, 300 * MS, 4 * SECOND);
        sitting.pass(MS * (at % 20));
        sitting.reply("r", &said);
        let whole = at % 2 == 0;
        if whole {
            sitting.done("r", Ended::Completed);
        }
        sitting.pass(MS * at);
        let cut_at = sitting.now;
        sitting.event(Event::SpeechStarted { at_ms: 0 });
        if !whole {
            sitting.done("r", Ended::Cancelled);
        }
        sitting.pass(2 * SECOND);
        assert_eq!(sitting.line.violations(), [], "{name}");
        let (status, _, heard_ms) = sitting.ended().unwrap();
        assert_eq!(status, ReplyStatus::Interrupted, "{name}");
        let truth = sitting.line.ear().heard(sitting.now);
        errors.push(heard_ms as f64 - truth.as_secs_f64() * 1_000.0);
        assert!(
            sitting.cuts.iter().all(|cut| *cut == heard_ms),
            "{name}: the service is told the same: {:?}",
            sitting.cuts
        );
        let last = sitting.line.ear().last_audible(sitting.now).unwrap_or(cut_at);
        silences.push(last.saturating_sub(cut_at).as_secs_f64() * 1_000.0);
        assert_eq!(sitting.line.clears().len(), usize::from(can_clear(setup.provider)), "{name}");
        // What comes next is not touched by what was cut, nor by marks that come back.
        let before = sitting.line.ear().heard(sitting.now);
        let next = speech(sitting.upstream.rate, SECOND, 600 * MS);
        sitting.event(Event::SpeechStopped { at_ms: 500 });
        sitting.event(Event::Committed { item: "u".into() });
        sitting.reply("s", &next);
        sitting.done("s", Ended::Completed);
        sitting.pass(2 * SECOND);
        assert_eq!(sitting.ended(), Some((ReplyStatus::Completed, 600, 600)), "{name}");
        let heard = sitting.line.ear().heard(sitting.now) - before;
        assert!(heard >= 595 * MS && heard <= 625 * MS, "{name}: {heard:?} of the next reply");
    }
    (errors, silences)
}

fn can_clear(provider: Provider) -> bool {
    provider != Provider::AudioSocket
}

/// Interrupts at every door, over this network; prints how far `heard` was from the truth, and holds it to `short` and `long` ms at
/// those with marks. The others have 100 ms.
fn over(name: &str, network: Network, holds: Duration, moments: u32, (short, long): (f64, f64)) {
    for mut setup in each_door() {
        (setup.network, setup.quirks.holds) = (network, holds);
        let marks = has_marks(setup.provider);
        if !(marks || holds.is_zero()) {
            continue; // nothing tells of it
        }
        let (errors, silences) = interrupted(&setup, moments);
        let (worst, mean) = worst_and_mean(&errors);
        let (silent, _) = worst_and_mean(&silences);
        let door = named(&setup);
        println!("{door:<30} {name:<34} heard: worst {worst:+.1} ms, mean {mean:+.1} ms; silent after {silent:.1} ms");
        let (short, long) = if marks { (short, long) } else { (100.0, 40.0) };
        assert!(errors.iter().all(|error| (-short..=long).contains(error)), "{door}, {name}: {errors:?}");
        let there = (network.from_relay + network.jitter).as_secs_f64() * 1_000.0;
        assert!(silent <= there + 60.0, "{door}, {name}: {silences:?}");
    }
}

fn network(to_relay: u32, from_relay: u32, jitter: u32) -> Network {
    Network { to_relay: MS * to_relay, from_relay: MS * from_relay, jitter: MS * jitter }
}

#[test]
fn heard_is_what_the_ear_has_heard() {
    over("no network", Network::default(), Duration::ZERO, 13, (40.0, 40.0));
}

#[test]
fn heard_is_right_over_a_network() {
    over("40-60 ms each way", network(40, 40, 20), Duration::ZERO, 7, (40.0, 40.0));
}

#[test]
fn heard_is_right_where_one_way_is_longer_than_the_other() {
    over("10-20 ms there, 90-100 ms back", network(90, 10, 10), Duration::ZERO, 5, (40.0, 40.0));
    over("90-100 ms there, 10-20 ms back", network(10, 90, 10), Duration::ZERO, 5, (40.0, 40.0));
}

#[test]
fn heard_is_right_far_away() {
    over("150-170 ms each way", network(150, 150, 20), Duration::ZERO, 5, (40.0, 40.0));
}

/// How late a clear comes is not known before: the figure is as wrong as the network is unsteady, and no more.
#[test]
fn heard_is_as_right_as_the_network_is_steady() {
    over("20-100 ms each way", network(20, 20, 80), Duration::ZERO, 7, (120.0, 60.0));
}

/// What a provider holds back, only marks tell; before the first of them nothing does.
#[test]
fn heard_is_right_behind_a_jitter_buffer_of_the_providers() {
    over("40-60 ms each way, 60 ms held", network(40, 40, 20), 60 * MS, 7, (40.0, 40.0));
}

#[test]
fn what_one_reply_has_told_of_a_jitter_buffer_holds_for_the_next() {
    for mut setup in each_door().into_iter().filter(|setup| has_marks(setup.provider)) {
        (setup.network, setup.quirks.holds) = (network(40, 40, 20), 60 * MS);
        for at in [45, 120, 190, 260] {
            let mut sitting = Sitting::new(Setup { seed: at, ..setup.clone() });
            sitting.reply("hello", &speech(sitting.upstream.rate, 300 * MS, 1_500 * MS));
            sitting.done("hello", Ended::Completed);
            sitting.pass(3 * SECOND);
            let before = sitting.line.ear().heard(sitting.now);
            sitting.reply("r", &speech(sitting.upstream.rate, 300 * MS, 2 * SECOND));
            sitting.pass(Duration::from_millis(at));
            sitting.event(Event::SpeechStarted { at_ms: 0 });
            sitting.done("r", Ended::Cancelled);
            sitting.pass(SECOND);
            let truth = (sitting.line.ear().heard(sitting.now) - before).as_secs_f64() * 1_000.0;
            let (_, _, heard_ms) = sitting.ended().unwrap();
            let error = heard_ms as f64 - truth;
            println!("{:<30} cut after {at} ms: {error:+.1} ms", named(&setup));
            assert!((-40.0..=40.0).contains(&error), "{} at {at} ms: {heard_ms} of {truth} ms", named(&setup));
        }
    }
}

#[test]
fn keys_and_the_end_of_a_call_come_through() {
    for setup in doors() {
        let name = named(&setup);
        let mut sitting = Sitting::new(setup.clone());
        for key in ['4', '2', '#'] {
            sitting.line.press(sitting.now, key);
            sitting.pass(200 * MS);
        }
        assert_eq!(sitting.typed, ["[The caller pressed 42# on the telephone's keypad.]"], "{name}");
        // We hang up: where there is a word for it, the line ends by it.
        sitting.door.farewell(&mut sitting.outbox);
        sitting.settle();
        let by_word = matches!(
            setup.provider,
            Provider::ChanWebSocket | Provider::AudioSocket | Provider::Jambonz | Provider::AudioFork
        );
        assert_eq!(sitting.line.ended().is_some(), by_word, "{name}");
        let mut sitting = Sitting::new(setup.clone());
        sitting.line.hang_up(sitting.now);
        sitting.settle();
        let tells = matches!(setup.provider, Provider::Twilio | Provider::SignalWire | Provider::Telnyx);
        assert_eq!(sitting.ended, tells.then_some(End::HungUp), "{name}: others close the socket");
    }
}
