//! What a response object says: a value that fits the schema, or what is wrong with it.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Schema, schema::shortened};

/// Longest text of others in a message of ours, letters.
const LONGEST: usize = 300;

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A value of the schema.
    Valid(Value),
    /// JSON, and not of the schema.
    Invalid {
        /// What the model wrote.
        text: String,
        /// What is wrong, each with its JSON pointer.
        problems: Vec<String>,
    },
    /// Not JSON.
    Malformed {
        /// What the model wrote.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// The model will not.
    Refused(String),
    /// It broke off.
    Incomplete(Reason),
    /// The service failed, or this is no response at all.
    Failed {
        /// The service's, or ours.
        code: String,
        /// What it says.
        message: String,
    },
}

/// Why an answer broke off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It came to `max_output_tokens`.
    MaxOutputTokens,
    /// The service's filter stopped it.
    ContentFilter,
    /// Something else, in the service's word.
    Other(String),
}

/// What a request, or several, have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Tokens read.
    pub input: u64,
    /// Of them from the service's cache.
    pub cached: u64,
    /// Tokens written, thoughts included.
    pub output: u64,
    /// Of them thoughts.
    pub reasoning: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.cached = self.cached.saturating_add(other.cached);
        self.output = self.output.saturating_add(other.output);
        self.reasoning = self.reasoning.saturating_add(other.reasoning);
    }
}

/// What a response has used.
pub fn used(response: &Value) -> Used {
    let count = |pointer| response.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    Used {
        input: count("/usage/input_tokens"),
        cached: count("/usage/input_tokens_details/cached_tokens"),
        output: count("/usage/output_tokens"),
        reasoning: count("/usage/output_tokens_details/reasoning_tokens"),
    }
}

/// The model that has answered, by its own name.
pub fn model(response: &Value) -> Option<&str> {
    response.get("model").and_then(Value::as_str)
}

/// Reads a response object, the whole body of an answer that does not stream.
pub fn read(response: &Value, schema: &Schema) -> Outcome {
    let failed = |code: &str, message: String| Outcome::Failed { code: code.to_owned(), message };
    if response.get("output").is_none_or(|output| !output.is_array()) && response.get("error").is_none() {
        let found = shortened(&response.to_string(), LONGEST);
        return failed("not_a_response", format!("found {found}; expected a response object"));
    }
    let field = |pointer| response.pointer(pointer).and_then(Value::as_str);
    match response.get("status").and_then(Value::as_str) {
        Some("completed") => written(response, schema),
        Some("incomplete") => Outcome::Incomplete(match field("/incomplete_details/reason") {
            Some("max_output_tokens") => Reason::MaxOutputTokens,
            Some("content_filter") => Reason::ContentFilter,
            other => Reason::Other(shortened(other.unwrap_or("not told"), LONGEST)),
        }),
        status => {
            let message = field("/error/message").map(|message| shortened(message, LONGEST));
            let status = shortened(status.unwrap_or("no status"), 40);
            let message = message.unwrap_or_else(|| format!("the response ended with the status {status}"));
            failed(field("/error/code").unwrap_or("response_failed"), message)
        }
    }
}

/// What the model has written into a completed response.
fn written(response: &Value, schema: &Schema) -> Outcome {
    let items = response.get("output").and_then(Value::as_array).into_iter().flatten();
    let messages = items.filter(|item| item.get("type").is_some_and(|kind| kind == "message"));
    let pieces: Vec<&Value> = messages.filter_map(|message| message.get("content")?.as_array()).flatten().collect();
    let texts = |kind: &str, field: &str| {
        let of_kind = pieces.iter().filter(|piece| piece.get("type").is_some_and(|found| found == kind));
        of_kind.filter_map(|piece| piece.get(field)?.as_str()).collect::<Vec<_>>().concat()
    };
    let is_refusal = |piece: &&Value| piece.get("type").is_some_and(|kind| kind == "refusal");
    if pieces.iter().any(is_refusal) {
        return Outcome::Refused(texts("refusal", "refusal"));
    }
    let text = texts("output_text", "text");
    match serde_json::from_str::<Value>(unfenced(&text)) {
        Ok(value) => match schema.problems(&value) {
            none if none.is_empty() => Outcome::Valid(value),
            problems => Outcome::Invalid { text, problems },
        },
        Err(_) if text.trim().is_empty() => Outcome::Malformed { text, why: "the answer has no text".to_owned() },
        Err(e) => Outcome::Malformed { text, why: format!("not JSON: {e}") },
    }
}

/// Without the fence that models of services without a strict mode like to put around JSON.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    inner.map_or(text, |inner| inner.strip_prefix("json").unwrap_or(inner).trim())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A response with this text.
    pub(in super::super) fn said(text: &str) -> Value {
        json!({"object": "response", "id": "resp_1", "status": "completed", "model": "m-1",
            "output": [{"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}],
            "usage": {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 10,
                "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 110}})
    }

    /// A response that broke off for this reason.
    pub(in super::super) fn broken_off(reason: &str) -> Value {
        let mut response = said("{\"a\": \"b");
        response["status"] = "incomplete".into();
        response["incomplete_details"] = json!({"reason": reason});
        response
    }

    /// A response in which the model refuses.
    pub(in super::super) fn refused() -> Value {
        let mut response = said("");
        response["output"][1]["content"] = json!([{"type": "refusal", "refusal": "I will not."}]);
        response
    }

    /// A schema with one text.
    pub(in super::super) fn schema() -> Schema {
        Schema::read("a.json", r#"{"a": "text"}"#, false).unwrap()
    }

    #[test]
    fn what_came_is_told_apart() {
        let schema = schema();
        let failed = |code: &str, message: &str| Outcome::Failed { code: code.to_owned(), message: message.to_owned() };
        let mut error = said("");
        error["status"] = "failed".into();
        error["error"] = json!({"code": "server_error", "message": "try later"});
        let mut two = said("{\"a\":");
        two["output"].as_array_mut().unwrap().push(said("\"b\"}")["output"][1].clone());
        let table = [
            (said(r#"{"a": "b"}"#), Outcome::Valid(json!({"a": "b"}))),
            (said(" ```json\n{\"a\": \"b\"}\n``` "), Outcome::Valid(json!({"a": "b"}))),
            (two, Outcome::Valid(json!({"a": "b"}))),
            (
                said(r#"{"a": 5}"#),
                Outcome::Invalid {
                    text: r#"{"a": 5}"#.to_owned(),
                    problems: vec!["`/a`: the value is not of type \"string\"".to_owned()],
                },
            ),
            (refused(), Outcome::Refused("I will not.".to_owned())),
            (broken_off("max_output_tokens"), Outcome::Incomplete(Reason::MaxOutputTokens)),
            (broken_off("content_filter"), Outcome::Incomplete(Reason::ContentFilter)),
            (broken_off("of_tomorrow"), Outcome::Incomplete(Reason::Other("of_tomorrow".to_owned()))),
            (said(" "), Outcome::Malformed { text: " ".to_owned(), why: "the answer has no text".to_owned() }),
            (error, failed("server_error", "try later")),
            (
                json!({"error": {"code": "model_not_found", "message": "no such model", "type": "invalid_request_error"}}),
                failed("model_not_found", "no such model"),
            ),
            (json!({"output": []}), failed("response_failed", "the response ended with the status no status")),
            (json!([]), failed("not_a_response", "found []; expected a response object")),
            (json!("x"), failed("not_a_response", "found \"x\"; expected a response object")),
        ];
        for (response, want) in table {
            assert_eq!(read(&response, &schema), want, "{response}");
        }
        for text in ["{\"a\": \"b", "Here it is: {\"a\": \"b\"}", "{'a': 'b'}", "{\"a\": \"b\"} {\"a\": \"c\"}", "NaN"]
        {
            let outcome = read(&said(text), &schema);
            let Outcome::Malformed { text: kept, why } = outcome else { panic!("{text}: {outcome:?}") };
            assert!(kept == text && why.starts_with("not JSON: "), "{why}");
        }
    }

    #[test]
    fn use_is_counted() {
        let mut sum = used(&said("x"));
        assert_eq!(sum, Used { input: 100, cached: 40, output: 10, reasoning: 4 });
        sum += used(&said("x"));
        sum += used(&json!({"usage": null}));
        assert_eq!(sum, Used { input: 200, cached: 80, output: 20, reasoning: 8 });
        assert_eq!((model(&said("x")), model(&json!(5))), (Some("m-1"), None));
    }
}
