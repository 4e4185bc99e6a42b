//! A provider's request, as far as it can be read before anybody has been asked whether it is genuine.
use axum::http::{HeaderMap, Method};
use serde_json::Value;

use super::proof::digest_of;

/// Query parameter of the webhook's URL that refers to a call which we began ourselves. Not every provider signs it, so that it
/// must be unguessable.
pub const DIAL_QUERY: &str = "dial";

/// Fields that are looked at; a form with more is cut off.
const MAX_FIELDS: usize = 500;

/// One request at a page of ours.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// How.
    pub method: &'a Method,
    /// Path and query as they were asked for, such as `/phone/twilio/voice?a=b`.
    pub target: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The whole body; its length was bounded by whoever read it.
    pub body: &'a [u8],
}

/// A genuine request that says nothing which could be used. Whoever sent it may know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unclear(pub String);

impl Unclear {
    pub(super) fn lacks(field: &str) -> Self {
        Self(format!("`{field}`: found nothing; allowed: what the provider calls the call"))
    }
}

/// Names and values, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    pub(super) fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().take(MAX_FIELDS).collect())
    }

    /// The first of this name that says something.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }
}

/// What a body is; signatures are checked over the same reading that is then used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    Nothing,
    Form,
    Json,
}

impl<'a> Asked<'a> {
    /// A header that is there exactly once, as text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut all = self.headers.get_all(name).iter();
        let first = all.next()?.to_str().ok()?;
        all.next().is_none().then_some(first.trim())
    }

    /// Tells this request from every other one that would be understood otherwise.
    pub fn digest(&self) -> [u8; 32] {
        let kind = self.header("content-type").unwrap_or_default();
        digest_of(&[self.method.as_str().as_bytes(), self.target.as_bytes(), kind.as_bytes(), self.body])
    }

    pub(super) fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    pub(super) fn query_text(&self) -> &'a str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    pub(super) fn query(&self) -> Fields {
        Fields::parse(self.query_text().as_bytes())
    }

    pub(super) fn body_kind(&self) -> BodyKind {
        let said = self.header("content-type").unwrap_or_default().to_ascii_lowercase();
        if self.body.is_empty() {
            BodyKind::Nothing
        } else if said.contains("json") {
            BodyKind::Json
        } else if said.contains("form-urlencoded") {
            BodyKind::Form
        } else if self.body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| b"{[".contains(b)) {
            BodyKind::Json
        } else {
            BodyKind::Form
        }
    }

    pub(super) fn form(&self) -> Fields {
        if self.body_kind() == BodyKind::Form { Fields::parse(self.body) } else { Fields::default() }
    }

    pub(super) fn json(&self) -> Result<Value, Unclear> {
        let value: Value = serde_json::from_slice(self.body)
            .map_err(|error| Unclear(format!("the body: found something that is not JSON ({error}); allowed: JSON")))?;
        if value.is_object() {
            Ok(value)
        } else {
            Err(Unclear("the body: found no object; allowed: a JSON object".into()))
        }
    }

    /// Everything that the provider says, flat: the body's form or the top of its JSON, else the query.
    pub(super) fn said(&self) -> Result<Fields, Unclear> {
        match self.body_kind() {
            BodyKind::Nothing => Ok(self.query()),
            BodyKind::Form => Ok(self.form()),
            BodyKind::Json => {
                let value = self.json()?;
                let fields = value.as_object().into_iter().flatten().take(MAX_FIELDS);
                Ok(Fields(fields.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()))
            }
        }
    }

    /// The reference of a call that we began.
    pub(super) fn dial(&self) -> Option<String> {
        self.query().get(DIAL_QUERY).map(str::to_owned)
    }
}

/// A scalar as text; providers write numbers and flags either way.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Whether this can stand for a call in a URL; what cannot is no call's id. No provider's ids need more.
pub fn is_call_id(id: &str) -> bool {
    (1..=256).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@~=".contains(&b))
        && !id.bytes().all(|b| b == b'.')
}

/// The call's id among these fields.
pub(super) fn call_id(fields: &Fields, name: &str) -> Result<String, Unclear> {
    let id = fields.get(name).ok_or_else(|| Unclear::lacks(name))?;
    if is_call_id(id) {
        return Ok(id.to_owned());
    }
    Err(Unclear(format!("`{name}`: found something that is no id of a call; allowed: letters, digits, `-_.:@~=`")))
}
