//! How a line is given back when the call ends here.
use std::time::Duration;

use tokio::time::Instant;
use voxrelay::provider::Provider;

use super::bad::{asked, rig, start, stream};
use crate::support::until;

/// Goodbyes have a second; a provider that does not answer its stream's uses all of it.
const GOODBYE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_is_told_to_hang_up_before_the_goodbyes_are_over() {
    let rig = rig(|config| {
        let sim = config.upstream.url.as_deref().unwrap().trim_end_matches("/v1").to_owned();
        config.phone.accounts.get_mut("plivo").unwrap().api_url = Some(sim);
    })
    .await;
    let (setup, headers) = asked(&rig, Provider::Plivo, "plivo", 1).await;
    let mut client = stream(&rig, "plivo", &headers).await.unwrap();
    for text in start(&setup) {
        client.json(&text).await;
    }
    until("the session is up", || rig.sim.stats().sessions_opened == 1).await;
    let began = Instant::now();
    // From here on nobody reads the stream, so that nobody answers its goodbye.
    for _ in 0..25 {
        client.json("no message of Plivo's").await;
    }
    until("the provider is told", || rig.sim.carrier().count("hang_up") == 1).await;
    assert!(began.elapsed() < GOODBYE, "{:?}", began.elapsed());
    until("the service's leg is closed", || rig.sim.stats().sessions_now == 0).await;
    drop(client);
    assert_eq!(rig.sim.carrier().count("hang_up"), 1);
}
