//! A question of an agent's to the expert, from the middle of a call: the tool `ask_expert` (docs/tools.md).
//!
//! Stands beside a call, which hands over what its model asks and goes on with what comes of it ([`Runner`]). The answer is read as it is
//! written; when the time is up, what there is by then must do. Dropped, the request is given up, and what it has used is settled
//! ([`super::run::Run`]). Quotes nothing that the service says of an error, and never ends a call.
use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use reqwest::Response as Answered;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Kind,
    ask::{self, Asked},
    outcome::{Outcome, Said, said},
    run::{No, Order, Run, Texts},
    sse::{Event, Events},
};
use crate::{
    admit::{Principal, governor::Reason},
    config::{ExpertConfig, TextTier},
    webhook::{Job, Ran, Runner},
};

/// Behind an answer that was not waited for to its end.
const STILL_SPEAKING: &str = "(the expert was still speaking)";
/// Behind one that broke off, or that its service has ended early.
const BROKE_OFF: &str = "(the answer breaks off here)";
/// Behind one of which there is more than is taken.
const TOO_LONG: &str = "(the rest was too long)";

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Whoever the call is for.
    pub who: Principal,
    /// The call's id.
    pub call: String,
    /// The agent's name.
    pub agent: String,
    /// Where the call came in.
    pub door: &'static str,
}

/// The expert, for one call.
#[derive(Debug)]
pub struct Expert {
    texts: Arc<Texts>,
    config: ExpertConfig,
    asker: Asker,
}

/// What the model writes.
#[derive(Debug, Deserialize)]
struct Question {
    question: String,
    #[serde(default)]
    context: Option<String>,
}

impl Runner for Expert {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.config.deadline_s)
    }

    fn turns(&self) -> usize {
        self.config.turns
    }

    fn run(&self, job: Job, end: Instant) -> BoxFuture<'_, Ran> {
        Box::pin(self.ask(job, end))
    }
}

impl Expert {
    /// As it is configured for an agent's tool.
    pub fn new(texts: Arc<Texts>, config: ExpertConfig, asker: Asker) -> Self {
        Self { texts, config, asker }
    }

    async fn ask(&self, job: Job, end: Instant) -> Ran {
        let order = match self.order(&job) {
            Ok(order) => order,
            Err(why) => return Ran::failed("garbled", &why),
        };
        // Dropped, it leaves the queue that it may stand in; there is nobody else to tell.
        let gone = CancellationToken::new();
        match time::timeout_at(end, self.texts.open(order, &gone)).await {
            Ok(Ok((run, answered))) => self.hear(run, answered, end).await,
            Ok(Err(no)) => self.refused(&no),
            Err(_) => Ran::late("the expert"),
        }
    }

    fn order(&self, job: &Job) -> Result<Order, String> {
        let Asker { who, call, agent, door } = self.asker.clone();
        // What an HTTP header can hold: a service's ids are not ours.
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        let key: String = format!("{call}-{}", job.call_id).chars().map(plain).collect();
        let asked = self.asked(job)?;
        let class = who.class();
        Ok(Order { who, asked, call, agent, door, class, row: key, waited: Duration::ZERO, beside: true, expert: true })
    }

    fn asked(&self, job: &Job) -> Result<Asked, String> {
        let question: Question = serde_json::from_str(&job.arguments)
            .map_err(|_| "the arguments must be an object with `question`, a text".to_owned())?;
        if question.question.trim().is_empty() {
            return Err("`question` is empty".to_owned());
        }
        let (agent, instructions) = (&self.asker.agent, &self.config.instructions);
        let most = self.texts.config.output_tokens;
        let body = json!({
            "model": TextTier::Expert.name(),
            "stream": true,
            // Nobody goes on from it.
            "store": false,
            // What was taken from the budget for it is then all that it can cost.
            "max_output_tokens": most,
            "instructions": format!("The voice agent `{agent}` is on a call and asks you something. {instructions}"),
            "input": [{"role": "user", "content": question.written(&job.dialogue)}],
        });
        ask::response(body.to_string().as_bytes(), most).map_err(|wrong| wrong.message)
    }

    /// Reads the answer as long as there is time.
    async fn hear(&self, mut run: Run, mut answered: Answered, end: Instant) -> Ran {
        let (mut events, mut heard) = (Events::default(), Heard::default());
        loop {
            // Whatever the service goes on to write is not waited for: `run` is dropped, and settled.
            let Ok(piece) = time::timeout_at(end, answered.chunk()).await else { return heard.late() };
            let Ok(Some(piece)) = piece else {
                run.broke();
                return heard.broken();
            };
            run.came(piece.len());
            events.feed(&piece, |event| heard.event(&event));
            if let Some(id) = heard.id.take() {
                run.named(&id);
            }
            match heard.ended.take() {
                Some(Said::Ended(outcome)) => {
                    let ran = heard.over(&outcome, self.config.max_bytes);
                    run.over(outcome);
                    return ran;
                }
                Some(_) => {
                    run.broke();
                    return heard.broken();
                }
                None => {}
            }
            if heard.text.len() > self.config.max_bytes {
                return heard.too_long(self.config.max_bytes);
            }
        }
    }

    /// Why there is no answer, for the model to say something about.
    fn refused(&self, no: &No) -> Ran {
        let busy = |reason: &Reason| match reason.wait {
            Some(wait) => format!("the expert is busy; it may be asked again in {} s", wait.as_secs() + 1),
            None => "the expert is busy, and the question is larger than what it may use".to_owned(),
        };
        let (outcome, what) = match no {
            No::Model(_) if self.texts.config.expert.is_none() => {
                ("forbidden", "there is no expert to ask: none is configured".to_owned())
            }
            No::Model(_) | No::Scope(_) => ("forbidden", "this call may not ask the expert".to_owned()),
            No::Full(_) => ("limited", "the expert is busy".to_owned()),
            No::Share(reason) | No::Quota(reason) => ("limited", busy(reason)),
            No::Spent(_) => ("limited", "nothing is left of the budget for asking the expert".to_owned()),
            No::Told(..) | No::Previous(_) => ("refused", "the expert did not accept the question".to_owned()),
            No::Service(_) | No::Gone => ("unreachable", "the expert could not be reached".to_owned()),
        };
        Ran::failed(outcome, &what)
    }
}

impl Question {
    /// As the expert reads it.
    fn written(&self, dialogue: &str) -> String {
        let part = |head: &str, text: &str| match text.trim() {
            "" => String::new(),
            text => format!("{head}\n{text}\n\n"),
        };
        let before = part("The conversation so far:", dialogue);
        let context = part("What else there is to know:", self.context.as_deref().unwrap_or_default());
        format!("{before}{context}The question:\n{}", self.question.trim())
    }
}

/// What has come of an answer.
#[derive(Debug, Default)]
struct Heard {
    /// What is said to the caller.
    text: String,
    /// What is said instead.
    refusal: String,
    /// The part of the answer that the text ends with.
    part: Option<(u64, u64)>,
    id: Option<String>,
    ended: Option<Said>,
}

/// More of an answer.
#[derive(Deserialize)]
struct Delta {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    delta: String,
    #[serde(default)]
    output_index: u64,
    #[serde(default)]
    content_index: u64,
}

impl Heard {
    fn event(&mut self, event: &Event<'_>) {
        if self.ended.is_some() {
            return;
        }
        match said(Kind::Response, event) {
            Said::Began(id) => self.id = Some(id),
            said @ (Said::Ended(_) | Said::Failed) => self.ended = Some(said),
            Said::Other => self.delta(event),
        }
    }

    fn delta(&mut self, event: &Event<'_>) {
        let matters = |name: &str| ["response.output_text.delta", "response.refusal.delta"].contains(&name);
        if !event.name.is_empty() && !matters(event.name) {
            return;
        }
        let Ok(Delta { kind, delta, output_index, content_index }) = serde_json::from_slice(event.data) else { return };
        match if event.name.is_empty() { kind.as_str() } else { event.name } {
            "response.output_text.delta" => {
                let part = (output_index, content_index);
                if self.part.replace(part).is_some_and(|before| before != part) {
                    self.text.push('\n');
                }
                self.text.push_str(&delta);
            }
            "response.refusal.delta" => self.refusal.push_str(&delta),
            _ => {}
        }
    }

    /// It is over.
    fn over(&self, outcome: &Outcome, max_bytes: usize) -> Ran {
        match outcome.status.as_str() {
            "completed" if self.text.len() > max_bytes => self.too_long(max_bytes),
            "completed" if !self.text.trim().is_empty() => answer("ok", self.text.trim().to_owned()),
            "completed" if !self.refusal.is_empty() => Ran::failed("refused", "the expert declines to answer that"),
            "completed" => Ran::failed("garbled", "the expert said nothing"),
            _ => self.broken(),
        }
    }

    /// The time is up.
    fn late(&self) -> Ran {
        self.so_far(usize::MAX, STILL_SPEAKING).unwrap_or_else(|| Ran::late("the expert"))
    }

    fn too_long(&self, max_bytes: usize) -> Ran {
        let too_large = || Ran::failed("too_large", "the expert's answer was too long");
        self.so_far(max_bytes, TOO_LONG).unwrap_or_else(too_large)
    }

    fn broken(&self) -> Ran {
        let nothing = || Ran::failed("unreachable", "the expert's answer broke off");
        self.so_far(usize::MAX, BROKE_OFF).unwrap_or_else(nothing)
    }

    /// What there is, in whole words, and what is missing of it; `None`: nothing.
    fn so_far(&self, max_bytes: usize, mark: &str) -> Option<Ran> {
        let words = whole_words(&self.text, max_bytes);
        (!words.is_empty()).then(|| answer("partial", format!("{words} {mark}")))
    }
}

fn answer(outcome: &'static str, text: String) -> Ran {
    Ran { outcome, output: json!({"answer": text}).to_string() }
}

/// The beginning of a text that goes on, of so many bytes at most: up to the end of a word.
fn whole_words(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let start = text.get(..end).unwrap_or_default();
    let is_whole = start.ends_with(|c: char| c.is_whitespace() || ".!?;:,。！？".contains(c));
    match start.rsplit_once(char::is_whitespace) {
        Some((words, _)) if !is_whole => words.trim(),
        _ => start.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(stream: &str) -> Heard {
        let (mut events, mut heard) = (Events::default(), Heard::default());
        events.feed(stream.as_bytes(), |event| heard.event(&event));
        heard
    }

    fn delta(text: &str, part: u64) -> String {
        let data =
            json!({"type": "response.output_text.delta", "delta": text, "output_index": part, "content_index": 0});
        format!("event: response.output_text.delta\ndata: {data}\n\n")
    }

    fn end(status: &str) -> String {
        let data = json!({"type": format!("response.{status}"), "response": {"id": "resp_1", "status": status}});
        format!("data: {data}\n\n")
    }

    #[test]
    fn every_end_has_a_result_with_what_there_is() {
        let two = || delta("It is done. Then ", 0) + &delta("wait a wh", 0);
        let refusal = "data: {\"type\":\"response.refusal.delta\",\"delta\":\"No.\"}\n\n";
        let error = "event: error\ndata: {\"type\":\"error\",\"code\":\"x\"}\n\n";
        let over = |stream: String, max_bytes: usize| {
            let heard = heard(&stream);
            match heard.ended.clone() {
                Some(Said::Ended(outcome)) => heard.over(&outcome, max_bytes),
                Some(_) => heard.broken(),
                None => heard.late(),
            }
        };
        for (stream, outcome, output) in [
            (two() + &end("completed"), "ok", r#"{"answer":"It is done. Then wait a wh"}"#),
            (delta("One.", 0) + &delta("Two.", 1) + &end("completed"), "ok", r#"{"answer":"One.\nTwo."}"#),
            (two() + &end("completed") + &delta("more", 0), "ok", r#"{"answer":"It is done. Then wait a wh"}"#),
            (
                two() + &end("incomplete"),
                "partial",
                r#"{"answer":"It is done. Then wait a (the answer breaks off here)"}"#,
            ),
            (two() + &end("failed"), "partial", r#"{"answer":"It is done. Then wait a (the answer breaks off here)"}"#),
            (two() + error, "partial", r#"{"answer":"It is done. Then wait a (the answer breaks off here)"}"#),
            (two(), "partial", r#"{"answer":"It is done. Then wait a (the expert was still speaking)"}"#),
            (end("completed"), "garbled", r#"{"error":"the expert said nothing"}"#),
            (refusal.to_owned() + &end("completed"), "refused", r#"{"error":"the expert declines to answer that"}"#),
            (end("failed"), "unreachable", r#"{"error":"the expert's answer broke off"}"#),
            (String::new(), "timeout", r#"{"error":"the expert gave no answer in time"}"#),
        ] {
            assert_eq!(over(stream.clone(), 100), Ran { outcome, output: output.to_owned() }, "{stream}");
        }
        let cut = over(two() + &end("completed"), 14);
        assert_eq!(cut.output, r#"{"answer":"It is done. (the rest was too long)"}"#);
    }

    #[test]
    fn what_goes_on_is_cut_behind_a_word() {
        for (text, max_bytes, want) in [
            ("one two thr", 100, "one two"),
            ("one two. ", 100, "one two."),
            ("one two.", 100, "one two."),
            ("one two three", 9, "one two"),
            ("one", 100, "one"),
            ("äöü äöü", 4, "äö"),
            ("", 100, ""),
        ] {
            assert_eq!(whole_words(text, max_bytes), want, "{text}");
        }
    }

    #[test]
    fn a_question_is_written_with_what_was_said_before() {
        let read = |arguments: &str| serde_json::from_str::<Question>(arguments).unwrap();
        let plain = read(r#"{"question":" Why? "}"#);
        assert_eq!(plain.written(""), "The question:\nWhy?");
        let full = read(r#"{"question":"Why?","context":"Order 7.","more":1}"#);
        let want =
            "The conversation so far:\nCaller: hi\n\nWhat else there is to know:\nOrder 7.\n\nThe question:\nWhy?";
        assert_eq!(full.written("Caller: hi\n"), want);
    }
}
