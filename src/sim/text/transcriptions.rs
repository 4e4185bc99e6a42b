//! `POST /audio/transcriptions`: a recording is decoded, and written down in words that follow from its sound.
use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header},
};
use serde_json::{Value, json};
use tokio::time;

use super::{
    super::{
        faults::{FaultKind, How, Place},
        response::with,
        rest::{Answer, No},
        tokens,
        transcribe::{by_time, logprob, usage},
        validate::Refusal,
    },
    Text,
    form::{Form, Format, diarizes},
    hash,
    hear::{self, Word},
    sse::{self, Event},
    subtitles,
    visit::{Visit, no_model},
};
use crate::audio::decode::{DecodeError, decode_bytes};

/// Shorter recordings are refused, ms.
const SHORTEST_MS: u64 = 100;
/// Longer ones need a strategy of cutting where speakers are told apart, ms (realtime-protocol section 9).
const UNCUT_MS: u64 = 30_000;

/// The address.
pub(super) async fn create(State(text): State<Arc<Text>>, request: Request) -> Response<Body> {
    let headers = request.headers().clone();
    let mut visit = Visit::new(&text, Place::Transcriptions, &headers);
    let answer = match visit.enter(&headers).await {
        Ok(()) => transcribe(&mut visit, request).await,
        Err(no) => Err(no),
    };
    visit.leave(answer)
}

/// What was heard.
#[derive(Debug)]
struct Heard {
    words: Vec<Word>,
    ms: u64,
}

async fn transcribe(visit: &mut Visit<'_>, request: Request) -> Answer {
    let text = visit.text;
    let config = &text.world.config;
    let mut form = Form::read(request, config.text.max_file_bytes).await?;
    if config.retired(&form.model) {
        return Err(no_model(&form.model));
    }
    visit.model = Some(form.model.clone());
    let content = hash((&form.file, &form.model, &form.languages, &form.hints, form.format as u8));
    let heard = listen(text, &mut form, config.text.max_audio_s).await?;
    let words = match visit.how() {
        Some(How::Incomplete) => heard.words.get(..heard.words.len() / 2).unwrap_or_default().to_vec(),
        _ => heard.words,
    };
    let transcript = hear::text(&words);
    let read = tokens::of_user_audio(heard.ms) + tokens::of_text(&form.hints);
    let used = read + tokens::of_text(&transcript);
    let taken = visit.take(&form.model, used)?;
    let delay = visit.dice.delay(config.text.transcription) + config.text.listening(Duration::from_millis(heard.ms));
    let streamed = form.stream && !matches!(visit.how(), Some(How::Garbage));
    time::sleep(delay).await;
    visit.settle(taken.as_ref(), used);
    pay(text, &form, heard.ms, &transcript, content);
    let mut bill = usage(&form.model, heard.ms, &transcript);
    add_hints(&mut bill, tokens::of_text(&form.hints));
    if streamed {
        let word = Duration::from_millis(config.text.word_ms);
        return Ok(sse::stream(events(&form, &words, &transcript, &bill, word), visit.fault.as_ref()));
    }
    Ok(written(&form, &words, heard.ms, bill, visit))
}

/// Decodes and hears, off the threads that serve.
async fn listen(text: &Text, form: &mut Form, most_s: u64) -> Result<Heard, No> {
    let (file, name) = (std::mem::take(&mut form.file), form.name.clone());
    let _turn = text.decoding.acquire().await;
    let work = tokio::task::spawn_blocking(move || {
        let recording = decode_bytes(&name, file, None)?;
        let words = hear::words(&recording.samples, recording.rate);
        let ms = u64::try_from(recording.duration().as_millis()).unwrap_or(u64::MAX);
        Ok::<_, DecodeError>(Heard { words, ms })
    });
    let broken = || No::bad(Refusal::new("invalid_value", "Audio file might be corrupted or unsupported").at("file"));
    let heard = work.await.map_err(|_| broken())?.map_err(|_| broken())?;
    if heard.ms < SHORTEST_MS {
        let message = "Audio file is too short. Minimum audio length is 0.1 seconds.";
        return Err(No::bad(Refusal::new("audio_too_short", message).at("file")));
    }
    if form.model.contains("4o") && heard.ms > most_s.saturating_mul(1_000) {
        let message = format!(
            "audio duration {} seconds is longer than {most_s} seconds which is the maximum for this model",
            subtitles::seconds(heard.ms)
        );
        return Err(No::bad(Refusal::new("invalid_value", message)));
    }
    if diarizes(&form.model) && heard.ms > UNCUT_MS && !form.chunked {
        let message = "chunking_strategy is required for diarization models";
        return Err(No::bad(Refusal::new("missing_required_parameter", message).at("chunking_strategy")));
    }
    Ok(heard)
}

fn pay(text: &Text, form: &Form, ms: u64, transcript: &str, content: u64) {
    let mut stats = text.world.stats.lock();
    let stats = &mut stats.text;
    stats.heard_ms += ms;
    if by_time(&form.model) {
        stats.billed_ms += ms;
    } else {
        stats.heard_tokens += tokens::of_user_audio(ms) + tokens::of_text(&form.hints);
        stats.written_tokens += tokens::of_text(transcript);
    }
    stats.pays(content);
}

/// What a prompt weighs is paid, too, where tokens are.
fn add_hints(usage: &mut Value, hints: u64) {
    for path in ["/total_tokens", "/input_tokens", "/input_token_details/text_tokens"] {
        if let Some(count) = usage.pointer_mut(path) {
            *count = json!(count.as_u64().unwrap_or_default() + hints);
        }
    }
}

/// With the words' probabilities, if they are asked for.
fn logged(fields: Value, form: &Form, text: &str) -> Value {
    let words = || text.split_inclusive(' ').map(logprob).collect::<Vec<_>>();
    if form.logprobs { with(fields, json!({"logprobs": words()})) } else { fields }
}

/// The whole transcript.
fn written(form: &Form, words: &[Word], ms: u64, usage: Value, visit: &Visit<'_>) -> Response<Body> {
    let text = hear::text(words);
    let fault = visit.fault.as_ref();
    let body = match form.format {
        Format::Text => return plain(format!("{text}\n"), "text/plain; charset=utf-8", fault),
        Format::Srt => return plain(subtitles::srt(words), "text/plain; charset=utf-8", fault),
        Format::Vtt => return plain(subtitles::vtt(words), "text/vtt; charset=utf-8", fault),
        Format::Json => {
            let mut body = logged(json!({"text": text}), form, &text);
            if !tells_no_language(&form.model) {
                let code = form.languages.first().map_or("en", String::as_str);
                body = with(body, json!({"languages": [{"code": code}]}));
            }
            with(body, json!({"usage": usage}))
        }
        Format::DiarizedJson => json!({
            "task": "transcribe",
            "duration": subtitles::seconds(ms),
            "text": text,
            "segments": subtitles::speakers(words),
            "usage": usage,
        }),
        Format::VerboseJson => {
            let mut body = json!({
                "task": "transcribe",
                "language": form.languages.first().map_or("english", String::as_str),
                "duration": subtitles::seconds(ms),
                "text": text,
            });
            // Segments are what it has unless only words are asked for.
            if form.segments || !form.words {
                body = with(body, json!({"segments": subtitles::segments(words)}));
            }
            if form.words {
                body = with(body, json!({"words": subtitles::words(words)}));
            }
            with(body, json!({"usage": usage}))
        }
    };
    sse::json(&body, fault)
}

/// Whether a model is one of those that tell no languages.
fn tells_no_language(model: &str) -> bool {
    model.contains("4o") || model.starts_with("whisper")
}

fn plain(body: String, kind: &'static str, fault: Option<&FaultKind>) -> Response<Body> {
    let mut response = Response::new(Body::from(body.clone()));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    sse::plain(response, body, fault)
}

/// The transcript word by word.
fn events(form: &Form, words: &[Word], transcript: &str, usage: &Value, pause: Duration) -> Vec<Event> {
    let mut events = Vec::new();
    if diarizes(&form.model) {
        let segments = subtitles::speakers(words).into_iter();
        events.extend(segments.map(|data| Event::new("transcript.text.segment", data).after(pause)));
    } else {
        for word in transcript.split_inclusive(' ') {
            let data = logged(json!({"type": "transcript.text.delta", "delta": word}), form, word);
            events.push(Event::new("transcript.text.delta", data).after(pause));
        }
    }
    let data = logged(json!({"type": "transcript.text.done", "text": transcript}), form, transcript);
    let data = with(data, json!({"usage": usage}));
    events.push(Event::new("transcript.text.done", data));
    events
}
