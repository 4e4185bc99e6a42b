//! Plays the hand-written transcripts of tests/golden/ga and tests/golden/beta against a session and compares every field.
//!
//! A transcript is a list of JSON lines, made from the protocol reference alone:
//! `note` (for people) · `config`, `faults`, `knock` (before anything else) · `c` a client event, `c_text` and `c_binary`
//! other frames · `speak` a clip in real time · `silence` ms of it · `wait` ms · `s` the next server event · `s_some` one
//! or more events, each like one of a list, all of the list at least once · `s_nothing` no event is there · `s_close` a
//! close frame, and nothing after it.
//!
//! Placeholders: `<event>`, and `<item X>` `<resp X>` `<conv X>` `<call X>` `<sess X>` ids, which stand for the same id
//! wherever the same name X is used, in client events too · `<int>` `<number>` `<text>` `<obfuscation>` `<any>`
//! · `<audio N>` base64 of N bytes · `<expires N>` Unix seconds, N after the start.
use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use voxrelay::sim::{Faults, Knock, SimConfig, session::Output};

use super::support::{Client, UNIX_NOW, format_named, good_knock, raw_wav, wav};

#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// Compares; the error names the path.
    fn compare(&mut self, want: &Value, got: &Value, path: &str) -> Result<(), String> {
        match (want, got) {
            (Value::String(want), got) if want.starts_with('<') && want.ends_with('>') => {
                self.placeholder(want.trim_matches(['<', '>']), got).map_err(|why| format!("{path}: {why}"))
            }
            (Value::Object(want), Value::Object(got)) => {
                if let Some(extra) = got.keys().find(|key| !want.contains_key(*key)) {
                    return Err(format!("{path}.{extra}: is there, but should not be: {}", got[extra]));
                }
                for (key, want) in want {
                    let got = got.get(key).ok_or_else(|| format!("{path}.{key}: is missing; should be {want}"))?;
                    self.compare(want, got, &format!("{path}.{key}"))?;
                }
                Ok(())
            }
            (Value::Array(want), Value::Array(got)) if want.len() == got.len() => {
                let mut pairs = want.iter().zip(got).enumerate();
                pairs.try_for_each(|(at, (want, got))| self.compare(want, got, &format!("{path}[{at}]")))
            }
            (Value::Number(want), Value::Number(got)) if want.as_f64() == got.as_f64() => Ok(()),
            (want, got) if want == got => Ok(()),
            (want, got) => Err(format!("{path}: should be {want}, is {got}")),
        }
    }

    fn placeholder(&mut self, name: &str, got: &Value) -> Result<(), String> {
        let (kind, argument) = name.split_once(' ').unwrap_or((name, ""));
        let text = got.as_str();
        let fits = match kind {
            "any" => true,
            "text" => text.is_some_and(|t| !t.is_empty()),
            "int" => got.is_u64(),
            "number" => got.is_number(),
            "obfuscation" => text.is_some_and(|t| (11..=14).contains(&t.len())),
            "event" => text.is_some_and(|t| is_id(t, "event")),
            "expires" => got.as_u64() == Some(UNIX_NOW + argument.parse::<u64>().unwrap()),
            "audio" => text.and_then(|t| STANDARD.decode(t).ok()).map(|b| b.len()) == argument.parse().ok(),
            "item" | "resp" | "conv" | "call" | "sess" => {
                let Some(id) = text.filter(|t| is_id(t, kind)) else {
                    return Err(format!("should be an id of {kind}, is {got}"));
                };
                let known = self.0.entry(name.to_owned()).or_insert_with(|| id.to_owned());
                if known == id {
                    return Ok(());
                }
                return Err(format!("should be {known} ({name}), is {id}"));
            }
            other => panic!("unknown placeholder <{other}>"),
        };
        if fits { Ok(()) } else { Err(format!("should be <{name}>, is {got}")) }
    }

    /// Puts known ids in place of their names.
    fn fill(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => json!(self.0.get(text.trim_matches(['<', '>'])).unwrap_or(text)),
            Value::Array(values) => values.iter().map(|v| self.fill(v)).collect(),
            Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), self.fill(v))).collect()),
            other => other.clone(),
        }
    }
}

fn is_id(text: &str, kind: &str) -> bool {
    let rest = text.strip_prefix(kind).and_then(|rest| rest.strip_prefix('_'));
    rest.is_some_and(|rest| rest.len() == 21 && rest.chars().all(|c| c.is_ascii_alphanumeric()))
}

struct Player {
    client: Client,
    names: Names,
}

impl Player {
    fn new(head: &Map<String, Value>) -> Self {
        let mut config = head.get("config").cloned().unwrap_or_else(|| json!({}));
        // Without delays, unless a transcript is about them.
        let names = ["connect", "created", "updated", "committed", "response_created", "first_delta", "item_added"];
        for name in names.into_iter().chain(["transcription", "rate_limits"]) {
            if config["delays"].get(name).is_none() {
                config["delays"][name] = json!(0);
            }
        }
        let config: SimConfig = serde_json::from_value(config).unwrap();
        let faults =
            head.get("faults").map_or_else(Faults::default, |text| Faults::from_toml(text.as_str().unwrap()).unwrap());
        let mut knock = good_knock();
        if let Some(Value::Object(given)) = head.get("knock") {
            let text = |name: &str| given.get(name).and_then(Value::as_str).map(str::to_owned);
            let beta = given.get("beta").is_some();
            knock = Knock { key: text("key"), model: text("model"), intent: text("intent"), beta, ..Knock::default() };
        }
        Self { client: Client::with(config, faults, &knock), names: Names::default() }
    }

    fn line(&mut self, key: &str, value: &Value) -> Result<(), String> {
        match key {
            "c" => self.client.send(self.names.fill(value)),
            "c_text" => self.client.send_text(value.as_str().unwrap()),
            "c_binary" => self.client.send_binary(&vec![7; usize::try_from(value.as_u64().unwrap()).unwrap()]),
            "wait" => self.client.wait(value.as_u64().unwrap()),
            "silence" => self.client.speak(
                &vec![0; usize::try_from(value.as_u64().unwrap()).unwrap() * 48],
                format_named("pcm"),
                100,
            ),
            "speak" => self.speak(value),
            "s" => {
                let got = self.client.next().ok_or_else(|| format!("nothing was sent; should be {value}"))?;
                self.names.compare(value, &got, "event").map_err(|why| format!("{why}\n  in {got}"))?;
            }
            "s_some" => self.some(value.as_array().unwrap())?,
            "s_nothing" => {
                if let Some(got) = self.client.heard.front() {
                    return Err(format!("nothing should have been sent, but there is {got:?}"));
                }
            }
            "s_close" => {
                let close = self.client.heard.pop_front().map(|(_, output)| output);
                let want = Output::Close {
                    code: u16::try_from(value["code"].as_u64().unwrap()).unwrap(),
                    reason: value["reason"].as_str().unwrap().to_owned(),
                };
                if close.as_ref() != Some(&want) || !self.client.heard.is_empty() {
                    return Err(format!("should be {want:?} and nothing more, is {close:?}"));
                }
            }
            other => panic!("unknown line `{other}`"),
        }
        Ok(())
    }

    fn some(&mut self, wanted: &[Value]) -> Result<(), String> {
        let mut seen = vec![false; wanted.len()];
        while let Some((at, output)) = self.client.heard.front().cloned() {
            let Output::Send(text) = &output else { break };
            let got: Value = serde_json::from_str(text).unwrap();
            let Some(n) = wanted.iter().position(|want| want["type"] == got["type"]) else { break };
            self.names.compare(&wanted[n], &got, "event").map_err(|why| format!("{why}\n  at {at:?} in {got}"))?;
            seen[n] = true;
            self.client.heard.pop_front();
        }
        match seen.iter().position(|seen| !seen) {
            None => Ok(()),
            Some(n) => Err(format!("none was sent like {}; next is {:?}", wanted[n], self.client.heard.front())),
        }
    }

    fn speak(&mut self, what: &Value) {
        let name = what["clip"].as_str().unwrap();
        let format = format_named(what["format"].as_str().unwrap_or("pcm"));
        let audio = if format.sample_bytes() == Some(2) { wav(name) } else { raw_wav(name) };
        let ms = |key: &str, or: usize| what[key].as_u64().map_or(or, |ms| usize::try_from(ms).unwrap());
        let per_ms = format.bytes_per_ms().unwrap();
        let from = ms("from_ms", 0) * per_ms;
        let to = (ms("to_ms", usize::MAX / per_ms) * per_ms).min(audio.len());
        self.client.speak(&audio[from..to], format, ms("piece_ms", 100) as u64);
    }
}

fn play(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).unwrap();
    let mut player: Option<Player> = None;
    let mut head = Map::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let whole: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| format!("{}:{}: {e}", path.display(), at + 1))?;
        for (key, value) in whole {
            match key.as_str() {
                "note" => {}
                "config" | "faults" | "knock" => {
                    assert!(player.is_none(), "{}: `{key}` comes too late", path.display());
                    head.insert(key, value);
                }
                _ => {
                    let player = player.get_or_insert_with(|| Player::new(&head));
                    player.line(&key, &value).map_err(|why| format!("{}:{}: {why}", path.display(), at + 1))?;
                }
            }
        }
    }
    let player = player.ok_or_else(|| format!("{}: is empty", path.display()))?;
    match player.client.heard.front() {
        None => Ok(()),
        Some(left) => Err(format!("{}: at the end there is still {left:?}", path.display())),
    }
}

#[test]
fn every_transcript_is_met_field_by_field() {
    let folders = ["tests/golden/ga", "tests/golden/beta"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut paths: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    paths.sort();
    assert!(paths.len() >= 30, "only {} transcripts", paths.len());
    let failures: Vec<String> = paths.iter().filter_map(|path| play(path).err()).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), paths.len(), failures.join("\n"));
}

#[test]
fn a_mismatch_names_its_path() {
    let want = json!({ "a": { "b": [1, { "c": "<item U>" }] }, "d": "<int>" });
    let item = "item_ABCDEFGHIJKLMNOPQRSTU";
    for (got, path) in [
        (json!({ "a": { "b": [1, { "c": item }] }, "d": 5 }), None),
        (json!({ "a": { "b": [1, { "c": 3 }] }, "d": 5 }), Some("event.a.b[1].c:")),
        (json!({ "a": { "b": [2, { "c": item }] }, "d": 5 }), Some("event.a.b[0]:")),
        (json!({ "a": { "b": [1, { "c": item }] } }), Some("event.d: is missing")),
        (json!({ "a": { "b": [1, { "c": item }], "x": 0 }, "d": 5 }), Some("event.a.x: is there")),
        (json!({ "a": { "b": [1, { "c": item }] }, "d": "5" }), Some("event.d: should be <int>")),
    ] {
        let result = Names::default().compare(&want, &got, "event");
        match path {
            None => assert_eq!(result, Ok(())),
            Some(path) => assert!(result.clone().unwrap_err().starts_with(path), "{result:?}"),
        }
    }
}
