//! Webhooks that come again: from a provider that has not got its answer, and from whoever has overheard one.
use secrecy::ExposeSecret as _;
use voxrelay::{
    config::{NumberConfig, TenantConfig},
    provider::{Provider, webhook},
    wall::unix_now,
};

use super::{
    PUBLIC,
    bad::{asked, end, rig, start, stream},
    key, kind, setup,
};
use crate::{
    canary::warned,
    support::{Answer, Rig, answer, until},
};

/// A webhook, as its provider sends it each time.
struct Webhook {
    page: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Webhook {
    fn new(provider: Provider, seed: u64) -> Self {
        let page = format!("/phone/{}/voice", kind(provider).name());
        let key = key(provider).into();
        let request = webhook::request(&setup(provider, seed), &format!("{PUBLIC}{page}"), Some(&key), unix_now());
        let webhook::Request { headers, body } = request.unwrap();
        let headers = headers.into_iter().map(|(name, value)| (name, value.expose_secret().to_owned())).collect();
        let webhook::Body::Posted(body) = body else { panic!("it posts") };
        Self { page, headers, body }
    }

    async fn send(&self, rig: &Rig) -> Answer {
        self.send_as(rig, &self.page, self.body.clone()).await
    }

    /// The same signature.
    async fn send_as(&self, rig: &Rig, page: &str, body: String) -> Answer {
        let request = rig.request("POST", page, "").body(body);
        answer(self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))).await
    }
}

const SIGNING: [Provider; 6] =
    [Provider::Twilio, Provider::SignalWire, Provider::Telnyx, Provider::Plivo, Provider::Vonage, Provider::Jambonz];

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_comes_again_is_answered_as_it_was_and_does_nothing_more() {
    // One call a minute: whoever is counted twice hears that the line is busy.
    let rig = rig(|config| {
        for provider in SIGNING {
            let name = kind(provider).name().to_owned();
            config.tenants.insert(name.clone(), TenantConfig { connects_per_minute: 1, ..TenantConfig::default() });
            let (number, agent) = ("*".to_owned(), "default".to_owned());
            let number = NumberConfig { number, agent, account: Some(name.clone()), tenant: Some(name) };
            config.phone.numbers.insert(0, number);
        }
    })
    .await;
    for provider in SIGNING {
        let webhook = Webhook::new(provider, 1);
        let (first, second) = tokio::join!(webhook.send(&rig), webhook.send(&rig));
        let third = webhook.send(&rig).await;
        let name = provider.name();
        assert!(first.status == 200 && first.text.contains("/stream"), "{name}: {}", first.text);
        for again in [second, third] {
            assert_eq!((again.status, &again.text), (200, &first.text), "{name}: token and all");
            assert_eq!(again.header("content-type"), first.header("content-type"), "{name}");
        }
        let other = Webhook::new(provider, 2).send(&rig).await;
        assert!(other.status == 200 && !other.text.contains("/stream"), "{name}: {}", other.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_said_again_still_opens_one_stream() {
    let rig = rig(|_| {}).await;
    // The same request twice: the emulator signs alike.
    let (setup, headers) = asked(&rig, Provider::Twilio, "twilio", 1).await;
    let (again, _) = asked(&rig, Provider::Twilio, "twilio", 1).await;
    assert_eq!(setup.parameters, again.parameters);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = stream(&rig, "twilio", &headers).await.unwrap();
        for text in start(&setup) {
            client.json(&text).await;
        }
        until("the session is up", || rig.sim.stats().sessions_opened == 1).await;
        clients.push(client);
    }
    assert_eq!(end(clients.last_mut().unwrap()).await, 1008);
    assert_eq!(rig.sim.stats().sessions_opened, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_was_shown_is_good_for_nothing_else() {
    let rig = rig(|_| {}).await;
    let twilio = Webhook::new(Provider::Twilio, 1);
    assert_eq!(twilio.send(&rig).await.status, 200);
    // It joins names and values without a mark between: this body is signed as well.
    let other = twilio.body.replace("From=", "Fro=m");
    assert_ne!(other, twilio.body);
    assert_eq!(twilio.send_as(&rig, &twilio.page, other).await.status, 403);
    assert!(warned(&["a request in a telephone provider's name is refused", "shown before, with another request"]) > 0);
    // It does not cover the page.
    let telnyx = Webhook::new(Provider::Telnyx, 1);
    assert_eq!(telnyx.send(&rig).await.status, 200);
    for page in ["/phone/telnyx/status", "/phone/telnyx/voice?dial=0123456789abcdef0123456789abcdef"] {
        assert_eq!(telnyx.send_as(&rig, page, telnyx.body.clone()).await.status, 403, "{page}");
    }
    assert_eq!(telnyx.send(&rig).await.status, 200, "itself it still is");
}
