//! One text from its first request to its result. Decides, and sends nothing: [`Extraction::poll`] hands out requests, as many at once as
//! can go side by side; [`Extraction::got`] takes what came.
//!
//! The rules. A text that does not fit goes in parts, each with the same schema; their results are made one by a further request, or by
//! several where they do not fit into one, until one is left. An answer that does not fit the schema, or is not JSON, is shown to the model
//! once with what is wrong. One that broke off for its length is asked for once more with twice the room. An error of the service's own
//! is tried once more. What then is not there has failed, with a code and a message for the error table; a part that has failed fails the
//! whole: a result without it would look like one with it.
//!
//! The state is plain data: written down after each answer, it goes on in another process, and asks for nothing that was answered.
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    answer::{Outcome, Reason, Used, model, read, used},
    request::{Plan, Request, Setup, TooSmall, Transcript, digest},
};

/// How a text ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A value of the schema.
    Done(Value),
    /// There is none.
    Failed {
        /// For counting: ours (`invalid_result`, `malformed_json`, `refused`, `answer_too_long`, `content_filter`, `incomplete`,
        /// `merge_too_large`) or the service's.
        code: String,
        /// For people.
        message: String,
    },
}

/// A request to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Send {
    /// Names it, at most 64 letters: for the answer, as idempotency key, as `custom_id`. The same request always has the same.
    pub key: String,
    /// What to send.
    pub request: Request,
}

/// One text on its way.
#[derive(Debug)]
pub struct Extraction {
    setup: Arc<Setup>,
    transcript: Transcript,
    state: State,
}

/// All that is to be kept of an [`Extraction`] beside its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What it is of: the text, and what is asked.
    of: String,
    plan: Plan,
    /// 0: parts; from 1 on, mergers.
    level: u32,
    tasks: Vec<Task>,
    used: Used,
    requests: u32,
    model: Option<String>,
    end: Option<End>,
}

/// A part, or a merger of some results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Task {
    /// What a merger merges; empty for a part.
    results: Vec<Value>,
    is: Is,
    /// Requests that were answered.
    answered: u32,
    /// It has twice the room.
    grown: bool,
    /// It was tried again after an error of the service's.
    retried: bool,
    /// The answer that is being repaired, and what is wrong with it.
    repair: Option<(String, Vec<String>)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Is {
    Ready,
    Sent,
    Done(Value),
}

impl Task {
    fn new(results: Vec<Value>) -> Self {
        Self { results, is: Is::Ready, answered: 0, grown: false, retried: false, repair: None }
    }

    fn done(value: Value) -> Self {
        Self { is: Is::Done(value), ..Self::new(Vec::new()) }
    }
}

impl Extraction {
    /// # Errors
    /// What is known of the file leaves no room for its text.
    pub fn new(setup: Arc<Setup>, transcript: Transcript) -> Result<Self, TooSmall> {
        let plan = setup.plan(&transcript)?;
        let tasks = plan.parts.iter().map(|_| Task::new(Vec::new())).collect();
        let of = of(&setup, &transcript);
        let state = State { of, plan, level: 0, tasks, used: Used::default(), requests: 0, model: None, end: None };
        Ok(Self { setup, transcript, state })
    }

    /// Goes on with what was kept. None if that was of another text, or something else was asked of it. Requests without an answer are
    /// handed out again, with the same keys.
    pub fn resumed(setup: Arc<Setup>, transcript: Transcript, mut state: State) -> Option<Self> {
        if state.of != of(&setup, &transcript) {
            return None;
        }
        for task in &mut state.tasks {
            if task.is == Is::Sent {
                task.is = Is::Ready;
            }
        }
        Some(Self { setup, transcript, state })
    }

    /// What is to be kept.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// In how many parts, and how many tokens they are.
    pub fn plan(&self) -> &Plan {
        &self.state.plan
    }

    /// How it ended; none: it has not. Answers may still be on their way ([`Self::waiting`]), and cost.
    pub fn end(&self) -> Option<&End> {
        self.state.end.as_ref()
    }

    /// What its answers have used.
    pub fn used(&self) -> Used {
        self.state.used
    }

    /// Answers that came: its attempts.
    pub fn requests(&self) -> u32 {
        self.state.requests
    }

    /// The model that has answered last, by its own name.
    pub fn model(&self) -> Option<&str> {
        self.state.model.as_deref()
    }

    /// Requests without an answer.
    pub fn waiting(&self) -> usize {
        self.state.tasks.iter().filter(|task| task.is == Is::Sent).count()
    }

    /// The next request to send. None: wait for answers, or it is over.
    pub fn poll(&mut self) -> Option<Send> {
        if self.state.end.is_some() {
            return None;
        }
        let (at, task) = self.state.tasks.iter_mut().enumerate().find(|(_, task)| task.is == Is::Ready)?;
        task.is = Is::Sent;
        let key = key(&self.state.of, self.state.level, at, task.answered);
        let request = match self.state.level {
            0 => self.setup.part(&self.transcript, &self.state.plan, at),
            level => self.setup.merger(&self.transcript, &format!("merger {level}.{}", at + 1), &task.results),
        };
        let request = match task.grown {
            true => self.setup.with_output(&request, self.setup.room().most_output()),
            false => request,
        };
        let request = match &task.repair {
            Some((answer, problems)) => self.setup.repair(&request, answer, problems),
            None => request,
        };
        Some(Send { key, request })
    }

    /// Takes the response object that came for a request. False: nothing waits for it, as when it came twice.
    pub fn got(&mut self, key: &str, response: &Value) -> bool {
        let Some(at) = self.sent(key) else { return false };
        self.state.used += used(response);
        self.state.requests += 1;
        if let Some(model) = model(response) {
            self.state.model = Some(model.to_owned());
        }
        let outcome = read(response, self.setup.schema());
        let room = self.setup.room();
        let Some(task) = self.state.tasks.get_mut(at) else { return false };
        task.answered += 1;
        task.is = Is::Ready;
        match outcome {
            Outcome::Valid(value) => {
                task.is = Is::Done(value);
                self.advance();
            }
            Outcome::Invalid { text, problems } if task.repair.is_none() => task.repair = Some((text, problems)),
            Outcome::Malformed { text, why } if task.repair.is_none() => task.repair = Some((text, vec![why])),
            Outcome::Invalid { problems, .. } => self.fail("invalid_result", &problems.join("; ")),
            Outcome::Malformed { why, .. } => self.fail("malformed_json", &why),
            Outcome::Refused(text) => self.fail("refused", &format!("the model refuses: {text}")),
            Outcome::Incomplete(Reason::MaxOutputTokens) if !task.grown => task.grown = true,
            Outcome::Incomplete(Reason::MaxOutputTokens) => {
                self.fail("answer_too_long", &format!("over {} tokens, twice what was planned", room.most_output()));
            }
            Outcome::Incomplete(Reason::ContentFilter) => {
                self.fail("content_filter", "the service's filter stopped the answer");
            }
            Outcome::Incomplete(Reason::Other(reason)) => self.fail("incomplete", &format!("it broke off: {reason}")),
            Outcome::Failed { code, .. } if code == "server_error" && !task.retried => task.retried = true,
            Outcome::Failed { code, message } => self.fail(&code, &message),
        }
        true
    }

    /// The request cannot be answered, for good.
    pub fn failed(&mut self, key: &str, code: &str, message: &str) -> bool {
        let Some(at) = self.sent(key) else { return false };
        self.state.requests += 1;
        if let Some(task) = self.state.tasks.get_mut(at) {
            task.is = Is::Ready;
        }
        self.fail(code, message);
        true
    }

    /// The request was not answered, and may be sent again: it is handed out once more, with the same key.
    pub fn unsent(&mut self, key: &str) -> bool {
        let task = self.sent(key).and_then(|at| self.state.tasks.get_mut(at));
        task.map(|task| task.is = Is::Ready).is_some()
    }

    fn sent(&self, key: &str) -> Option<usize> {
        let of = |at: usize, task: &Task| self::key(&self.state.of, self.state.level, at, task.answered);
        let mut tasks = self.state.tasks.iter().enumerate();
        tasks.find(|(at, task)| task.is == Is::Sent && of(*at, task) == key).map(|(at, _)| at)
    }

    /// The first reason stays.
    fn fail(&mut self, code: &str, message: &str) {
        let (code, message) = (code.to_owned(), message.to_owned());
        self.state.end.get_or_insert(End::Failed { code, message });
    }

    /// Once all of a level are there: the next level, or the end.
    fn advance(&mut self) {
        let value = |task: &Task| match &task.is {
            Is::Done(value) => Some(value.clone()),
            Is::Ready | Is::Sent => None,
        };
        let Some(values) = self.state.tasks.iter().map(value).collect::<Option<Vec<Value>>>() else { return };
        if self.state.end.is_some() {
            return;
        }
        if let [only] = values.as_slice() {
            self.state.end = Some(End::Done(only.clone()));
            return;
        }
        let free = self.setup.free_in_merger(&self.transcript);
        let (heaviest, groups) =
            (values.iter().map(|one| self.setup.weight(one)).max().unwrap_or(0), self.grouped(values, free));
        if groups.iter().all(|group| group.len() < 2) {
            let message = format!("results of parts of up to {heaviest} tokens: no two of them fit into {free} tokens");
            return self.fail("merge_too_large", &message);
        }
        let task = |mut group: Vec<Value>| match group.len() {
            1 => group.pop().map_or_else(|| Task::new(Vec::new()), Task::done),
            _ => Task::new(group),
        };
        self.state.tasks = groups.into_iter().map(task).collect();
        self.state.level += 1;
    }

    /// Results in their order, in groups that fit.
    fn grouped(&self, values: Vec<Value>, free: u64) -> Vec<Vec<Value>> {
        let mut groups: Vec<Vec<Value>> = Vec::new();
        let mut weight = 0;
        for value in values {
            let more = self.setup.weight(&value);
            match groups.last_mut() {
                Some(group) if weight + more <= free => {
                    group.push(value);
                    weight += more;
                }
                _ => {
                    groups.push(vec![value]);
                    weight = more;
                }
            }
        }
        groups
    }
}

fn of(setup: &Setup, transcript: &Transcript) -> String {
    let facts = Value::from(transcript.facts.clone()).to_string();
    digest(&[&setup.fingerprint(), &transcript.id, &transcript.text, &facts])
}

fn key(of: &str, level: u32, at: usize, answered: u32) -> String {
    format!("{of}-{level}-{at}-{answered}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::{
        super::{
            answer::tests::{broken_off, refused, said, schema},
            request::Room,
        },
        *,
    };

    const SMALL: Room = Room { context: 3_000, output: 200, margin: 50 };

    fn extraction(room: Room, text: &str) -> Extraction {
        let setup = Setup::new("m", None, schema(), room).unwrap();
        let transcript = Transcript { id: "a".to_owned(), text: text.to_owned(), facts: Map::new() };
        Extraction::new(Arc::new(setup), transcript).unwrap()
    }

    /// Runs to the end; the model answers by the number of the request.
    fn run(extraction: &mut Extraction, mut model: impl FnMut(usize, &Request) -> Value) -> usize {
        let mut sent = 0;
        loop {
            let all: Vec<Send> = std::iter::from_fn(|| extraction.poll()).collect();
            if all.is_empty() {
                assert_eq!((extraction.waiting(), extraction.end().is_some()), (0, true));
                return sent;
            }
            for one in all {
                assert!(extraction.got(&one.key, &model(sent, &one.request)));
                sent += 1;
            }
        }
    }

    fn failed(extraction: &Extraction) -> (&str, &str) {
        match extraction.end() {
            Some(End::Failed { code, message }) => (code, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_request_is_enough() {
        let mut it = extraction(Room::default(), "hello");
        assert_eq!(run(&mut it, |_, _| said(r#"{"a": "b"}"#)), 1);
        assert_eq!(it.end(), Some(&End::Done(json!({"a": "b"}))));
        assert_eq!((it.used().input, it.requests(), it.model()), (100, 1, Some("m-1")));
    }

    #[test]
    fn answers_that_do_not_fit() {
        let (good, bad, broken) = (r#"{"a": "b"}"#, r#"{"a": 5}"#, "{\"a\": \"b");
        let error = |code: &str| {
            let mut error = said("");
            error["status"] = "failed".into();
            error["error"] = json!({"code": code, "message": "no"});
            error
        };
        let long = || broken_off("max_output_tokens");
        let table = [
            ("repaired", vec![said(bad), said(good)], Ok::<_, (&str, &str)>(())),
            ("repaired JSON", vec![said(broken), said(good)], Ok(())),
            ("not repaired", vec![said(broken), said(bad)], Err(("invalid_result", "`/a`: the value is not of type"))),
            ("never JSON", vec![said(bad), said(broken)], Err(("malformed_json", "not JSON: "))),
            ("empty", vec![said(""), said("")], Err(("malformed_json", "the answer has no text"))),
            ("refused", vec![refused()], Err(("refused", "the model refuses: I will not."))),
            ("longer", vec![long(), said(good)], Ok(())),
            ("far longer", vec![long(), long()], Err(("answer_too_long", "over 16384 tokens"))),
            ("longer and repaired", vec![long(), said(bad), said(good)], Ok(())),
            ("repaired and longer", vec![said(bad), long(), said(good)], Ok(())),
            ("filtered", vec![broken_off("content_filter")], Err(("content_filter", "the service's filter"))),
            ("broke off", vec![broken_off("x")], Err(("incomplete", "it broke off: x"))),
            ("again", vec![error("server_error"), said(good)], Ok(())),
            ("again in vain", vec![error("server_error"), error("server_error")], Err(("server_error", "no"))),
            ("error", vec![error("invalid_prompt")], Err(("invalid_prompt", "no"))),
            ("no response", vec![json!({})], Err(("not_a_response", "found {}"))),
        ];
        for (name, answers, want) in table {
            let mut it = extraction(Room::default(), "hello");
            let mut requests = Vec::new();
            let sent = run(&mut it, |at, request| {
                requests.push(request.clone());
                answers[at].clone()
            });
            assert_eq!((sent, it.requests() as usize), (answers.len(), answers.len()), "{name}");
            match want {
                Ok(()) => assert_eq!(it.end(), Some(&End::Done(json!({"a": "b"}))), "{name}"),
                Err((code, message)) => {
                    let found = failed(&it);
                    assert!(found.0 == code && found.1.starts_with(message), "{name}: {found:?}");
                }
            }
            if name == "longer and repaired" {
                let outputs: Vec<u64> = requests.iter().map(|request| request.output).collect();
                assert_eq!(outputs, [8_192, 16_384, 16_384]);
                assert_eq!(requests[2].body["input"][1]["content"][0]["text"], bad);
            }
        }
    }

    #[test]
    fn long_texts_go_in_parts_and_come_back_as_one() {
        let mut it = extraction(SMALL, &"Somebody says something of importance.\n".repeat(900));
        let parts = it.plan().parts.len();
        assert!((4..12).contains(&parts), "{parts}");
        let text = it.transcript.text.clone();
        let (mut seen, mut mergers) = (String::new(), Vec::new());
        let sent = run(&mut it, |_, request| {
            assert!(
                request.input + request.output + SMALL.margin <= SMALL.context,
                "{} {}",
                request.input,
                request.output
            );
            let material = request.body["input"][0]["content"][0]["text"].as_str().unwrap();
            let material: Value = serde_json::from_str(material).unwrap();
            match material.get("transcript") {
                Some(part) => seen.push_str(part.as_str().unwrap()),
                None => mergers.push(material["results"].clone()),
            }
            said(&json!({"a": format!("result {}", mergers.len())}).to_string())
        });
        assert_eq!(seen, text, "every part was asked, in order");
        assert_eq!((sent, mergers.len()), (parts + 1, 1));
        assert_eq!(mergers[0].as_array().unwrap().len(), parts);
        assert_eq!(it.end(), Some(&End::Done(json!({"a": "result 1"}))));
        assert_eq!(it.used().input, 100 * (parts as u64 + 1));
    }

    #[test]
    fn results_that_do_not_fit_are_merged_in_steps() {
        let text = "Somebody says something of importance.\n".repeat(900);
        let mut it = extraction(SMALL, &text);
        let (parts, free) = (it.plan().parts.len(), it.setup.free_in_merger(&it.transcript));
        // Two or three of them fit.
        let big = "word ".repeat(usize::try_from(free).unwrap() / 4);
        let mut sizes = Vec::new();
        run(&mut it, |_, request| {
            let material = request.body["input"][0]["content"][0]["text"].as_str().unwrap();
            let material: Value = serde_json::from_str(material).unwrap();
            sizes.extend(material.get("results").map(|results| results.as_array().unwrap().len()));
            assert!(request.input + request.output + SMALL.margin <= SMALL.context);
            said(&json!({"a": big}).to_string())
        });
        assert!(matches!(it.end(), Some(End::Done(_))), "{:?}", it.end());
        assert!(sizes.len() >= 3 && sizes.iter().all(|size| (2..=3).contains(size)), "{sizes:?}");
        // Each merger of n leaves n - 1 less.
        assert_eq!(sizes.iter().map(|size| size - 1).sum::<usize>(), parts - 1);

        let mut it = extraction(SMALL, &text);
        let huge = "word ".repeat(usize::try_from(free).unwrap());
        run(&mut it, |_, _| said(&json!({"a": huge}).to_string()));
        assert_eq!(failed(&it).0, "merge_too_large");
    }

    #[test]
    fn a_failed_part_fails_the_whole_and_the_others_are_still_paid() {
        let mut it = extraction(SMALL, &"Somebody says something of importance.\n".repeat(400));
        let all: Vec<Send> = std::iter::from_fn(|| it.poll()).collect();
        assert!(all.len() >= 3);
        assert!(it.got(&all[1].key, &refused()));
        assert_eq!(failed(&it).0, "refused");
        assert_eq!((it.poll(), it.waiting()), (None, all.len() - 1));
        assert!(it.got(&all[0].key, &said(r#"{"a": "b"}"#)));
        assert!(it.failed(&all[2].key, "upstream_timeout", "no answer"));
        assert_eq!((failed(&it).0, it.requests(), it.used().input), ("refused", 3, 200));
        assert!(!it.got(&all[0].key, &said(r#"{"a": "b"}"#)), "twice");
        assert!(!it.got("other", &said("")));
        assert_eq!(it.used().input, 200);
    }

    #[test]
    fn a_kept_state_goes_on_and_asks_nothing_twice() {
        let text = "Somebody says something of importance.\n".repeat(400);
        let mut it = extraction(SMALL, &text);
        let all: Vec<Send> = std::iter::from_fn(|| it.poll()).collect();
        assert!(all.iter().all(|one| one.key.len() <= 64));
        it.got(&all[0].key, &said(r#"{"a": "first"}"#));
        it.got(&all[1].key, &said(r#"{"a": 5}"#));
        let kept = serde_json::to_string(it.state()).unwrap();
        assert!(!kept.contains("Somebody"), "the text is kept elsewhere");
        let state: State = serde_json::from_str(&kept).unwrap();
        let (setup, transcript) = (it.setup.clone(), it.transcript.clone());
        let mut again = Extraction::resumed(setup.clone(), transcript.clone(), state.clone()).unwrap();
        let next: Vec<Send> = std::iter::from_fn(|| again.poll()).collect();
        assert_eq!(next.len(), all.len() - 1);
        assert_ne!(next[0].key, all[1].key, "a repair is another request");
        assert_eq!(next[1..], all[2..], "the others are the same, by key and text");
        assert!(again.unsent(&next[1].key));
        assert_eq!(again.poll().as_ref(), Some(&next[1]));
        for one in &next {
            assert!(again.got(&one.key, &said(r#"{"a": "b"}"#)));
        }
        run(&mut again, |_, request| {
            assert!(request.body.to_string().contains("first"), "a merger of all");
            said(r#"{"a": "all"}"#)
        });
        assert_eq!(again.end(), Some(&End::Done(json!({"a": "all"}))));

        let other = Transcript { text: format!("{text}."), ..transcript };
        assert!(Extraction::resumed(setup, other, state).is_none());
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(48))]
        /// Whatever comes: it ends, within a bounded number of requests, and everything is counted.
        #[test]
        fn it_always_ends(answers in proptest::collection::vec(0u8..8, 1..20), words in 1usize..3_000) {
            let mut it = extraction(SMALL, &"word ".repeat(words));
            let parts = it.plan().parts.len();
            let sent = run(&mut it, |at, _| match answers[at % answers.len()] {
                0..=3 => said(r#"{"a": "b"}"#),
                4 => said(r#"{"a": 5}"#),
                5 => said("{"),
                6 => broken_off("max_output_tokens"),
                _ => json!({"output": [], "status": "failed", "error": {"code": "server_error", "message": ""}}),
            });
            // Each part and each merger: once, repaired once, longer once, again once.
            proptest::prop_assert!(sent <= 4 * (2 * parts), "{} for {} parts", sent, parts);
            proptest::prop_assert_eq!(sent, it.requests() as usize);
        }
    }
}
