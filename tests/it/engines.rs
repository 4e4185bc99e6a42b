//! `voxrelay transcribe` by its two engines: files to an address, and sessions where there is none.
use serde_json::Value;
use voxrelay::sim::SimConfig;

use crate::{
    commands::{run, voxrelay},
    support::Rig,
};

/// What is written down of a clip by a relay on such a service, or the reason why not; and what the service counted.
async fn written(engine: &'static str, faults: &str) -> (i32, String, Rig) {
    let rig = Rig::with(|_| {}, SimConfig::instant(), faults).await;
    let url = format!("http://{}/v1", rig.relay.addr());
    let ended = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("texts.jsonl");
        let mut command = voxrelay();
        command.args(["transcribe", "assets/hello.wav", "--progress", "never", "--engine", engine, "--url", &url]);
        let (code, _, err) = run(command.arg("--out").arg(&out));
        let row: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap_or_default()).unwrap_or_default();
        (code, row["transcript"].as_str().map_or(err, str::to_owned))
    });
    let (code, text) = ended.await.unwrap();
    (code, text, rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_engines_write_the_same_and_auto_takes_the_one_that_is_there() {
    const NO_ADDRESS: &str = "[[fault]]\nkind = \"refuse\"\ndoor = \"transcriptions\"\nstatus = 404\nbody = \"\"\n";
    let mut texts = Vec::new();
    for (engine, faults, sessions) in
        [("rest", "", 0), ("realtime", "", 1), ("auto", "", 0), ("auto", NO_ADDRESS, 1), ("realtime", NO_ADDRESS, 1)]
    {
        let (code, text, rig) = written(engine, faults).await;
        assert_eq!(code, 0, "{engine} {faults}: {text}");
        assert_eq!(rig.sim.stats().sessions_opened, sessions, "{engine} {faults}");
        texts.push(text);
    }
    assert!(texts.iter().all(|text| text.len() > 20 && *text == texts[0]), "{texts:?}");
    let (code, text, rig) = written("rest", NO_ADDRESS).await;
    assert_eq!((code, rig.sim.stats().sessions_opened), (1, 0), "{text}");
    assert!(text.contains("there is nobody here who writes recordings down"), "{text}");
}
