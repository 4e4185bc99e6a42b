//! What one caller, one account or one tenant may take of a door, so that the others still come through.
use tokio::{task::JoinSet, time::Instant};
use voxrelay::{
    config::{NumberConfig, TenantConfig},
    provider::{Provider, ReachError},
    wall::unix_now,
};

use super::{
    bad::{WITHIN, asked, rig, start, stream},
    kind, reach, setup,
};
use crate::{
    canary::warned,
    support::{Client, until},
};

/// Streams of one address that may be silent at once.
const OF_ADDRESS: usize = 32;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_silent_keeps_nobody_else_out() {
    let rig = rig(|config| {
        config.server.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        config.server.insecure_open = true;
    })
    .await;
    let addr = rig.relay.addr();
    let from = |address: &str| vec![("x-forwarded-for", address.to_owned())];
    let mut opening = JoinSet::new();
    for n in 0..2 * OF_ADDRESS {
        opening.spawn(async move {
            let path = ["/phone/plivo/stream", "/phone/telnyx/stream", "/phone/vonage/stream"][n % 3];
            Client::dial(addr, path, &[("x-forwarded-for", "192.0.2.1")]).await
        });
    }
    let (mut silent, mut refused) = (Vec::new(), Vec::new());
    for opened in opening.join_all().await {
        match opened {
            Ok(client) => silent.push(client),
            Err(why) => refused.push(why),
        }
    }
    assert_eq!((silent.len(), refused.len()), (OF_ADDRESS, OF_ADDRESS), "{refused:?}");
    assert!(refused.iter().all(|(status, code)| (*status, code.as_str()) == (429, "rate_limited")), "{refused:?}");
    // What it writes itself in front of the proxy's word does not count.
    assert_eq!(stream(&rig, "plivo", &from("198.51.100.7, 192.0.2.1")).await.err(), Some(429));
    for (n, (provider, name)) in
        [(Provider::Plivo, "plivo"), (Provider::Telnyx, "telnyx"), (Provider::Vonage, "vonage")].into_iter().enumerate()
    {
        let (setup, mut headers) = asked(&rig, provider, name, n as u64).await;
        headers.extend(from("192.0.2.2"));
        let mut client = stream(&rig, name, &headers).await.unwrap();
        for text in start(&setup) {
            client.json(&text).await;
        }
        until("the call goes through", || rig.sim.stats().sessions_opened == n as u64 + 1).await;
        client.close_with(1000).await;
    }
    // One that goes away makes room.
    silent.pop().unwrap().reset();
    let end = Instant::now() + WITHIN;
    while let Err(status) = stream(&rig, "plivo", &from("192.0.2.1")).await {
        assert!(status == 429 && Instant::now() < end, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_shown_with_the_request_is_looked_at_before_the_upgrade() {
    let rig = rig(|_| {}).await;
    let shown = |token: &str| vec![("x-telnyx-streaming-auth-token", token.to_owned())];
    let guessed = "0".repeat(32);
    assert_eq!(stream(&rig, "telnyx", &shown(&guessed)).await.err(), Some(403));
    // A good one needs nothing more, and is used up by being shown.
    let (mut setup, _) = asked(&rig, Provider::Telnyx, "telnyx", 1).await;
    let at = setup.parameters.iter().position(|(name, _)| name == "token").unwrap();
    let (_, token) = setup.parameters.remove(at);
    assert_eq!(stream(&rig, "plivo", &shown(&token)).await.err(), None, "Plivo shows its token elsewhere");
    let mut client = stream(&rig, "telnyx", &shown(&token)).await.unwrap();
    assert_eq!(stream(&rig, "telnyx", &shown(&token)).await.err(), Some(403));
    for text in start(&setup) {
        client.json(&text).await;
    }
    until("the session is up", || rig.sim.stats().sessions_opened == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_called_too_often_is_busy_and_others_are_not() {
    const A_MINUTE: u64 = 3;
    let rig = rig(|config| {
        for (name, connects_per_minute) in [("seldom", 3), ("often", 0)] {
            let tenant = TenantConfig { connects_per_minute, ..TenantConfig::default() };
            config.tenants.insert(name.to_owned(), tenant);
        }
        let number = |number: &str, tenant: &str| NumberConfig {
            number: number.to_owned(),
            agent: "default".to_owned(),
            account: None,
            tenant: Some(tenant.to_owned()),
        };
        config.phone.numbers = vec![number("+13125550001", "seldom"), number("+13125550002", "often")];
    })
    .await;
    let call = async |provider: Provider, to: &str, seed: u64| {
        let mut setup = setup(provider, seed);
        setup.to = to.to_owned();
        reach(&rig, provider, kind(provider).name()).reach(&mut setup, unix_now()).await.map(drop)
    };
    for n in 0..A_MINUTE {
        call(Provider::Twilio, "+13125550001", n).await.unwrap();
    }
    let others = Provider::ALL.into_iter().filter(|provider| *provider != Provider::AudioSocket);
    for (n, provider) in others.enumerate() {
        let error = call(provider, "+13125550001", 100 + n as u64).await.unwrap_err();
        assert!(matches!(error, ReachError::Markup(_)), "{}: no stream is named, politely: {error}", provider.name());
        call(provider, "+13125550002", 200 + n as u64).await.unwrap();
    }
    assert!(warned(&["a call is turned away", "too many requests; come back in", "13125550001"]) > 0);
}
