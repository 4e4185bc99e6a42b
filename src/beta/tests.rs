//! Every row of the table, by hand-written pairs (`tests/golden/translate.jsonl`), and what must hold for anything.
use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    BetaClient, BetaService, is_beta_update,
    table::{CLIENT, How, SERVER},
};

const GOLDEN: &str = include_str!("../../tests/golden/translate.jsonl");
const DOC: &str = include_str!("../../docs/beta.md");

fn texts(value: &Value) -> Vec<Bytes> {
    let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    list.iter().map(|event| Bytes::from(event.to_string())).collect()
}

fn values(texts: &[Bytes]) -> Vec<Value> {
    texts.iter().map(|text| serde_json::from_slice(text).unwrap()).collect()
}

/// One line: `way` says who translates (`client up`, `client down`, `service down`, `service up`), `from` and `to` are an
/// event or a list of them; `row` names the row that it proves, by its GA name.
fn golden() -> Vec<Value> {
    let lines = GOLDEN.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[test]
fn every_pair_is_translated_as_written() {
    for case in golden() {
        let (mut client, mut service) = (BetaClient::default(), BetaService::default());
        let mut got = Vec::new();
        for text in texts(&case["from"]) {
            got.extend(match case["way"].as_str().unwrap() {
                "client up" => client.up(text),
                "client down" => client.down(text),
                "service down" => service.down(text),
                "service up" => service.up(text),
                other => panic!("{other}"),
            });
        }
        let want = values(&texts(&case["to"]));
        assert_eq!(values(&got), want, "{} {}", case["way"], case["row"]);
    }
}

#[test]
fn every_row_has_a_pair_in_every_way_that_it_goes() {
    let proven: BTreeSet<(String, String)> = golden()
        .iter()
        .map(|case| (case["way"].as_str().unwrap().to_owned(), case["row"].as_str().unwrap().to_owned()))
        .collect();
    let has = |way: &str, row: &str| proven.contains(&(way.to_owned(), row.to_owned()));
    for row in &CLIENT {
        for way in ["client up", "service down"] {
            assert!(row.how == How::Same || has(way, row.ga), "{way} {}", row.ga);
        }
    }
    for row in &SERVER {
        assert!(row.how == How::Same || has("client down", row.ga), "client down {}", row.ga);
        let comes_back = !matches!(row.how, How::Same | How::Gone) && row.ga != "conversation.item.created";
        assert!(!comes_back || has("service up", row.ga), "service up {}", row.ga);
    }
}

#[test]
fn the_published_table_has_exactly_these_rows() {
    let cells = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = |cell: &str| cell.trim().trim_matches('`').to_owned();
        Some((name(cells.next()?), name(cells.next()?)))
    };
    let events = DOC.lines().take_while(|line| *line != "## Objects");
    let published: Vec<(String, String)> = events.filter_map(cells).collect();
    let known: Vec<(String, String)> = CLIENT
        .iter()
        .chain(&SERVER)
        .map(|row| (row.ga.to_owned(), if row.beta.is_empty() { "-".to_owned() } else { row.beta.to_owned() }))
        .collect();
    assert_eq!(published, known);
}

#[test]
fn what_is_in_no_row_or_the_same_passes_to_the_byte() {
    let same = CLIENT.iter().chain(&SERVER).filter(|row| row.how == How::Same);
    let texts = same.map(|row| format!(r#"{{ "event_id":"e",  "type":"{}","x":[1.0, "ü"]}}"#, row.ga));
    let more = [
        r#"{"type":"of_tomorrow","event_id":"e","x":{"deep":[1]}}"#.to_owned(),
        r#"{"type":"input_audio_buffer.append","event_id":"e","audio":"AAAA"}"#.to_owned(),
        r#""event_id""#.to_owned(),
        "{\"event_id\"".to_owned(),
    ];
    for text in texts.chain(more) {
        let text = Bytes::from(text);
        let (mut client, mut service) = (BetaClient::default(), BetaService::default());
        for got in
            [client.up(text.clone()), client.down(text.clone()), service.up(text.clone()), service.down(text.clone())]
        {
            assert_eq!(got, std::slice::from_ref(&text));
        }
    }
}

#[test]
fn a_delta_keeps_every_other_byte() {
    let beta = r#"{"type":"response.audio.delta", "event_id":"e","delta":"\/+AA==","obfuscation":"x"}"#;
    let ga = beta.replace("response.audio.delta", "response.output_audio.delta");
    assert_eq!(BetaService::default().up(Bytes::from(beta)), [Bytes::from(ga.clone())]);
    assert_eq!(BetaClient::default().down(Bytes::from(ga)), [Bytes::from(beta)]);
}

#[test]
fn a_client_sees_the_model_by_the_name_that_it_knows() {
    let created =
        r#"{"type":"session.created","event_id":"e","session":{"type":"realtime","model":"gpt-realtime-2.1"}}"#;
    for (asked, shown) in [(Some("gpt-4o-realtime-preview"), "gpt-4o-realtime-preview"), (None, "gpt-realtime-2.1")] {
        let told = BetaClient::new(asked.map(str::to_owned)).down(Bytes::from(created));
        assert_eq!(values(&told)[0]["session"]["model"], shown);
    }
}

#[test]
fn a_service_hears_pcm_by_its_own_name() {
    let mut service = BetaService::default();
    let created = r#"{"type":"session.created","event_id":"e","session":{"input_audio_format":"pcm","output_audio_format":"pcm24"}}"#;
    let audio = json!({"type": "audio/pcm", "rate": 24_000});
    let shown = values(&service.up(Bytes::from(created)));
    assert_eq!(shown[0]["session"]["audio"], json!({"input": {"format": audio}, "output": {"format": audio}}));
    let update = json!({"type": "session.update", "session": {"type": "realtime",
        "audio": {"input": {"format": audio}, "output": {"format": audio}}}});
    let told = values(&service.down(update.to_string().into()));
    assert_eq!(told[0]["session"], json!({"input_audio_format": "pcm", "output_audio_format": "pcm24"}));
    let law = update.to_string().replace(r#""audio/pcm","rate":24000"#, r#""audio/pcmu""#);
    let told = values(&service.down(law.into()));
    assert_eq!(told[0]["session"], json!({"input_audio_format": "g711_ulaw", "output_audio_format": "g711_ulaw"}));
}

#[test]
fn an_item_is_told_once_and_done_once() {
    let mut client = BetaClient::default();
    let added = json!({"type": "conversation.item.added", "event_id": "e", "item": {"id": "i1"}}).to_string();
    assert_eq!(client.down(added.clone().into()).len(), 1);
    assert_eq!(client.down(added.replace("added", "created").into()).len(), 0);
    let mut service = BetaService::default();
    let event = |kind: &str, status: &str| {
        json!({"type": kind, "event_id": "e", "item": {"id": "i1", "type": "message", "role": "assistant", "status": status}})
            .to_string()
            .into()
    };
    let kinds =
        |texts: Vec<Bytes>| values(&texts).iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(kinds(service.up(event("conversation.item.created", "in_progress"))), ["conversation.item.added"]);
    assert_eq!(
        kinds(service.up(event("response.output_item.done", "completed"))),
        ["conversation.item.done", "response.output_item.done"]
    );
    assert_eq!(kinds(service.up(event("response.output_item.done", "completed"))), ["response.output_item.done"]);
    assert_eq!(kinds(service.up(event("conversation.item.created", "incomplete"))), ["conversation.item.added"]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut client = BetaClient::default();
    for n in 0..10_000 {
        client.down(json!({"type": "conversation.item.added", "item": {"id": n.to_string()}}).to_string().into());
    }
    assert_eq!((client.told.by_id.len(), client.told.order.len()), (super::REMEMBERED, super::REMEMBERED));
}

#[test]
fn a_client_that_did_not_say_so_is_known_by_its_update() {
    for (text, want) in [
        (r#"{"type":"session.update","session":{"modalities":["text"]}}"#, true),
        (r#"{"type":"session.update","session":{"turn_detection":null}}"#, true),
        (r#"{"type":"transcription_session.update","session":{}}"#, true),
        (r#"{"type":"session.update","session":{"type":"realtime","voice":"x"}}"#, false),
        (r#"{"type":"session.update","session":{"instructions":"x"}}"#, false),
        (r#"{"type":"response.create","response":{"modalities":["text"]}}"#, false),
        ("nonsense", false),
    ] {
        assert_eq!(is_beta_update(text.as_bytes()), want, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn nothing_that_comes_in_panics(bytes: Vec<u8>) {
        let text = Bytes::from(bytes);
        let _ = BetaClient::default().up(text.clone());
        let _ = BetaClient::default().down(text.clone());
        let _ = BetaService::default().up(text.clone());
        let _ = BetaService::default().down(text);
    }

    #[test]
    fn perturbed_events_never_panic(line in 0usize..60, at in 0usize..2_000, byte: u8) {
        let cases = golden();
        let case = &cases[line % cases.len()];
        for text in texts(&case["from"]).into_iter().chain(texts(&case["to"])) {
            let mut text = text.to_vec();
            let place = at % text.len();
            text[place] = byte;
            let text = Bytes::from(text);
            let _ = BetaClient::default().up(text.clone());
            let _ = BetaClient::default().down(text.clone());
            let _ = BetaService::default().up(text.clone());
            let _ = BetaService::default().down(text);
        }
    }

    #[test]
    fn a_session_survives_there_and_back(voice in "[a-z]{1,8}", hundredths in 25u32..150, law in 0usize..3, tokens in 1u32..4_096, text: bool) {
        let format = [json!({"type": "audio/pcm", "rate": 24_000}), json!({"type": "audio/pcmu"}), json!({"type": "audio/pcma"})];
        let session = json!({"type": "realtime", "instructions": "x", "tools": [], "audio": {
            "input": {"format": format[law], "transcription": {"model": "m"}, "noise_reduction": null, "turn_detection": null},
            "output": {"format": format[law], "voice": voice, "speed": f64::from(hundredths) / 100.0}},
            "max_output_tokens": tokens, "output_modalities": [if text { "text" } else { "audio" }]});
        let update = json!({"type": "session.update", "event_id": "e", "session": session});
        let beta = BetaService::default().down(update.to_string().into()).remove(0);
        let back = BetaClient::default().up(beta).remove(0);
        proptest::prop_assert_eq!(serde_json::from_slice::<Value>(&back).unwrap(), update);
    }
}
