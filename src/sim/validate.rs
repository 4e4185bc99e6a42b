//! Reads client events strictly: every field is known, of the right type and in its range, or the event is refused with
//! the service's own code, parameter path and wording.
//!
//! Decides nothing; [`super::settings`] and [`super::commands`] say which fields there are.
use std::borrow::Cow;

use serde_json::{Map, Value};

/// Type of nearly every error.
pub(super) const INVALID_REQUEST: &str = "invalid_request_error";

/// Why something was refused; becomes an `error` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: Cow<'static, str>,
    pub(super) code: Option<Cow<'static, str>>,
    pub(super) message: String,
    pub(super) param: Option<String>,
}

impl Refusal {
    /// A refusal of the usual type.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { kind: INVALID_REQUEST.into(), code: Some(code.into()), message: message.into(), param: None }
    }

    /// With the path of the field that is wrong.
    pub(super) fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// A field that must be there.
    pub(super) fn missing(path: &str) -> Self {
        Self::new("missing_required_parameter", format!("Missing required parameter: '{path}'.")).at(path)
    }

    /// A field that nobody knows.
    pub(super) fn unknown(path: &str) -> Self {
        Self::new("unknown_parameter", format!("Unknown parameter: '{path}'.")).at(path)
    }

    /// A value that is not on the list.
    pub(super) fn choice(path: &str, found: &str, allowed: &[&str]) -> Self {
        let message = format!("Invalid value: '{}'. Supported values are: {}.", shorten(found), listed(allowed));
        Self::new("invalid_value", message).at(path)
    }

    /// A value of the wrong JSON type.
    pub(super) fn wrong_type(path: &str, expected: &str, found: &Value) -> Self {
        let message = format!("Invalid type for '{path}': expected {expected}, but got {} instead.", type_name(found));
        Self::new("invalid_type", message).at(path)
    }

    fn too_long(path: &str, what: &str, max: usize, found: usize) -> Self {
        let (code, noun) = match what {
            "string" => ("string_above_max_length", "length"),
            _ => ("array_above_max_length", "length"),
        };
        let message = format!(
            "Invalid '{path}': {what} too long. Expected {} {what} with maximum {noun} {max}, but got {} {what} with \
             {noun} {found} instead.",
            article(what),
            article(what),
        );
        Self::new(code, message).at(path)
    }
}

fn article(what: &str) -> &'static str {
    if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// Text from outside goes into messages in part only.
pub(super) fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()).into(),
        None => text.into(),
    }
}

fn listed(allowed: &[&str]) -> String {
    match allowed {
        [] => String::new(),
        [one] => format!("'{one}'"),
        [one, other] => format!("'{one}' and '{other}'"),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(|a| format!("'{a}'")).collect();
            format!("{}, and '{last}'", most.join(", "))
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// An object that is being read, with its path for error messages (empty at the top of an event).
#[derive(Debug, Clone)]
pub(super) struct Fields<'v> {
    path: String,
    map: &'v Map<String, Value>,
}

impl<'v> Fields<'v> {
    /// `value` must be an object that has no other fields than `allowed`.
    pub(super) fn of(value: &'v Value, path: impl Into<String>, allowed: &[&str]) -> Result<Self, Refusal> {
        let path = path.into();
        match value {
            Value::Object(map) => Self { path, map }.only(allowed),
            other => Err(Refusal::wrong_type(&path, "an object", other)),
        }
    }

    fn only(self, allowed: &[&str]) -> Result<Self, Refusal> {
        match self.map.keys().find(|key| !allowed.contains(&key.as_str())) {
            Some(key) => Err(Refusal::unknown(&self.join(&shorten(key)))),
            None => Ok(self),
        }
    }

    /// The path of one of its fields.
    pub(super) fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field if it is there, `null` included.
    pub(super) fn raw(&self, name: &str) -> Option<&'v Value> {
        self.map.get(name)
    }

    /// The field if it is there and not `null`.
    pub(super) fn get(&self, name: &str) -> Option<&'v Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is there and `null`.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// A field that must be there.
    pub(super) fn need(&self, name: &str) -> Result<&'v Value, Refusal> {
        self.get(name).ok_or_else(|| Refusal::missing(&self.join(name)))
    }

    /// An object with none but the `allowed` fields.
    pub(super) fn object(&self, name: &str, allowed: &[&str]) -> Result<Option<Fields<'v>>, Refusal> {
        self.get(name).map(|value| Fields::of(value, self.join(name), allowed)).transpose()
    }

    /// A string.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'v str>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Refusal::wrong_type(&self.join(name), "a string", other)),
        }
    }

    /// A string of at most `max` characters.
    pub(super) fn text_up_to(&self, name: &str, max: usize) -> Result<Option<&'v str>, Refusal> {
        let text = self.text(name)?;
        match text.map(|t| t.chars().count()) {
            Some(length) if length > max => Err(Refusal::too_long(&self.join(name), "string", max, length)),
            _ => Ok(text),
        }
    }

    /// A string that must be there.
    pub(super) fn need_text(&self, name: &str) -> Result<&'v str, Refusal> {
        self.text(name)?.ok_or_else(|| Refusal::missing(&self.join(name)))
    }

    /// One of `allowed`.
    pub(super) fn choice(&self, name: &str, allowed: &[&'static str]) -> Result<Option<&'static str>, Refusal> {
        let Some(found) = self.text(name)? else { return Ok(None) };
        let known = allowed.iter().find(|a| **a == found).copied();
        known.map(Some).ok_or_else(|| Refusal::choice(&self.join(name), found, allowed))
    }

    /// A boolean.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(Refusal::wrong_type(&self.join(name), "a boolean", other)),
        }
    }

    /// An integer from `min` to `max`.
    pub(super) fn integer(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let path = self.join(name);
        let below = |found: &dyn std::fmt::Display| {
            let message = format!(
                "Invalid '{path}': integer below minimum value. Expected a value >= {min}, but got {found} instead."
            );
            Err(Refusal::new("integer_below_min_value", message).at(&path))
        };
        match (value.as_u64(), value.as_i64()) {
            (Some(found), _) if found < min => below(&found),
            (Some(found), _) if found > max => {
                let message = format!(
                    "Invalid '{path}': integer above maximum value. Expected a value <= {max}, but got {found} instead."
                );
                Err(Refusal::new("integer_above_max_value", message).at(&path))
            }
            (Some(found), _) => Ok(Some(found)),
            (None, Some(found)) => below(&found),
            (None, None) => Err(Refusal::wrong_type(&path, "an integer", value)),
        }
    }

    /// A number from `min` to `max`.
    pub(super) fn number(&self, name: &str, min: f64, max: f64) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let path = self.join(name);
        let Some(found) = value.as_f64() else { return Err(Refusal::wrong_type(&path, "a decimal", value)) };
        let (code, word, sign, bound) = match found {
            _ if found < min => ("decimal_below_min_value", "below minimum", ">=", min),
            _ if found > max => ("decimal_above_max_value", "above maximum", "<=", max),
            _ => return Ok(Some(found)),
        };
        let message = format!(
            "Invalid '{path}': decimal {word} value. Expected a value {sign} {bound}, but got {found} instead."
        );
        Err(Refusal::new(code, message).at(path))
    }

    /// An array of at most `max` values.
    pub(super) fn array(&self, name: &str, max: usize) -> Result<Option<&'v [Value]>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() > max => {
                Err(Refusal::too_long(&self.join(name), "array", max, values.len()))
            }
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(Refusal::wrong_type(&self.join(name), "an array", other)),
        }
    }

    /// An array of strings.
    pub(super) fn texts(&self, name: &str, max: usize) -> Result<Option<Vec<&'v str>>, Refusal> {
        let Some(values) = self.array(name, max)? else { return Ok(None) };
        let path = self.join(name);
        let texts = values.iter().enumerate().map(|(at, value)| {
            value.as_str().ok_or_else(|| Refusal::wrong_type(&format!("{path}[{at}]"), "a string", value))
        });
        texts.collect::<Result<_, _>>().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_mistake_has_its_code_path_and_words() {
        let value = json!({
            "text": 5, "flag": "yes", "low": 15, "high": 99, "minus": -1, "part": 1.5, "list": {}, "long": "abcdef",
            "many": [1, 2, 3], "word": "blue", "words": ["a", 1], "gone": null,
        });
        let names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let f = Fields::of(&value, "session", &names).unwrap();
        let refusals = [
            (f.text("text").unwrap_err(), "invalid_type", "expected a string, but got an integer instead."),
            (f.flag("flag").unwrap_err(), "invalid_type", "expected a boolean, but got a string instead."),
            (f.integer("low", 24, 30).unwrap_err(), "integer_below_min_value", "value >= 24, but got 15 instead."),
            (f.integer("minus", 0, 30).unwrap_err(), "integer_below_min_value", "value >= 0, but got -1 instead."),
            (f.integer("high", 24, 30).unwrap_err(), "integer_above_max_value", "value <= 30, but got 99 instead."),
            (f.integer("part", 0, 30).unwrap_err(), "invalid_type", "expected an integer, but got a decimal instead."),
            (f.number("high", 0.25, 1.5).unwrap_err(), "decimal_above_max_value", "value <= 1.5, but got 99 instead."),
            (f.array("list", 3).unwrap_err(), "invalid_type", "expected an array, but got an object instead."),
            (f.array("many", 2).unwrap_err(), "array_above_max_length", "maximum length 2"),
            (f.text_up_to("long", 5).unwrap_err(), "string_above_max_length", "string too long."),
            (f.choice("word", &["red", "green"]).unwrap_err(), "invalid_value", "values are: 'red' and 'green'."),
            (f.texts("words", 5).unwrap_err(), "invalid_type", "'session.words[1]'"),
            (f.need("gone").unwrap_err(), "missing_required_parameter", "parameter: 'session.gone'."),
        ];
        for (refusal, code, words) in refusals {
            assert_eq!(refusal.code.as_deref(), Some(code), "{refusal:?}");
            assert!(refusal.message.contains(words), "{refusal:?} should say {words}");
            assert!(refusal.param.as_deref().is_some_and(|p| p.starts_with("session.")), "{refusal:?}");
        }
        let unknown = Fields::of(&value, "session", &["text"]).unwrap_err();
        assert_eq!(
            (unknown.code.as_deref(), unknown.param.as_deref()),
            (Some("unknown_parameter"), Some("session.flag"))
        );
    }

    #[test]
    fn absent_and_null_fields_are_nothing() {
        let value = json!({ "a": null });
        let f = Fields::of(&value, "", &["a"]).unwrap();
        assert!(f.is_null("a") && !f.is_null("b"));
        assert_eq!(f.text("a"), Ok(None));
        assert_eq!(f.integer("b", 0, 1), Ok(None));
        assert_eq!(f.join("a"), "a");
    }

    #[test]
    fn long_text_from_outside_is_shortened() {
        assert_eq!(shorten(&"x".repeat(500)).len(), 103);
        assert_eq!(shorten("short"), "short");
    }
}
