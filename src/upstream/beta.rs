//! Compatible servers that kept the shape of OpenAI's beta (Qwen, speaches, Together and others): where they listen. What
//! they say and hear is translated by [`crate::beta`].
use super::{Intent, Wanted, ga::escape_query};

/// Some of them still want to be told (docs.together.ai, read 2026-11), nobody minds.
pub const HEADER: (&str, &str) = ("openai-beta", "realtime=v1");

/// The path and query of a session.
pub fn session_path(base: &str, wanted: &Wanted) -> String {
    let model = escape_query(&wanted.model);
    match wanted.intent {
        Intent::Realtime => format!("{base}/realtime?model={model}"),
        // Here the model is the one that writes down (speaches.ai, read 2026-11).
        Intent::Transcription if !model.is_empty() => format!("{base}/realtime?intent=transcription&model={model}"),
        Intent::Transcription => format!("{base}/realtime?intent=transcription"),
    }
}

#[test]
fn the_path_names_what_is_wanted() {
    let asr = Wanted { intent: Intent::Transcription, ..Wanted::voice("whisper") };
    for (wanted, path) in [
        (Wanted::voice("qwen3.8-omni"), "/v1/realtime?model=qwen3.8-omni"),
        (asr, "/v1/realtime?intent=transcription&model=whisper"),
        (Wanted { intent: Intent::Transcription, ..Wanted::voice("") }, "/v1/realtime?intent=transcription"),
    ] {
        assert_eq!(session_path("/v1", &wanted), path);
    }
}
