//! What a voice webhook's answer says: where the stream goes, and what is given to it.
//!
//! Reads TwiML, cXML and TeXML (one family), Plivo's XML, NCCO and jambonz' verbs, as their providers do: what they would
//! refuse is an error, what they would silently change is a note.
use roxmltree::{Document, Node};
use secrecy::SecretString;
use serde_json::Value;

use super::{
    setup::Provider,
    wire::{Coding, Media},
};

/// A stream, as the markup asks for it.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Where it goes; empty: where a dialplan says.
    pub url: String,
    /// Custom parameters, headers or metadata.
    pub parameters: Vec<(String, String)>,
    /// What the relay will send, where the markup says it.
    pub media: Option<Media>,
    /// Headers of the upgrade: authorisation that the markup asks for.
    pub headers: Vec<(String, SecretString)>,
    /// What the provider does otherwise than the markup's author may think.
    pub notes: Vec<String>,
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkupError {
    /// Neither XML nor JSON.
    #[error("the answer is not {wanted}: {why}")]
    Unreadable {
        /// What the provider reads.
        wanted: &'static str,
        /// What its parser said.
        why: String,
    },
    /// It connects nothing.
    #[error("the voice webhook connects no stream; it answered: {found}")]
    NoStream {
        /// Its verbs, and why, where they say so.
        found: String,
    },
    /// It connects one that does not work.
    #[error("`{field}` is {found}; allowed: {allowed}")]
    Field {
        /// The attribute or key.
        field: &'static str,
        /// Its value.
        found: String,
        /// What works.
        allowed: &'static str,
    },
}

/// Reads what a webhook has answered.
///
/// # Errors
/// When the provider could not make a two-way stream of it.
pub fn read(provider: Provider, answer: &str) -> Result<Stream, MarkupError> {
    match provider {
        Provider::Twilio | Provider::SignalWire | Provider::Telnyx => connect_stream(provider, answer),
        Provider::Plivo => plivo(answer),
        Provider::Vonage => ncco(answer),
        Provider::Jambonz => listen(answer),
        Provider::AudioFork | Provider::ChanWebSocket | Provider::AudioSocket => dialplan(provider, answer),
    }
}

/// A dialplan puts the whole answer where the token belongs; where the stream goes stands in the dialplan itself.
fn dialplan(provider: Provider, answer: &str) -> Result<Stream, MarkupError> {
    let token = answer.trim();
    if token.is_empty() {
        return Err(MarkupError::NoStream { found: "nothing".to_owned() });
    }
    let dash = |at| matches!(at, 8 | 13 | 18 | 23);
    let is_uuid = token.len() == 36
        && token.bytes().enumerate().all(|(at, b)| if dash(at) { b == b'-' } else { b.is_ascii_hexdigit() });
    let good = match provider {
        Provider::AudioFork => token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        _ => is_uuid,
    };
    if !good {
        let allowed = if provider == Provider::AudioFork { "letters, digits and `-`" } else { "a UUID" };
        return Err(MarkupError::Field { field: "token", found: quoted(token), allowed });
    }
    let parameters = vec![("token".to_owned(), token.to_owned())];
    Ok(Stream { url: String::new(), parameters, media: None, headers: Vec::new(), notes: Vec::new() })
}

fn xml(answer: &str) -> Result<Document<'_>, MarkupError> {
    let unreadable = |why: String| MarkupError::Unreadable { wanted: "XML", why };
    let document = Document::parse(answer.trim_start()).map_err(|error| unreadable(error.to_string()))?;
    match document.root_element().tag_name().name() {
        "Response" => Ok(document),
        other => Err(unreadable(format!("its root is <{other}>, not <Response>"))),
    }
}

fn json(answer: &str) -> Result<Value, MarkupError> {
    serde_json::from_str(answer).map_err(|error| MarkupError::Unreadable { wanted: "JSON", why: error.to_string() })
}

/// The verbs of a document, to be told.
fn verbs(document: &Document<'_>) -> MarkupError {
    let verbs = document.root_element().descendants().skip(1).filter(Node::is_element);
    let found = verbs.map(|verb| match verb.attribute("reason") {
        Some(reason) => format!("<{} reason={reason:?}>", verb.tag_name().name()),
        None => format!("<{}>", verb.tag_name().name()),
    });
    let found: Vec<_> = found.collect();
    MarkupError::NoStream { found: if found.is_empty() { "nothing".to_owned() } else { found.join(" ") } }
}

/// `<Connect><Stream>`: Twilio's, SignalWire's and Telnyx's.
fn connect_stream(provider: Provider, answer: &str) -> Result<Stream, MarkupError> {
    let document = xml(answer)?;
    let is = |name: &'static str| move |node: &Node<'_, '_>| node.has_tag_name(name);
    let connect = document.root_element().children().find(is("Connect"));
    let stream = connect.and_then(|connect| connect.children().find(is("Stream"))).ok_or_else(|| verbs(&document))?;
    let url = stream.attribute("url").unwrap_or_default().trim().to_owned();
    let mut notes = Vec::new();
    let url = socket_url(url, "url", &mut notes)?;
    let url = match url.split_once('?') {
        Some((bare, _)) if provider == Provider::Twilio => {
            notes.push("Twilio takes no query string in a stream's url (31920): it was cut off".to_owned());
            bare.to_owned()
        }
        _ => url,
    };
    let parameters = stream.children().filter(is("Parameter")).filter_map(|parameter| {
        Some((parameter.attribute("name")?.to_owned(), parameter.attribute("value").unwrap_or_default().to_owned()))
    });
    let media = match provider {
        Provider::SignalWire => stream.attribute("codec").map(signalwire_codec).transpose()?,
        Provider::Telnyx => Some(telnyx_codec(&stream)?),
        _ => None,
    };
    let bearer = stream.attribute("authBearerToken").filter(|_| provider == Provider::SignalWire);
    let headers = bearer.map(|token| ("Authorization".to_owned(), SecretString::from(format!("Bearer {token}"))));
    Ok(Stream { url, parameters: parameters.collect(), media, headers: headers.into_iter().collect(), notes })
}

fn socket_url(url: String, field: &'static str, notes: &mut Vec<String>) -> Result<String, MarkupError> {
    if url.starts_with("ws://") {
        notes.push("a provider takes `wss` only; `ws` does for a trial on this computer".to_owned());
    } else if !url.starts_with("wss://") {
        return Err(MarkupError::Field { field, found: quoted(&url), allowed: "a wss:// address" });
    }
    Ok(url)
}

fn quoted(found: &str) -> String {
    format!("`{}`", found.chars().take(120).collect::<String>())
}

fn signalwire_codec(codec: &str) -> Result<Media, MarkupError> {
    Ok(match codec {
        "PCMU" | "PCMU@8000h" => Media::MULAW,
        "L16@16000h" => Media::l16(16_000),
        "L16@24000h" => Media::l16(24_000),
        other => {
            let allowed = "PCMU@8000h, L16@16000h or L16@24000h";
            return Err(MarkupError::Field { field: "codec", found: quoted(other), allowed });
        }
    })
}

fn telnyx_codec(stream: &Node<'_, '_>) -> Result<Media, MarkupError> {
    let mode = stream.attribute("bidirectionalMode").unwrap_or("mp3");
    if mode != "rtp" {
        return Err(MarkupError::Field { field: "bidirectionalMode", found: quoted(mode), allowed: "rtp" });
    }
    let rate = stream.attribute("bidirectionalSamplingRate").and_then(|rate| rate.parse().ok()).unwrap_or(8_000);
    match stream.attribute("bidirectionalCodec").unwrap_or("PCMU") {
        "PCMU" => Ok(Media::MULAW),
        "PCMA" => Ok(Media::ALAW),
        "L16" => Ok(Media { coding: Coding::L16, rate }),
        other => {
            let allowed = "PCMU, PCMA or L16 (case matters)";
            Err(MarkupError::Field { field: "bidirectionalCodec", found: quoted(other), allowed })
        }
    }
}

fn plivo(answer: &str) -> Result<Stream, MarkupError> {
    let document = xml(answer)?;
    let stream = document.root_element().children().find(|node| node.has_tag_name("Stream"));
    let stream = stream.ok_or_else(|| verbs(&document))?;
    let two_way = stream.attribute("bidirectional").unwrap_or("false");
    if two_way != "true" {
        return Err(MarkupError::Field { field: "bidirectional", found: quoted(two_way), allowed: "true" });
    }
    let track = stream.attribute("audioTrack").unwrap_or("inbound");
    if track != "inbound" {
        return Err(MarkupError::Field { field: "audioTrack", found: quoted(track), allowed: "inbound" });
    }
    let mut notes = Vec::new();
    if stream.attribute("keepCallAlive") != Some("true") {
        notes.push("without `keepCallAlive` Plivo ends the call as soon as the stream runs".to_owned());
    }
    let url = socket_url(stream.text().unwrap_or_default().trim().to_owned(), "Stream", &mut notes)?;
    let headers = stream.attribute("extraHeaders").unwrap_or_default();
    let pairs = headers.split([',', ';']).filter_map(|pair| pair.split_once('='));
    let parameters: Vec<_> = pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect();
    let plain = |(name, value): &(String, String)| name.bytes().chain(value.bytes()).all(|b| b.is_ascii_alphanumeric());
    if headers.len() > 512 || !parameters.iter().all(plain) {
        let allowed = "512 bytes of letters and digits";
        return Err(MarkupError::Field { field: "extraHeaders", found: format!("{} bytes", headers.len()), allowed });
    }
    let media = match stream.attribute("contentType").unwrap_or("audio/x-l16;rate=8000") {
        "audio/x-l16;rate=8000" => Media::l16(8_000),
        "audio/x-l16;rate=16000" => Media::l16(16_000),
        "audio/x-mulaw;rate=8000" => Media::MULAW,
        other => {
            let allowed = "audio/x-mulaw;rate=8000 or audio/x-l16;rate=8000 or 16000";
            return Err(MarkupError::Field { field: "contentType", found: quoted(other), allowed });
        }
    };
    Ok(Stream { url, parameters, media: Some(media), headers: Vec::new(), notes })
}

/// The strings of a JSON object; other values as JSON says them.
fn strings(object: &Value) -> Vec<(String, String)> {
    let pairs = object.as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    pairs.map(|(name, value)| (name.clone(), text(value))).collect()
}

/// What an array of actions or verbs consists of, to be told.
fn names(answer: &Value, key: &str) -> MarkupError {
    let name = |one: &Value| {
        let name = one[key].as_str()?;
        // jambonz declines with a SIP status and its phrase.
        let why = one["status"].as_u64().zip(one["reason"].as_str());
        Some(why.map_or(name.to_owned(), |(status, reason)| format!("{name} {status} {reason}")))
    };
    let names: Vec<_> = answer.as_array().into_iter().flatten().filter_map(name).collect();
    MarkupError::NoStream { found: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") } }
}

fn ncco(answer: &str) -> Result<Stream, MarkupError> {
    let answer = json(answer)?;
    let actions = answer.as_array().into_iter().flatten();
    let connects = actions.filter(|action| action["action"] == "connect");
    let mut endpoints = connects.flat_map(|action| action["endpoint"].as_array().into_iter().flatten());
    let endpoint =
        endpoints.find(|endpoint| endpoint["type"] == "websocket").ok_or_else(|| names(&answer, "action"))?;
    let mut notes = Vec::new();
    let url = socket_url(endpoint["uri"].as_str().unwrap_or_default().to_owned(), "uri", &mut notes)?;
    let kind = endpoint["content-type"].as_str().unwrap_or_default();
    let rate = kind.strip_prefix("audio/l16;rate=").and_then(|rate| rate.parse().ok());
    let rate = rate.filter(|rate| [8_000, 16_000, 24_000].contains(rate)).ok_or_else(|| MarkupError::Field {
        field: "content-type",
        found: quoted(kind),
        allowed: "audio/l16;rate=8000, 16000 or 24000",
    })?;
    let headers = &endpoint["headers"];
    let length = if headers.is_null() { 0 } else { headers.to_string().len() };
    if length > 512 {
        return Err(MarkupError::Field { field: "headers", found: format!("{length} bytes"), allowed: "512 bytes" });
    }
    Ok(Stream { url, parameters: strings(headers), media: Some(Media::l16(rate)), headers: Vec::new(), notes })
}

fn listen(answer: &str) -> Result<Stream, MarkupError> {
    let answer = json(answer)?;
    let mut verbs = answer.as_array().into_iter().flatten();
    let verb = verbs.find(|verb| verb["verb"] == "listen").ok_or_else(|| names(&answer, "verb"))?;
    let both = &verb["bidirectionalAudio"];
    if both["streaming"] != true {
        let (field, found) = ("bidirectionalAudio.streaming", both["streaming"].to_string());
        return Err(MarkupError::Field { field, found, allowed: "true" });
    }
    let rate = |value: &Value| value.as_u64().and_then(|rate| u32::try_from(rate).ok());
    let (there, back) = (rate(&verb["sampleRate"]).unwrap_or(8_000), rate(&both["sampleRate"]));
    if back != Some(there) {
        let (field, found) = ("bidirectionalAudio.sampleRate", both["sampleRate"].to_string());
        return Err(MarkupError::Field { field, found, allowed: "the verb's own sampleRate" });
    }
    let mut notes = Vec::new();
    let url = socket_url(verb["url"].as_str().unwrap_or_default().to_owned(), "url", &mut notes)?;
    let auth = &verb["wsAuth"];
    let basic = auth["username"].as_str().zip(auth["password"].as_str()).map(|(user, password)| {
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        ("Authorization".to_owned(), SecretString::from(format!("Basic {pair}")))
    });
    let headers = basic.into_iter().collect();
    Ok(Stream { url, parameters: strings(&verb["metadata"]), media: Some(Media::l16(there)), headers, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(stream: &Stream) -> Vec<(&str, &str)> {
        stream.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn each_providers_markup_gives_a_stream() {
        let twiml = r#"<?xml version="1.0" encoding="UTF-8"?><Response><Connect><Stream statusCallback="https://r/s" url="wss://r/phone/a/stream?x=1"><Parameter name="token" value="t&amp;1" /></Stream></Connect></Response>"#;
        let cxml = r#"<Response><Connect><Stream url="wss://r/s" codec="L16@24000h" authBearerToken="b"><Parameter name="token" value="t&amp;1"/></Stream></Connect></Response>"#;
        let texml = r#"<Response><Connect><Stream url="wss://r/s" bidirectionalMode="rtp" bidirectionalCodec="PCMA"><Parameter name="token" value="t&amp;1"/></Stream></Connect></Response>"#;
        let ncco = r#"[{"action":"talk"},{"action":"connect","endpoint":[{"type":"websocket","uri":"wss://r/s","content-type":"audio/l16;rate=16000","headers":{"token":"t&1"}}]}]"#;
        let verbs = r#"[{"verb":"answer"},{"verb":"listen","url":"wss://r/s","sampleRate":24000,"bidirectionalAudio":{"enabled":true,"streaming":true,"sampleRate":24000},"wsAuth":{"username":"u","password":"p"},"metadata":{"token":"t&1"}}]"#;
        for (provider, markup, url, media, headers) in [
            (Provider::Twilio, twiml, "wss://r/phone/a/stream", None, 0),
            (Provider::SignalWire, cxml, "wss://r/s", Some(Media::l16(24_000)), 1),
            (Provider::Telnyx, texml, "wss://r/s", Some(Media::ALAW), 0),
            (Provider::Vonage, ncco, "wss://r/s", Some(Media::l16(16_000)), 0),
            (Provider::Jambonz, verbs, "wss://r/s", Some(Media::l16(24_000)), 1),
        ] {
            let stream = read(provider, markup).unwrap();
            assert_eq!((stream.url.as_str(), stream.media, stream.headers.len()), (url, media, headers));
            assert_eq!(pairs(&stream), [("token", "t&1")], "{provider:?}");
            assert_eq!(stream.notes.len(), usize::from(provider == Provider::Twilio));
        }
        let plivo = r#"<Response><Stream bidirectional="true" keepCallAlive="true" contentType="audio/x-mulaw;rate=8000" extraHeaders="token=abc,user=7">wss://r/s</Stream></Response>"#;
        let stream = read(Provider::Plivo, plivo).unwrap();
        assert_eq!((stream.media, pairs(&stream)), (Some(Media::MULAW), vec![("token", "abc"), ("user", "7")]));
    }

    #[test]
    fn a_dialplan_reads_a_token() {
        let uuid = "40325ec2-5efd-4bd3-805f-53576e581d13";
        for (provider, answer) in
            [(Provider::ChanWebSocket, uuid), (Provider::AudioSocket, "40325ec2-5efd-4bd3-805f-53576e581d13\n")]
        {
            let stream = read(provider, answer).unwrap();
            assert_eq!((stream.url.as_str(), pairs(&stream)), ("", vec![("token", uuid)]));
        }
        assert_eq!(pairs(&read(Provider::AudioFork, "abc123").unwrap()), [("token", "abc123")]);
    }

    #[test]
    fn what_a_provider_would_not_do_is_told() {
        let listen = r#"[{"verb":"listen","url":"wss://r/s","sampleRate":24000}]"#;
        for (provider, markup, want) in [
            (
                Provider::Twilio,
                "<Response><Say>no</Say><Hangup/></Response>",
                "connects no stream; it answered: <Say> <Hangup>",
            ),
            (
                Provider::Twilio,
                r#"<Response><Reject reason="busy"/></Response>"#,
                r#"answered: <Reject reason="busy">"#,
            ),
            (Provider::Twilio, "<Response><Start><Stream url='wss://r'/></Start></Response>", "connects no stream"),
            (
                Provider::Twilio,
                r#"<Response><Connect><Stream url="https://r"/></Connect></Response>"#,
                "`url` is `https://r`",
            ),
            (Provider::Twilio, "oops", "not XML"),
            (
                Provider::Telnyx,
                r#"<Response><Connect><Stream url="wss://r"/></Connect></Response>"#,
                "`bidirectionalMode` is `mp3`",
            ),
            (Provider::Plivo, "<Response><Stream>wss://r</Stream></Response>", "`bidirectional` is `false`"),
            (
                Provider::Plivo,
                r#"<Response><Stream bidirectional="true" extraHeaders="token=a.b">wss://r</Stream></Response>"#,
                "`extraHeaders`",
            ),
            (Provider::Vonage, r#"[{"action":"talk","text":"no"}]"#, "it answered: talk"),
            (
                Provider::Jambonz,
                r#"[{"verb":"sip:decline","status":404,"reason":"Not Found"}]"#,
                "answered: sip:decline 404 Not Found",
            ),
            (Provider::Jambonz, listen, "`bidirectionalAudio.streaming` is null"),
            (Provider::AudioSocket, "", "connects no stream; it answered: nothing"),
            (Provider::ChanWebSocket, "<html>no</html>", "`token` is `<html>no</html>`; allowed: a UUID"),
            (Provider::AudioFork, "a b", "allowed: letters, digits"),
        ] {
            let error = read(provider, markup).unwrap_err().to_string();
            assert!(error.contains(want), "{provider:?}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_or_refused(answer in ".{0,200}", tag in "<(Response|Connect|Stream)( url=.{0,9})?>", which in 0usize..9) {
            for answer in [answer.clone(), format!("<Response>{tag}{answer}</Response>"), format!("[{{\"verb\":\"listen\",\"url\":{answer:?}}}]")] {
                let _read = read(Provider::ALL[which], &answer);
            }
        }
    }
}
