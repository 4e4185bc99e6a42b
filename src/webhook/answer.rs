//! What a webhook answered, as the model is told it.
use reqwest::{Response, header};
use serde::de::IgnoredAny;

/// What an empty answer means to the model.
const EMPTY: &str = r#"{"status":"ok"}"#;

/// Why an answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Useless {
    /// It has more bytes than are taken.
    TooLarge,
    /// It breaks off.
    Broken,
    /// It is no text, or no JSON although it says so.
    Garbled,
}

/// Reads an answer: JSON without its white space, any other text as it is. Nothing is cut off.
///
/// # Errors
/// Why it is of no use.
pub(super) async fn read(mut response: Response, max_bytes: usize) -> Result<String, Useless> {
    if response.content_length().is_some_and(|length| length > max_bytes as u64) {
        return Err(Useless::TooLarge);
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim().to_ascii_lowercase();
    let says_json = kind == "application/json" || kind.ends_with("+json");
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|_| Useless::Broken)? {
        if body.len() + piece.len() > max_bytes {
            return Err(Useless::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    let text = String::from_utf8(body).map_err(|_| Useless::Garbled)?;
    let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
    match (text.trim(), is_json) {
        ("", _) => Ok(EMPTY.to_owned()),
        (text, true) => Ok(compact(text)),
        (_, false) if says_json => Err(Useless::Garbled),
        (text, false) if text.contains('\0') => Err(Useless::Garbled),
        (text, false) => Ok(text.to_owned()),
    }
}

/// JSON without the white space between its parts; numbers stay as they were written.
fn compact(json: &str) -> String {
    let (mut inside, mut escaped) = (false, false);
    let keeps = |c: &char| {
        let keeps = inside || !c.is_ascii_whitespace();
        inside ^= *c == '"' && !escaped;
        escaped = inside && *c == '\\' && !escaped;
        keeps
    };
    json.chars().filter(keeps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_loses_its_white_space_and_nothing_else() {
        for (json, want) in [
            ("{ \"a\" : [ 1.10 , 12345678901234567890123 ] }\n", r#"{"a":[1.10,12345678901234567890123]}"#),
            (r#"{ "a b" : "c \" d \\" , "e" : " f " }"#, r#"{"a b":"c \" d \\","e":" f "}"#),
            (r#" "\\" "#, r#""\\""#),
        ] {
            assert_eq!(compact(json), want);
            assert!(serde_json::from_str::<IgnoredAny>(want).is_ok());
        }
    }
}
