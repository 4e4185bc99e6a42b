//! What the simulated model says: the caller's own words back, the bundled voice, or a function call.
use bytes::Bytes;
use serde_json::Value;

use super::{
    config::{Reply, ReplyAudio},
    conversation::{Clip, Item, Kind, Part, Role},
    settings::{Modality, Settings},
    vad, voice,
};

/// One output item of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Speech with its transcript.
    Audio {
        /// In the response's output format.
        audio: Bytes,
        transcript: String,
    },
    /// Text alone.
    Text(String),
    /// A function call.
    Call { name: String, arguments: String },
}

/// Makes up the reply to `inputs`: what the caller said, typed or returned from functions since the last reply.
pub(super) fn plan(inputs: &[Item], settings: &Settings, reply: &Reply) -> Vec<Said> {
    let outputs: Vec<&str> = inputs.iter().filter_map(function_output).collect();
    let calls = if outputs.is_empty() { calls(inputs, settings, reply) } else { Vec::new() };
    if !calls.is_empty() && !reply.speaks_with_calls {
        return calls;
    }
    let clips: Vec<&Clip> = match reply.audio {
        ReplyAudio::Echo if outputs.is_empty() => inputs.iter().flat_map(spoken).collect(),
        _ => Vec::new(),
    };
    let transcript = if !outputs.is_empty() {
        format!("The tool said: {}", outputs.join(" "))
    } else if clips.is_empty() {
        voice::REPLY_TEXT.to_owned()
    } else {
        format!("I heard {:.1} seconds of speech.", active_seconds(&clips))
    };
    if settings.modality == Modality::Text {
        return [vec![Said::Text(transcript)], calls].concat();
    }
    let format = settings.output_format;
    let audio = match clips.as_slice() {
        [] => voice::bundled(format),
        [one] => voice::convert(&one.bytes(), one.format, format),
        many => {
            let pieces: Vec<Bytes> =
                many.iter().map(|clip| voice::convert(&clip.bytes(), clip.format, format)).collect();
            Bytes::from(pieces.concat())
        }
    };
    let spoken = split(audio, &transcript, reply.items.clamp(1, 8), format.sample_bytes().unwrap_or(1));
    [spoken, calls].concat()
}

/// What the caller's transcription says.
pub(super) fn transcript_of(clip: &Clip) -> String {
    let seconds = active_seconds(&[clip]);
    if seconds == 0.0 { String::new() } else { format!("{seconds:.1} seconds of speech.") }
}

fn active_seconds(clips: &[&Clip]) -> f64 {
    let active = clips.iter().map(|c| vad::active_ms(&voice::decode(&c.bytes(), c.format), c.format.rate));
    active.sum::<u64>() as f64 / 1_000.0
}

fn spoken(item: &Item) -> impl Iterator<Item = &Clip> {
    let parts = match &item.kind {
        Kind::Message { role: Role::User, parts } => parts.as_slice(),
        _ => &[],
    };
    parts.iter().filter_map(|part| match part {
        Part::InputAudio { clip, idle: false, .. } => Some(clip),
        _ => None,
    })
}

fn function_output(item: &Item) -> Option<&str> {
    match &item.kind {
        Kind::FunctionOutput { output, .. } => Some(output),
        _ => None,
    }
}

/// The audio in `count` items, each with its share of the words.
fn split(audio: Bytes, transcript: &str, count: usize, sample: usize) -> Vec<Said> {
    let words: Vec<&str> = transcript.split_inclusive(' ').collect();
    let samples = audio.len() / sample;
    let share = |whole: usize, part: usize| whole * part / count;
    let items = (0..count).map(|n| Said::Audio {
        audio: audio.slice(share(samples, n) * sample..share(samples, n + 1) * sample),
        transcript: words.get(share(words.len(), n)..share(words.len(), n + 1)).unwrap_or_default().concat(),
    });
    items.collect()
}

/// The function calls that these inputs ask for.
fn calls(inputs: &[Item], settings: &Settings, reply: &Reply) -> Vec<Said> {
    let functions: Vec<&str> = settings
        .tools
        .iter()
        .filter(|tool| tool.get("type").and_then(Value::as_str) == Some("function"))
        .filter_map(|tool| tool.get("name").and_then(Value::as_str))
        .collect();
    let choice = settings.tool_choice.as_str();
    let Some(first) = functions.first().copied().filter(|_| choice != Some("none")) else { return Vec::new() };
    let text: String = inputs.iter().flat_map(typed).collect::<Vec<_>>().join("\n");
    let asked = asked_calls(&text, &functions);
    if !asked.is_empty() {
        return asked;
    }
    let forced = settings.tool_choice.get("name").and_then(Value::as_str);
    let always = reply.call_tool.as_deref().map(|call| call.split_once(' ').unwrap_or((call, "{}")));
    let wanted = match (forced, choice, always) {
        (Some(name), _, _) => Some((name, "{}")),
        (None, Some("required"), _) => Some((first, "{}")),
        (None, _, Some(("*", arguments))) if !inputs.is_empty() => Some((first, arguments)),
        (None, _, Some(call)) if !inputs.is_empty() => Some(call),
        _ => None,
    };
    let wanted = wanted.filter(|(name, _)| functions.contains(name));
    let call = |(name, arguments): (&str, &str)| Said::Call { name: name.to_owned(), arguments: arguments.to_owned() };
    wanted.map(call).into_iter().collect()
}

fn typed(item: &Item) -> impl Iterator<Item = &str> {
    let parts = match &item.kind {
        Kind::Message { role: Role::User, parts } => parts.as_slice(),
        _ => &[],
    };
    parts.iter().filter_map(|part| match part {
        Part::InputText(text) => Some(text.as_str()),
        _ => None,
    })
}

/// Every `call NAME {arguments}` in a text whose NAME is a function of the session.
pub(super) fn asked_calls(text: &str, functions: &[&str]) -> Vec<Said> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut calls = Vec::new();
    for piece in text.split("call ").skip(1) {
        let piece = piece.trim_start();
        let end = piece.find(|c| !is_name(c)).unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        if !functions.contains(&name) {
            continue;
        }
        let arguments = rest.find('{').and_then(|at| rest.get(at..)).and_then(|json| {
            let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
            values.next()?.ok()?;
            json.get(..values.byte_offset())
        });
        calls.push(Said::Call { name: name.to_owned(), arguments: arguments.unwrap_or("{}").to_owned() });
    }
    calls
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::config::SimConfig, *};
    use crate::audio::Format;

    fn settings(update: Value) -> Settings {
        let mut settings = Settings::new(SimConfig::default().model("gpt-realtime").unwrap(), String::new());
        settings.update(&update, false).unwrap();
        settings
    }

    fn tools(names: &[&str], choice: Value) -> Settings {
        let tools: Vec<Value> = names.iter().map(|name| json!({ "type": "function", "name": name })).collect();
        settings(json!({ "type": "realtime", "tools": tools, "tool_choice": choice }))
    }

    fn text(text: &str) -> Item {
        let parts = vec![Part::InputText(text.into())];
        Item::new("item_t".into(), Kind::Message { role: Role::User, parts })
    }

    fn speech(bytes: &[u8], format: Format) -> Item {
        Item::spoken("item_s".into(), Clip::new(format, Bytes::copy_from_slice(bytes)), false)
    }

    fn call(name: &str, arguments: &str) -> Said {
        Said::Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn all_that_was_said_comes_back_in_order_and_untouched() {
        let plain = settings(json!({ "type": "realtime" }));
        let inputs = [speech(&[1, 2, 3, 4], Format::PCM_24K), text("and"), speech(&[5, 6], Format::PCM_24K)];
        let [Said::Audio { audio, transcript }] = &plan(&inputs, &plain, &Reply::default())[..] else { panic!() };
        assert_eq!(audio[..], [1, 2, 3, 4, 5, 6]);
        assert_eq!(transcript, "I heard 0.0 seconds of speech.");
        let out =
            settings(json!({ "type": "realtime", "audio": { "output": { "format": { "type": "audio/pcmu" } } } }));
        let inputs = [speech(&[0; 4_800], Format::PCM_24K)];
        let [Said::Audio { audio, .. }] = &plan(&inputs, &out, &Reply::default())[..] else { panic!() };
        assert_eq!(audio.len(), 800, "100 ms stay 100 ms");
    }

    #[test]
    fn where_nothing_was_said_the_bundled_voice_speaks() {
        let plain = settings(json!({ "type": "realtime" }));
        let voice = Said::Audio { audio: voice::bundled(Format::PCM_24K), transcript: voice::REPLY_TEXT.into() };
        let quiet = Item::spoken("i".into(), Clip::new(Format::PCM_24K, Bytes::from_static(&[0; 96])), true);
        for inputs in [vec![], vec![text("hi")], vec![quiet]] {
            assert_eq!(plan(&inputs, &plain, &Reply::default()), std::slice::from_ref(&voice));
        }
        let always = Reply { audio: ReplyAudio::Voice, ..Reply::default() };
        assert_eq!(plan(&[speech(&[1, 2], Format::PCM_24K)], &plain, &always), [voice]);
        let written = settings(json!({ "type": "realtime", "output_modalities": ["text"] }));
        assert_eq!(plan(&[text("hi")], &written, &Reply::default()), [Said::Text(voice::REPLY_TEXT.into())]);
    }

    #[test]
    fn functions_are_called_when_they_are_asked_for() {
        let two = tools(&["get_weather", "hang_up"], json!("auto"));
        let always = |name: &str| Reply { call_tool: Some(name.into()), ..Reply::default() };
        for (name, inputs, settings, reply, want) in [
            (
                "with arguments",
                text(r#"please call get_weather {"city": "Paris"} now"#),
                &two,
                Reply::default(),
                vec![call("get_weather", r#"{"city": "Paris"}"#)],
            ),
            ("without", text("call hang_up"), &two, Reply::default(), vec![call("hang_up", "{}")]),
            (
                "both",
                text("call hang_up {} then call get_weather {bad"),
                &two,
                Reply::default(),
                vec![call("hang_up", "{}"), call("get_weather", "{}")],
            ),
            ("always", speech(&[0, 0], Format::PCM_24K), &two, always("hang_up"), vec![call("hang_up", "{}")]),
            (
                "always, with arguments",
                text("x"),
                &two,
                always(r#"get_weather {"city": "Rome"}"#),
                vec![call("get_weather", r#"{"city": "Rome"}"#)],
            ),
            ("any", text("hello"), &two, always("*"), vec![call("get_weather", "{}")]),
            ("required", text("x"), &tools(&["a"], json!("required")), Reply::default(), vec![call("a", "{}")]),
            (
                "named",
                text("x"),
                &tools(&["a", "b"], json!({ "type": "function", "name": "b" })),
                Reply::default(),
                vec![call("b", "{}")],
            ),
        ] {
            assert_eq!(plan(&[inputs], settings, &reply), want, "{name}");
        }
        for (name, input, settings) in [
            ("unknown function", "call mum", &two),
            ("no tools", "call get_weather", &tools(&[], json!("auto"))),
            ("forbidden", "call get_weather", &tools(&["get_weather"], json!("none"))),
        ] {
            let said = plan(&[text(input)], settings, &Reply::default());
            assert!(matches!(said[..], [Said::Audio { .. }]), "{name}: {said:?}");
        }
    }

    #[test]
    fn something_is_said_before_a_call_where_that_is_asked_for() {
        let one = tools(&["hang_up"], json!("auto"));
        let reply = Reply { call_tool: Some("hang_up".into()), speaks_with_calls: true, ..Reply::default() };
        let said = plan(&[text("bye")], &one, &reply);
        let [Said::Audio { audio, .. }, Said::Call { name, .. }] = &said[..] else { panic!("{said:?}") };
        assert_eq!((audio, name.as_str()), (&voice::bundled(Format::PCM_24K), "hang_up"));
        let output = Item::new("o".into(), Kind::FunctionOutput { call_id: "c".into(), output: "21 degrees".into() });
        assert_eq!(plan(&[output], &one, &reply).len(), 1, "a result is no reason to call");
    }

    #[test]
    fn a_functions_result_is_quoted() {
        let output = Item::new("o".into(), Kind::FunctionOutput { call_id: "c".into(), output: "21 degrees".into() });
        let settings = tools(&["a"], json!("required"));
        let [Said::Audio { audio, transcript }] = &plan(&[output], &settings, &Reply::default())[..] else { panic!() };
        assert_eq!(transcript, "The tool said: 21 degrees");
        assert_eq!(*audio, voice::bundled(Format::PCM_24K));
    }

    #[test]
    fn a_reply_in_two_items_loses_nothing() {
        let audio = Bytes::from((0..101u8).flat_map(|n| [n, n]).collect::<Vec<_>>());
        let items = split(audio.clone(), "one two three", 2, 2);
        let (mut bytes, mut words) = (Vec::new(), String::new());
        for item in &items {
            let Said::Audio { audio, transcript } = item else { panic!() };
            assert!(audio.len().is_multiple_of(2) && !audio.is_empty());
            bytes.extend_from_slice(audio);
            words.push_str(transcript);
        }
        assert_eq!((bytes, words.as_str(), items.len()), (audio.to_vec(), "one two three", 2));
    }
}
