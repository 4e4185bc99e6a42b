//! The lines of a file of requests, checked one after the other as they come, and written as the service shall read them.
use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
};

use serde_json::{Map, Value};

use super::{
    super::{
        ask::{Asked, Wrong, addressed, keeps_to_itself, response_of},
        run::{No, Texts},
    },
    ENDPOINT,
    label::Label,
};
use crate::{
    admit::{Principal, router::Route},
    config::USUAL_UPSTREAM,
    upstream::text::Content,
};

/// Most requests of a file, and longest name of one (the service's limits, OpenAI's Batch guide, read 2026-11-28).
const MOST: u64 = 50_000;
const LONGEST_ID: usize = 512;
/// Why an end user cannot be named. Their answers come back without their names, which stay here.
pub(super) const UNNAMED: &str = "`user`, `safety_identifier` and `OpenAI-Safety-Identifier` are not offered in batches where each end user has \
                                  a budget: what they use there could not be told.";

/// What was read of a file so far.
#[derive(Debug)]
pub struct Sheet<'a> {
    texts: &'a Texts,
    who: &'a Principal,
    /// What it comes to has a limit, and what each end user may use.
    limited: bool,
    users: bool,
    number: u64,
    /// The first empty line behind the last one that is not.
    empty: Option<u64>,
    /// The model, by the caller's own name for it, and the one that the service shall use.
    model: Option<(String, String)>,
    ids: HashSet<u64>,
    hash: RandomState,
    requests: u64,
    input: u64,
    output: u64,
}

impl<'a> Sheet<'a> {
    /// Of a file that has not come yet.
    pub fn new(texts: &'a Texts, who: &'a Principal) -> Self {
        let (ids, hash) = (HashSet::new(), RandomState::new());
        let (limited, users) = (texts.budgets.limits_batches(who), texts.budgets.limits_users(who));
        let (number, empty, model, requests, input, output) = (0, None, None, 0, 0, 0);
        Self { texts, who, limited, users, number, empty, model, ids, hash, requests, input, output }
    }

    /// The next line, as the service shall read it; none: an empty one, as there may be at the end. `name_of`: the name that the service shall know an end user by.
    ///
    /// # Errors
    /// What is wrong with it; its number is told.
    pub fn line(
        &mut self,
        line: &[u8],
        name_of: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<Option<Vec<u8>>, Wrong> {
        self.number += 1;
        let number = self.number;
        if line.trim_ascii().is_empty() {
            self.empty.get_or_insert(number);
            return Ok(None);
        }
        // Left out, it would shift the numbers by which the service names lines.
        if let Some(empty) = self.empty {
            let message = format!("Line {empty}: is empty; allowed: requests, and empty lines at the end.");
            return Err(wrong("invalid_json_line", message));
        }
        let line = self.checked(line, name_of);
        line.map(Some).map_err(|wrong| Wrong { message: format!("Line {number}: {}", wrong.message), ..wrong })
    }

    fn checked(
        &mut self,
        line: &[u8],
        name_of: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<Vec<u8>, Wrong> {
        let mut line: Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| wrong("invalid_json_line", format!("no JSON object: {error}.")))?;
        self.identify(&line)?;
        let body = match line.get_mut("body").map(Value::take) {
            Some(Value::Object(body)) => body,
            _ => return Err(wrong("invalid_value", "`body` must be an object.".to_owned())),
        };
        let asked = response_of(body, self.texts.config.output_tokens)?;
        refuse_what_is_not_offered(&asked)?;
        if self.who.tenant().is_some() {
            keeps_to_itself(&asked)?;
        }
        if self.users && (asked.user.is_some() || self.who.user().is_some()) {
            return Err(wrong("unsupported_parameter", UNNAMED.to_owned()));
        }
        let model = self.model_of(&asked)?;
        let user = match &asked.user {
            Some(user) => name_of(user).map_err(|why| wrong("invalid_value", why))?,
            None => self.who.user().and(self.who.safety_id()).map(str::to_owned),
        };
        self.requests += 1;
        if self.requests > MOST {
            return Err(wrong("too_many_tasks", format!("a file may have at most {MOST} requests.")));
        }
        self.input = self.input.saturating_add(asked.input_tokens);
        self.output = self.output.saturating_add(asked.output_tokens);
        if let Content::Json(mut body) = addressed(&asked.content, &model, user.as_deref()) {
            // What it may come to at most is what its owner's budgets are asked for: it must not come to more.
            if self.limited && body.get("max_output_tokens").is_none_or(Value::is_null) {
                body.insert("max_output_tokens".to_owned(), asked.output_tokens.into());
            }
            line.insert("body".to_owned(), body.into());
        }
        let mut line = Value::from(line).to_string().into_bytes();
        line.push(b'\n');
        Ok(line)
    }

    fn identify(&mut self, line: &Map<String, Value>) -> Result<(), Wrong> {
        let text = |field: &str| line.get(field).and_then(Value::as_str).unwrap_or_default();
        for (field, wanted, code) in [("method", "POST", "invalid_method"), ("url", ENDPOINT, "mismatched_url")] {
            if text(field) != wanted {
                let found: String = line.get(field).map_or("nothing".to_owned(), |found| shown(&found.to_string()));
                return Err(wrong(code, format!("`{field}`: found {found}; allowed: \"{wanted}\".")));
            }
        }
        let id = text("custom_id");
        if !(1..=LONGEST_ID).contains(&id.len()) {
            let message = format!("`custom_id` must be a string of 1 to {LONGEST_ID} bytes.");
            return Err(wrong("invalid_value", message));
        }
        if !self.ids.insert(self.hash.hash_one(id)) {
            let message = format!("`custom_id` \"{}\" is that of an earlier line already.", shown(id));
            return Err(wrong("duplicate_custom_id", message));
        }
        Ok(())
    }

    /// The model that the service shall use: one for a whole file, at the account that the tenant's batches run on.
    fn model_of(&mut self, asked: &Asked) -> Result<String, Wrong> {
        if let Some((own, model)) = &self.model
            && *own == asked.model
            && asked.model != super::super::tier::AUTO
        {
            return Ok(model.clone());
        }
        let (texts, who) = (self.texts, self.who);
        // Nothing is short for what has a day.
        let chosen = texts.chosen(who, asked, false, |_| false).map_err(|no| match no {
            No::Scope(scope) => {
                wrong("forbidden", format!("the model `{}` needs the scope `{}`.", shown(&asked.model), scope.name()))
            }
            _ => wrong(
                "model_not_found",
                format!("the model `{}` does not exist here, or is not for you.", shown(&asked.model)),
            ),
        })?;
        let account = |name: Option<&str>| name.unwrap_or(USUAL_UPSTREAM).to_owned();
        let named = chosen.tier.is_some_and(|tier| who.may_use(tier.name())) || who.may_use(&chosen.name);
        let here = |route: &Route| {
            account(route.upstream.as_deref()) == account(who.upstream()) && (named || who.may_use(&route.model))
        };
        let route = texts.reach(who, &chosen.name).into_iter().find(here).ok_or_else(|| {
            let message = format!("`{}` has no model at the account on which your batches run.", shown(&chosen.name));
            wrong("model_not_found", message)
        })?;
        match &self.model {
            Some((own, model)) if *model != route.model => {
                let message = format!(
                    "the model `{}` (`{}`) is another one than that of the lines before (`{}`, `{}`); allowed: one for a file.",
                    shown(&asked.model),
                    route.model,
                    shown(own),
                    model
                );
                Err(wrong("mixed_models", message))
            }
            _ => {
                self.model = Some((asked.model.clone(), route.model.clone()));
                Ok(route.model)
            }
        }
    }

    /// All lines have come: what the file's name shall say.
    ///
    /// # Errors
    /// There was none.
    pub fn label(self, name: &str) -> Result<Label, Wrong> {
        let Self { who, model, requests, input, output, .. } = self;
        let (_, model) = model.ok_or_else(|| wrong("empty_file", "The file has no requests.".to_owned()))?;
        Ok(Label { tenant: who.tenant_id().to_owned(), model, requests, input, output, name: name.to_owned() })
    }
}

fn refuse_what_is_not_offered(asked: &Asked) -> Result<(), Wrong> {
    if asked.stream {
        return Err(wrong("unsupported_parameter", "`stream`: a batch cannot stream.".to_owned()));
    }
    if asked.previous.is_some() {
        let message = "`previous_response_id` is not offered in batches.".to_owned();
        return Err(wrong("unsupported_parameter", message));
    }
    Ok(())
}

fn wrong(code: &'static str, message: String) -> Wrong {
    Wrong { code, message, param: Some("file") }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
