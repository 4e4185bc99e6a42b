//! The output and error files of a batch, read line by line: answers come in any order, some not at all, and a broken download ends in the
//! middle of a line.
use std::collections::HashMap;

use serde_json::Value;

use super::super::schema::shortened;

/// What came for a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A response object.
    Response(Value),
    /// The service will not answer this request.
    Failed {
        /// The service's, or `http_` and the status.
        code: String,
        /// What it says.
        message: String,
    },
    /// It was not run, or not to its end, and may be sent again.
    Again,
}

/// Reads the lines of one batch's files: the output file first.
#[derive(Debug)]
pub struct Results {
    /// The batch's requests, and where each stands.
    order: Vec<String>,
    answered: HashMap<String, bool>,
    broken: usize,
    unknown: usize,
    doubled: usize,
}

/// Lines that gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Odd {
    /// They cannot be read.
    pub broken: usize,
    /// They are of no request of this batch.
    pub unknown: usize,
    /// They are of a request that has its answer.
    pub doubled: usize,
}

impl Results {
    /// `keys`: the `custom_id`s of all requests in the batch.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Self {
        let order: Vec<String> = keys.into_iter().collect();
        let answered = order.iter().map(|key| (key.clone(), false)).collect();
        Self { order, answered, broken: 0, unknown: 0, doubled: 0 }
    }

    /// A line. None: an empty one, or one of those that [`Self::odd`] counts.
    pub fn line(&mut self, line: &[u8]) -> Option<(String, Answer)> {
        if line.trim_ascii().is_empty() {
            return None;
        }
        let read = serde_json::from_slice::<Value>(line).ok();
        let key = read.as_ref().and_then(|line| line.get("custom_id")?.as_str());
        let (Some(read), Some(key)) = (&read, key) else {
            self.broken += 1;
            return None;
        };
        match self.answered.get_mut(key) {
            None => self.unknown += 1,
            Some(true) => self.doubled += 1,
            Some(answered) => {
                let answer = answer(read);
                *answered = answer != Answer::Again;
                return Some((key.to_owned(), answer));
            }
        }
        None
    }

    /// The requests that have no answer yet, in the order in which they were sent.
    pub fn missing(&self) -> Vec<&str> {
        self.order.iter().map(String::as_str).filter(|key| self.answered.get(*key) == Some(&false)).collect()
    }

    /// Lines that gave nothing.
    pub fn odd(&self) -> Odd {
        Odd { broken: self.broken, unknown: self.unknown, doubled: self.doubled }
    }
}

fn answer(line: &Value) -> Answer {
    let text = |pointer: &str| line.pointer(pointer).and_then(Value::as_str);
    let failed = |code: &str, message: Option<&str>| Answer::Failed {
        code: code.to_owned(),
        message: shortened(message.unwrap_or("no message"), 300),
    };
    let status = line.pointer("/response/status_code").and_then(Value::as_u64);
    match (status, line.pointer("/response/body")) {
        (Some(200..=299), Some(body)) => Answer::Response(body.clone()),
        (Some(408 | 409 | 429 | 500..), _) => Answer::Again,
        (Some(status), _) => {
            let code = text("/response/body/error/code").map_or_else(|| format!("http_{status}"), str::to_owned);
            failed(&code, text("/response/body/error/message"))
        }
        (None, _) => match text("/error/code") {
            None | Some("batch_expired" | "batch_cancelled" | "server_error" | "rate_limit_exceeded") => Answer::Again,
            Some(code) => failed(code, text("/error/message")),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(key: &str, status: u16, body: &Value) -> Vec<u8> {
        json!({"id": "batch_req_1", "custom_id": key, "error": null,
            "response": {"status_code": status, "request_id": "r", "body": body}})
        .to_string()
        .into_bytes()
    }

    fn unrun(key: &str, code: &str) -> Vec<u8> {
        json!({"custom_id": key, "response": null, "error": {"code": code, "message": "not run"}})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn answers_are_found_in_any_order_and_missing_ones_are_named() {
        let mut results = Results::new(["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned));
        let body = json!({"output": []});
        let failed = |code: &str, message: &str| Answer::Failed { code: code.to_owned(), message: message.to_owned() };
        let error = json!({"error": {"code": "invalid_prompt", "message": "no"}});
        for (line, want) in [
            (line("c", 200, &body), Some(("c", Answer::Response(body.clone())))),
            (line("a", 200, &body), Some(("a", Answer::Response(body.clone())))),
            (line("a", 200, &body), None),
            (line("x", 200, &body), None),
            (b"\r\n".to_vec(), None),
            (line("b", 400, &error), Some(("b", failed("invalid_prompt", "no")))),
            (line("d", 413, &json!("large")), Some(("d", failed("http_413", "no message")))),
            (line("e", 429, &json!({})), Some(("e", Answer::Again))),
            (line("e", 503, &json!(null)), Some(("e", Answer::Again))),
            (unrun("f", "batch_expired"), Some(("f", Answer::Again))),
            (unrun("f", "of_tomorrow"), Some(("f", failed("of_tomorrow", "not run")))),
            (unrun("f", "batch_expired"), None),
            (line("g", 200, &body)[..20].to_vec(), None),
            (br#"{"id": 5}"#.to_vec(), None),
            (b"[]".to_vec(), None),
        ] {
            let want = want.map(|(key, answer)| (key.to_owned(), answer));
            assert_eq!(results.line(&line), want, "{}", String::from_utf8_lossy(&line));
        }
        assert_eq!(results.missing(), ["e", "g"]);
        assert_eq!(results.odd(), Odd { broken: 3, unknown: 1, doubled: 2 });
    }

    proptest::proptest! {
        /// However the files are mixed, cut and repeated: each answer is given once, and the rest is missing.
        #[test]
        fn each_answer_is_given_once(picks in proptest::collection::vec((0usize..20, proptest::bool::ANY), 0..80)) {
            let mut results = Results::new((0..20).map(|at| format!("k{at}")));
            let mut given = std::collections::HashSet::new();
            for (at, whole) in picks {
                let line = line(&format!("k{at}"), 200, &json!({"at": at}));
                let line = if whole { &line[..] } else { &line[..line.len() / 2] };
                if let Some((key, answer)) = results.line(line) {
                    proptest::prop_assert_eq!(answer, Answer::Response(json!({"at": at})));
                    proptest::prop_assert!(given.insert(key));
                }
            }
            proptest::prop_assert_eq!(results.missing().len(), 20 - given.len());
        }
    }
}
