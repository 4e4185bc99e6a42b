//! One call that a relay has begun: it rings, somebody answers or not, and the stream is a [`crate::provider`]'s.
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{Carrier, Habit, Order, Plan, habit, news, news::Step};
use crate::{
    audio::decode::decode_file,
    net::tls,
    provider::{
        Action, Address, Coding, Media, Person, Provider, Setup, What, When, Who, drive_until, markup,
        webhook::{self, Request},
    },
    wall,
};

/// Silence after which a person takes a greeting to be over.
const GREETED: Duration = Duration::from_millis(700);

pub(super) struct Call<'a> {
    pub(super) carrier: &'a Carrier,
    pub(super) order: Order,
    /// Somebody has asked for its end.
    pub(super) over: CancellationToken,
    pub(super) sequence: u64,
}

impl Call<'_> {
    pub(super) async fn run(mut self) {
        let setup = self.setup();
        let habit = habit(&self.order.to);
        // A call that came in, and that the relay answers, rings no more.
        if !self.order.ring.is_zero() {
            self.tell(&setup, Step::Begun).await;
            self.tell(&setup, Step::Ringing).await;
            let rings = Duration::from_millis(self.carrier.config.ring_ms).min(self.order.ring);
            let (rings, ends) = match habit {
                Habit::Busy => (Duration::ZERO, Some(Step::Busy)),
                Habit::TurnsAway => (rings, Some(Step::Rejected)),
                Habit::Away => (self.order.ring, Some(Step::NoAnswer)),
                _ if rings == self.order.ring => (rings, Some(Step::NoAnswer)),
                _ => (rings, None),
            };
            let given_up = self.over.run_until_cancelled(time::sleep(rings)).await.is_none();
            if let Some(end) = if given_up { Some(Step::Canceled) } else { ends } {
                return self.tell(&setup, end).await;
            }
        }
        let answered = Instant::now();
        self.tell(&setup, Step::Answered).await;
        if habit == Habit::Machine && self.order.machine.is_some() {
            self.tell(&setup, Step::Machine).await;
        }
        if let Err(problem) = self.talk(setup.clone(), habit).await {
            tracing::warn!(call = self.order.ids.call, problem, "a call of the simulated provider has no stream");
            self.carrier.note(&self.order.ids.call, |one| one.problem = Some(problem));
        }
        self.tell(&setup, Step::Completed(answered.elapsed().as_secs())).await;
    }

    fn setup(&self) -> Setup {
        let mut setup = Setup::new(self.order.provider, rand::random());
        setup.ids = self.order.ids.clone();
        (setup.from, setup.to) = (self.order.from.clone(), self.order.to.clone());
        (setup.epoch_ms, setup.journal) = (wall::unix_now_ms(), false);
        setup
    }

    /// Sends a request of the provider's; its answer's text.
    async fn ask(&self, url: &str, request: Request) -> Result<String, String> {
        let tls = tls::client()?;
        webhook::ask(url, request, tls).await.map_err(|error| error.to_string())
    }

    /// Tells a step to whoever wants to know.
    async fn tell(&mut self, setup: &Setup, step: Step) {
        let url = if step == Step::Machine { &self.order.machine } else { &self.order.status };
        let Some(url) = url.clone() else { return };
        self.sequence += 1;
        let request = news::request(&self.order, setup, &url, step, self.sequence, wall::unix_now());
        let Some(request) = request else { return };
        let told = match request {
            Ok(request) => self.ask(&url, request).await,
            Err(error) => Err(error.to_string()),
        };
        let word = step.word().to_owned();
        self.carrier.note(&self.order.ids.call, |one| match told {
            Ok(_) => one.told.push(word),
            Err(why) => one.refused.push(format!("{word}: {why}")),
        });
    }

    /// Opens the stream and speaks, until somebody ends it.
    async fn talk(&mut self, mut setup: Setup, habit: Habit) -> Result<(), String> {
        let address = self.address(&mut setup, habit).await?;
        let person = self.person(&setup, habit)?;
        self.tell(&setup, Step::StreamStarted).await;
        let longest = Duration::from_secs(self.carrier.config.longest_s);
        let driven = Box::pin(drive_until(&address, setup.clone(), person, longest, self.over.clone(), |_, _| {}));
        let outcome = driven.await.map_err(|error| error.to_string())?;
        let ended_by = match outcome.summary.ended.who {
            Who::Caller => "caller",
            Who::Relay => "relay",
            Who::Provider => "provider",
        };
        self.carrier.note(&self.order.ids.call, |one| {
            one.heard_ms = u64::try_from(outcome.summary.heard.as_millis()).unwrap_or(u64::MAX);
            one.ended_by = ended_by;
            one.violations = outcome.summary.violations.iter().map(|broken| broken.text.clone()).collect();
        });
        self.tell(&setup, Step::StreamEnded).await;
        // Where a stream's end does not end the call, the relay must say so.
        let lasts = matches!(self.order.provider, Provider::Telnyx | Provider::Plivo | Provider::Vonage);
        if lasts && outcome.summary.ended.who == Who::Relay {
            let left = longest.saturating_sub(outcome.summary.ended.at);
            let _ = self.over.run_until_cancelled(time::sleep(left)).await;
        }
        Ok(())
    }

    /// Where the stream goes, and what is given to it.
    async fn address(&self, setup: &mut Setup, habit: Habit) -> Result<Address, String> {
        let (url, parameters, mut headers) = match &self.order.plan {
            Plan::Nowhere(why) => return Err((*why).to_owned()),
            Plan::Stream { url, parameters, headers, codec } => {
                if let Some(media) = codec.as_deref().and_then(telnyx_codec) {
                    setup.reply = media;
                }
                (url.clone(), parameters.clone(), headers.clone())
            }
            Plan::Markup(text) => self.markup(setup, text)?,
            Plan::Page(page) => {
                let request = self.question(setup, page, habit).map_err(|error| error.to_string())?;
                let answer = self.ask(page, request).await?;
                self.markup(setup, &answer)?
            }
        };
        setup.parameters.splice(0..0, parameters);
        setup.check().map_err(|error| error.to_string())?;
        if let Some(key) = self.order.key.as_ref().filter(|_| self.order.provider == Provider::Twilio) {
            let signature = webhook::twilio_signature(key.expose_secret(), &url, &[]);
            headers.push(("X-Twilio-Signature".to_owned(), signature.into()));
        }
        let subprotocol = self.order.provider.subprotocol().map(str::to_owned);
        Ok(Address::WebSocket { url, subprotocol, headers, roots: Vec::new() })
    }

    fn markup(&self, setup: &mut Setup, text: &str) -> Result<Opened, String> {
        let stream = markup::read(self.order.provider, text).map_err(|error| error.to_string())?;
        if let Some(media) = stream.media {
            (setup.reply, setup.media) = (media, media);
        }
        Ok((stream.url, stream.parameters, stream.headers))
    }

    /// What another page than the voice page says of this call.
    pub(super) async fn page(&self, page: &str) -> Result<String, String> {
        let request = self.question(&self.setup(), page, Habit::Person).map_err(|error| error.to_string())?;
        self.ask(page, request).await
    }

    /// The question at the voice page, for a call that goes out.
    fn question(&self, setup: &Setup, page: &str, habit: Habit) -> Result<Request, webhook::WebhookError> {
        let (order, ids, unix_s) = (&self.order, &self.order.ids, wall::unix_now());
        let key = order.key.as_ref();
        let machine = order.machine.is_some() && habit == Habit::Machine;
        match order.provider {
            Provider::Plivo => {
                let (from, to) = (order.from.trim_start_matches('+'), order.to.trim_start_matches('+'));
                let mut form = vec![
                    ("CallStatus", "in-progress"),
                    ("CallUUID", ids.call.as_str()),
                    ("Direction", "outbound"),
                    ("Event", "StartApp"),
                    ("From", from),
                    ("RequestUUID", ids.account.as_str()),
                    ("To", to),
                ];
                form.extend(machine.then_some(("Machine", "true")));
                webhook::posted(setup, page, &form, key, unix_s)
            }
            Provider::Jambonz => {
                let body = serde_json::json!({"call_sid": ids.call, "account_sid": ids.account, "direction": "outbound",
                    "from": order.from, "to": order.to, "call_status": "in-progress", "sip_status": 200});
                webhook::told(setup, body.to_string(), key, unix_s)
            }
            _ => {
                let mut form = vec![
                    ("AccountSid", ids.account.as_str()),
                    ("CallSid", ids.call.as_str()),
                    ("CallStatus", "in-progress"),
                    ("Direction", "outbound-api"),
                    ("From", order.from.as_str()),
                    ("To", order.to.as_str()),
                ];
                form.extend(machine.then_some(("AnsweredBy", "machine_end_beep")));
                webhook::posted(setup, page, &form, key, unix_s)
            }
        }
    }

    fn person(&self, setup: &Setup, habit: Habit) -> Result<Person, String> {
        let config = &self.carrier.config;
        let mut script = Vec::new();
        if let Some(file) = &config.says {
            let samples = decode_file(file, setup.media.rate).map_err(|error| error.to_string())?.samples;
            let when = if habit == Habit::Machine { When::At(Duration::ZERO) } else { When::Quiet(GREETED) };
            script.push(Action { when, what: What::Say(samples) });
        }
        if habit != Habit::Patient && config.quiet_ms > 0 {
            let when = When::Quiet(Duration::from_millis(config.quiet_ms));
            script.push(Action { when, what: What::HangUp });
        }
        Ok(Person::new(setup.media, script))
    }
}

/// A stream's address, parameters and headers.
type Opened = (String, Vec<(String, String)>, Vec<(String, secrecy::SecretString)>);

fn telnyx_codec(name: &str) -> Option<Media> {
    match name {
        "PCMU" => Some(Media::MULAW),
        "PCMA" => Some(Media::ALAW),
        "L16" => Some(Media { coding: Coding::L16, rate: 16_000 }),
        _ => None,
    }
}
