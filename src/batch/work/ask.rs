//! One request, as often as it takes: with leave of the gate, under a key that the job keeps, until there is an answer or a reason why not.
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{Halt, Run, Stopped};
use crate::{
    admit::price::Usd,
    batch::{
        engine::{Answer, Failure, Upload},
        gate::{Pass, Poisoned},
        join,
        outage::{Sign, TRIES},
        store::{Begun, Item, Part, Usage},
        width::class,
    },
    text::{Kind, outcome::Outcome},
    wall::unix_now_ms,
};

/// Before the second try; doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// Of the tries before the service was out, so many are counted after it at most.
const COUNTED: u32 = TRIES / 2;
/// After the service was not there for long, it may be so much later.
const LATER: Duration = Duration::from_secs(600);

/// Whose request it is.
#[derive(Debug, Clone, Copy)]
pub(in crate::batch) struct Asker {
    /// The item's number.
    n: i64,
    /// It had failed in an earlier run.
    failed_before: bool,
}

impl Asker {
    /// This item.
    pub(in crate::batch) fn new(item: &Item) -> Self {
        Self { n: item.n, failed_before: item.failed_before }
    }
}

/// A piece that was written down, as the job keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) transcript: join::Transcript,
    pub(super) model: String,
}

impl Written {
    /// As the job has it.
    pub(super) fn read(kept: &str) -> Result<Self, Halt> {
        serde_json::from_str(kept).map_err(|error| Halt::bad("job_damaged", error.to_string()))
    }
}

impl Run {
    /// Waits before another try, at least so long; whether the run ends meanwhile.
    pub(super) async fn pause(&self, tries: u32, least: Duration) -> bool {
        let pause = PAUSE * 2_u32.pow(tries.min(6) - 1);
        let pause = pause.mul_f64(rand::rng().random_range(0.75..1.25)).max(least);
        tokio::select! {
            () = time::sleep(pause) => false,
            () = self.stop.cancelled() => true,
        }
    }

    /// Leave for a request, if the run does not end and the file is not to be given up.
    pub(super) async fn enter(&self, who: Asker) -> Result<Pass, Halt> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Halt::Later),
            pass = self.gate.enter(who.n) => pass.map_err(|Poisoned(why)| Halt::bad("no_answer", why)),
        }
    }

    /// One recording, or one piece of one: from the job if it was answered, and else from the service.
    pub(super) async fn piece(
        self: &Arc<Self>,
        who: Asker,
        part: Part,
        upload: Upload,
        pass: Pass,
    ) -> Result<Written, Halt> {
        let send = |key: String| {
            let upload = &upload;
            async move { self.engine.transcribe(upload, &self.wish, &key).await }
        };
        let read = |answer: &Answer| {
            let transcript = join::Transcript::read(&answer.body).map_err(|error| error.to_string())?;
            let model = answer.route.as_deref().and_then(|route| route.rsplit('/').next());
            let model = model.unwrap_or(&self.wish.model).to_owned();
            serde_json::to_string(&Written { transcript, model }).map_err(|error| error.to_string())
        };
        let bytes = std::fs::metadata(&upload.path).map_or(0, |there| there.len());
        let class = class(0, bytes);
        let answer = self.ask(who, part, pass, (Kind::Transcription, class), send, read).await?;
        Written::read(&answer)
    }

    /// Asks for a response about an item's text; its body, as it came.
    ///
    /// # Errors
    /// Why there is none.
    pub(in crate::batch) async fn respond(
        self: &Arc<Self>,
        who: Asker,
        part: Part,
        body: &Value,
    ) -> Result<String, Halt> {
        let pass = self.enter(who).await?;
        let send = |key: String| async move { self.relay.respond(body, &key).await };
        let read = |answer: &Answer| {
            serde_json::from_slice::<Value>(&answer.body)
                .map_err(|error| format!("the answer is not JSON: {error}"))?;
            String::from_utf8(answer.body.to_vec()).map_err(|error| error.to_string())
        };
        self.ask(who, part, pass, (Kind::Response, class(1, body.to_string().len() as u64)), send, read).await
    }

    /// One request, as often as it takes. `read`: what of its answer is kept.
    async fn ask<F: Future<Output = Result<Answer, Failure>>>(
        self: &Arc<Self>,
        who: Asker,
        part: Part,
        pass: Pass,
        (kind, class): (Kind, usize),
        send: impl Fn(String) -> F,
        read: impl Fn(&Answer) -> Result<String, String>,
    ) -> Result<String, Halt> {
        let (n, part, mut pass) = (who.n, Arc::new(part), Some(pass));
        let mut tries = Tries::default();
        loop {
            let asked = part.clone();
            let (key, again) = match self.on_disk(move |store| store.begin(n, &asked, unix_now_ms())).await? {
                Begun::Answered(answer) => return Ok(answer),
                Begun::Ask { key, again } => (key, again),
            };
            let own = match pass.take() {
                Some(pass) => pass,
                None => self.enter(who).await.map_err(|halt| tries.told(halt))?,
            };
            let began = Instant::now();
            match send(key).await {
                Ok(answer) => {
                    if !answer.repeated {
                        own.answered(began.elapsed(), answer.waited, class);
                    }
                    // What the relay has kept of somebody else's request was paid by them.
                    let usage = match answer.repeated && !again {
                        true => Usage::default(),
                        false => usage(kind, &answer),
                    };
                    let kept = read(&answer);
                    drop(own);
                    if let Some(kept) = self.keep(n, &part, kept, usage, &mut tries).await? {
                        return Ok(kept);
                    }
                }
                Err(failure) => self.failed(who, &part, own, failure, &mut tries).await?,
            }
        }
    }

    /// Takes down an answer, or that it made no sense.
    async fn keep(
        &self,
        n: i64,
        part: &Arc<Part>,
        kept: Result<String, String>,
        usage: Usage,
        tries: &mut Tries,
    ) -> Result<Option<String>, Halt> {
        let asked = part.clone();
        match kept {
            Ok(kept) => {
                let told = kept.clone();
                self.on_disk(move |store| store.answered(n, &asked, &told, &usage, unix_now_ms())).await?;
                Ok(Some(kept))
            }
            Err(problem) => {
                let told = problem.clone();
                let billed =
                    move |store: &super::Store| store.failed_try(n, &asked, &told, Some(&usage), unix_now_ms());
                self.on_disk(billed).await?;
                tries.counted += TRIES / 2;
                match tries.counted >= TRIES {
                    true => Err(Halt::bad("strange_answer", problem)),
                    false => Ok(None),
                }
            }
        }
    }

    /// What came instead of an answer: comes back when the request may be tried once more.
    async fn failed(
        &self,
        who: Asker,
        part: &Arc<Part>,
        pass: Pass,
        failure: Failure,
        tries: &mut Tries,
    ) -> Result<(), Halt> {
        let n = who.n;
        let (sign, message) = match failure {
            Failure::Item { code, message } => {
                self.sent_in_vain(n, part, &message).await?;
                return Err(Halt::Bad { code, message });
            }
            Failure::Stop { code, message, wait } => {
                let again_at = wait.map(|wait| unix_now_ms() + u64::try_from(wait.as_millis()).unwrap_or(0));
                self.stop(Stopped::Refused { code, message, again_at });
                return Err(Halt::Later);
            }
            Failure::Wait { wait, message } => {
                (Sign::Busy { wait: wait.mul_f64(rand::rng().random_range(1.0..1.1)) }, message)
            }
            Failure::Away { message } => {
                tries.away += 1;
                (Sign::Away { tries: tries.away }, message)
            }
            Failure::Again { message } => {
                self.sent_in_vain(n, part, &message).await?;
                tries.counted += 1;
                let answers = self.gate.answers();
                let before = who.failed_before || *tries.answers.get_or_insert(answers) < answers;
                (Sign::Broken { tries: tries.counted, before }, message)
            }
        };
        let verdict = pass.failed(sign, &message);
        self.retried.fetch_add(1, Ordering::Relaxed);
        if verdict.over {
            let again_at = unix_now_ms() + u64::try_from(LATER.as_millis()).unwrap_or(0);
            let (code, message) = ("service_unavailable".to_owned(), message.clone());
            self.stop(Stopped::Refused { code, message, again_at: Some(again_at) });
            return Err(Halt::Later);
        }
        tries.last = Some(message.clone());
        let tried = match sign {
            Sign::Busy { .. } => return Ok(()),
            _ if verdict.out => {
                (tries.counted, tries.answers) = (tries.counted.min(COUNTED), None);
                return Ok(());
            }
            Sign::Broken { tries, .. } if tries >= TRIES => return Err(Halt::bad("no_answer", message)),
            Sign::Broken { tries, .. } | Sign::Away { tries } => tries,
        };
        match self.pause(tried, Duration::ZERO).await {
            true => Err(Halt::Later),
            false => Ok(()),
        }
    }

    /// A request was sent, and there is no answer.
    async fn sent_in_vain(&self, n: i64, part: &Arc<Part>, message: &str) -> Result<(), Halt> {
        let (asked, told) = (part.clone(), message.to_owned());
        Ok(self.on_disk(move |store| store.failed_try(n, &asked, &told, None, unix_now_ms())).await?)
    }
}

/// How often a request was tried.
#[derive(Debug, Default)]
struct Tries {
    /// While the service was there: as many of them are its file's fault.
    counted: u32,
    /// While nobody was.
    away: u32,
    /// How many good answers there were when the first of them failed.
    answers: Option<u64>,
    /// What came of the last one.
    last: Option<String>,
}

impl Tries {
    /// Whoever is given up has failed for its own reason, and not for another's.
    fn told(&self, halt: Halt) -> Halt {
        match (halt, &self.last) {
            (Halt::Bad { code, .. }, Some(last)) => Halt::Bad { code, message: last.clone() },
            (halt, _) => halt,
        }
    }
}

/// What an answer says that it has used.
fn usage(kind: Kind, answer: &Answer) -> Usage {
    usage_of(kind, &answer.body, answer.cost)
}

/// The same of a body that cost so much.
pub(in crate::batch) fn usage_of(kind: Kind, body: &[u8], cost: Option<Usd>) -> Usage {
    let outcome = Outcome::read(kind, body);
    let tokens = outcome.as_ref().and_then(|outcome| outcome.usage).unwrap_or_default();
    let seconds = outcome.and_then(|outcome| outcome.seconds).unwrap_or_default();
    Usage {
        input_tokens: tokens.input_tokens,
        output_tokens: tokens.output_tokens,
        audio_ms: u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_millis())
            .unwrap_or(u64::MAX),
        cost: cost.unwrap_or_default(),
        unpriced: u64::from(cost.is_none()),
    }
}
