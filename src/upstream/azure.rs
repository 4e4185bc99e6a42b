//! OpenAI's models at Azure: where they listen, and how they want to be greeted (learn.microsoft.com, Foundry realtime
//! pages, read 2026-11). A model's name is that of a deployment. With an API version it is the preview, in the beta shape.
use super::{Intent, Wanted, ga::escape_query};

/// The resource's root, from a base path that may be any of its usual prefixes.
fn root(base: &str) -> &str {
    base.trim_end_matches("/v1").trim_end_matches("/openai")
}

/// The path under which the REST side stands.
pub fn rest_path(base: &str) -> String {
    format!("{}/openai/v1", root(base))
}

/// The path and query of a session under a base path. `bound`: its credential has the model in it.
pub fn session_path(base: &str, api_version: Option<&str>, wanted: &Wanted, bound: bool) -> String {
    let root = root(base);
    if let Some(call) = &wanted.joins {
        return format!("{root}/openai/v1/realtime?call_id={}", escape_query(call));
    }
    let model = escape_query(&wanted.model);
    match (api_version, wanted.intent) {
        (Some(version), intent) => {
            let intent = if intent == Intent::Transcription { "&intent=transcription" } else { "" };
            format!("{root}/openai/realtime?api-version={}&deployment={model}{intent}", escape_query(version))
        }
        (None, Intent::Realtime) if bound => format!("{root}/openai/v1/realtime"),
        (None, Intent::Realtime) => format!("{root}/openai/v1/realtime?model={model}"),
        (None, Intent::Transcription) => format!("{root}/openai/v1/realtime?intent=transcription"),
    }
}

/// The header that carries a credential: keys have one of their own, Entra's tokens (JWTs) go as bearers.
pub fn credential(key: &str) -> (&'static str, String) {
    if key.starts_with("eyJ") { ("authorization", format!("Bearer {key}")) } else { ("api-key", key.to_owned()) }
}

#[test]
fn deployments_are_found_under_any_usual_base() {
    let voice = Wanted::voice("my voice");
    for base in ["", "/openai", "/openai/v1"] {
        assert_eq!(session_path(base, None, &voice, false), "/openai/v1/realtime?model=my%20voice", "{base}");
        assert_eq!(
            session_path(base, Some("2025-04-01-preview"), &voice, false),
            "/openai/realtime?api-version=2025-04-01-preview&deployment=my%20voice",
            "{base}"
        );
    }
    assert_eq!(session_path("/openai", None, &voice, true), "/openai/v1/realtime");
    assert_eq!(session_path("", None, &Wanted::join("rtc_1"), false), "/openai/v1/realtime?call_id=rtc_1");
    let asr = Wanted { intent: Intent::Transcription, ..voice };
    assert_eq!(session_path("", None, &asr, false), "/openai/v1/realtime?intent=transcription");
    assert_eq!(credential("abc").0, "api-key");
    assert_eq!(credential("eyJabc"), ("authorization", "Bearer eyJabc".to_owned()));
}
