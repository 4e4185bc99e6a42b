//! Facts of one text, asked for in a run: what [`super::extract`] wants to be sent is sent, and what came is kept.
//!
//! A request that was answered in an earlier run is not sent again: its answer is in the job, and the extraction goes the same way through
//! the same answers.
use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::{Map, Value, json};

use super::{
    extract::{
        batchapi::file,
        driver::{self, Extraction, Send},
        request::{Room, Setup, Transcript},
        schema::Schema,
    },
    store::{Batched, Extracted, Item, Part, Pending, StoreError, Task},
    work::{Asker, Halt, Run},
};
use crate::wall::unix_now_ms;

/// The code of a recording in which nobody speaks: it is left out, as one that is too short is, and no fault of anybody.
pub(super) const NO_WORDS: &str = "no_words";
/// Tokens that an answer may have.
const OUTPUT: u64 = 4_096;
/// Tokens that are kept free, for what counts differently than it looks.
const MARGIN: u64 = 1_024;

/// What is to be taken from each text.
#[derive(Debug, Clone)]
pub struct Facts {
    setup: Arc<Setup>,
    params: BTreeMap<String, String>,
}

impl Facts {
    /// `what`: a schema's file, or the name of one that is there; `context`: tokens that the model can read and write at once.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        what: &str,
        instructions: Option<&str>,
        model: &str,
        make_strict: bool,
        context: u64,
    ) -> Result<Self, String> {
        let schema = Schema::open(what, make_strict).map_err(|error| error.to_string())?;
        let room = Room { context, output: OUTPUT, margin: MARGIN };
        let setup = Setup::new(model, instructions, schema, room).map_err(|error| error.to_string())?;
        let params = setup.params().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Self { setup: Arc::new(setup), params })
    }

    /// The schema, whose properties are the table's columns.
    pub fn schema(&self) -> Value {
        self.setup.schema().value().clone()
    }

    /// What the schema was made to be, where it was not.
    pub fn changes(&self) -> &[String] {
        self.setup.schema().changes()
    }

    /// What tells this from other extractions.
    pub fn params(&self) -> BTreeMap<String, String> {
        self.params.clone()
    }

    /// Takes them from a claimed item's text. `false`: its requests wait for a batch, and so does the item.
    pub(super) async fn of(&self, run: &Arc<Run>, item: &Item) -> Result<bool, Halt> {
        let (n, who) = (item.n, Asker::new(item));
        let Some(words) = run.on_disk(move |store| store.transcript(n)).await? else { return Err(Halt::Later) };
        if words.text.trim().is_empty() {
            return Err(Halt::bad(NO_WORDS, "there are no words in it that anything could be taken from"));
        }
        let mut facts = Map::new();
        facts.insert("file".to_owned(), item.id.clone().into());
        if let Some(language) = &words.language {
            facts.insert("language".to_owned(), json!(language));
        }
        let text = Transcript { id: item.id.clone(), text: words.text, facts };
        let extraction = Extraction::new(self.setup.clone(), text);
        let mut extraction = extraction.map_err(|error| Halt::bad("too_large", error.to_string()))?;
        let mut requests = FuturesUnordered::new();
        let mut pending = Vec::new();
        let mut later = false;
        loop {
            while let Some(send) = if later { None } else { extraction.poll() } {
                if run.has_batches() {
                    match known(run, n, &send).await? {
                        Batched::New => {
                            let follow = extraction.requests() > 0;
                            let (part, line, tokens) = (part(&send.key), file::line(&send), send.request.input);
                            pending.push(Pending { part, line, tokens, follow });
                            continue;
                        }
                        Batched::Answered(answer) => {
                            extraction.got(&send.key, &serde_json::from_str(&answer).unwrap_or_default());
                            continue;
                        }
                        Batched::Failed { code, message } => {
                            extraction.failed(&send.key, &code, &message);
                            continue;
                        }
                        Batched::Direct => {}
                    }
                }
                requests.push(async move {
                    let answer = run.respond(who, part(&send.key), &send.request.body).await;
                    (send.key, answer)
                });
            }
            let Some((key, answer)) = requests.next().await else { break };
            match answer {
                Ok(answer) => {
                    let answer = serde_json::from_str(&answer).unwrap_or_default();
                    extraction.got(&key, &answer);
                }
                Err(Halt::Bad { code, message }) => {
                    extraction.failed(&key, &code, &message);
                }
                // What was sent is paid for: its answers are taken down first.
                Err(Halt::Later) => later = true,
                Err(Halt::Job(error)) => return Err(error.into()),
            }
        }
        if later {
            return Err(Halt::Later);
        }
        if extraction.end().is_none() && !pending.is_empty() {
            run.on_disk(move |store| store.park(n, &pending, unix_now_ms())).await?;
            return Ok(false);
        }
        let model = extraction.model().unwrap_or_default().to_owned();
        let (extracted, ended) = match extraction.end() {
            Some(driver::End::Done(value)) => (Extracted { json: Some(value.clone()), error: None, model }, Ok(true)),
            Some(driver::End::Failed { code, message }) => {
                let (code, message) = (code.clone(), message.clone());
                (Extracted { json: None, error: Some(message.clone()), model }, Err(Halt::Bad { code, message }))
            }
            None => return Err(Halt::Later),
        };
        run.on_disk(move |store| store.put_extract(n, &extracted)).await?;
        ended
    }
}

/// What is known of a request where batches are made.
async fn known(run: &Arc<Run>, n: i64, send: &Send) -> Result<Batched, StoreError> {
    let part = part(&send.key);
    run.on_disk(move |store| store.batched(n, &part)).await
}

/// How the job knows a request again: by its key, which always is the same one's.
fn part(key: &str) -> Part {
    let mut first = [0; 4];
    first.iter_mut().zip(digest(&SHA256, key.as_bytes()).as_ref()).for_each(|(to, from)| *to = *from);
    Part { task: Task::Extract, number: u32::from_be_bytes(first), seal: key.to_owned() }
}
