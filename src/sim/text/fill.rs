//! JSON that fits a schema, made of the words of what was asked. Pure: the same words and schema give the same JSON.
//!
//! `pattern` is not looked at. What a schema cannot have at all (an empty `enum`, a minimum above its maximum) gives something
//! all the same.
use std::cell::Cell;

use serde_json::{Map, Number, Value, json};

use super::hash;

/// Past so many steps lists are empty and choices the simplest: schemas may hold themselves.
const DEEPEST: usize = 8;
/// Usual most entries of a list.
const ENTRIES: u64 = 3;
/// Most values of one JSON.
const MAX_VALUES: u32 = 50_000;

/// A value that fits `schema`.
pub(super) fn fill(schema: &Value, text: &str) -> Value {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || "\"\\{}[]<>".contains(c))
        .filter(|word| !word.is_empty())
        .take(20_000)
        .collect();
    Filler { root: schema, words, seed: hash(text), left: Cell::new(MAX_VALUES) }.value(schema, "", 0)
}

struct Filler<'s> {
    root: &'s Value,
    words: Vec<&'s str>,
    seed: u64,
    /// Values that may still be made: a schema that holds itself several times would never end.
    left: Cell<u32>,
}

impl<'s> Filler<'s> {
    /// A number for a place in the JSON.
    fn number(&self, path: &str, salt: &str) -> u64 {
        hash((self.seed, path, salt)) >> 8
    }

    fn value(&self, schema: &'s Value, path: &str, depth: usize) -> Value {
        let Some(left) = self.left.get().checked_sub(1) else { return Value::Null };
        self.left.set(left);
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            // A circle of nothing but references fits nothing.
            let pointer = target.trim_start_matches('#');
            let found = if depth < DEEPEST * 4 { self.root.pointer(pointer) } else { None };
            return found.map_or(Value::Null, |found| self.value(found, path, depth + 1));
        }
        if let Some(only) = schema.get("const") {
            return only.clone();
        }
        if let Some(Value::Array(choices)) = schema.get("enum") {
            let at = self.number(path, "enum") % (choices.len().max(1) as u64);
            return choices.get(usize::try_from(at).unwrap_or(0)).cloned().unwrap_or_default();
        }
        if let Some(choices) = schema.get("anyOf").or(schema.get("oneOf")).and_then(Value::as_array) {
            let chosen = self.choose(choices, path, depth, |choice| choice.get("type") == Some(&json!("null")));
            return chosen.map_or(Value::Null, |chosen| self.value(chosen, path, depth + 1));
        }
        let kind = match schema.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            Some(Value::Array(kinds)) => {
                self.choose(kinds, path, depth, |kind| kind == "null").and_then(Value::as_str).unwrap_or("null")
            }
            _ if schema.get("properties").is_some() => "object",
            _ if schema.get("items").is_some() => "array",
            _ => "string",
        };
        match kind {
            "object" => self.object(schema, path, depth),
            "array" => self.array(schema, path, depth),
            "integer" => self.integer(schema, path),
            "number" => self.decimal(schema, path),
            "boolean" => Value::Bool(self.number(path, "flag").is_multiple_of(2)),
            "null" => Value::Null,
            _ => Value::String(self.string(schema, path)),
        }
    }

    /// One of several: seldom nothing, and nothing where it is deep.
    fn choose<'c>(
        &self,
        choices: &'c [Value],
        path: &str,
        depth: usize,
        none: impl Fn(&Value) -> bool,
    ) -> Option<&'c Value> {
        let number = self.number(path, "choice");
        let nothing = choices.iter().find(|choice| none(choice));
        if let Some(nothing) = nothing.filter(|_| depth >= DEEPEST || number.is_multiple_of(8)) {
            return Some(nothing);
        }
        let rest: Vec<&Value> = choices.iter().filter(|choice| !none(choice)).collect();
        let at = if depth >= DEEPEST { 0 } else { number / 8 % (rest.len().max(1) as u64) };
        rest.get(usize::try_from(at).unwrap_or(0)).copied().or(nothing)
    }

    fn object(&self, schema: &'s Value, path: &str, depth: usize) -> Value {
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let mut object = Map::new();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if depth < DEEPEST || required.contains(&name.as_str()) {
                object.insert(name.clone(), self.value(property, &format!("{path}/{name}"), depth + 1));
            }
        }
        Value::Object(object)
    }

    fn array(&self, schema: &'s Value, path: &str, depth: usize) -> Value {
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
        let least = bound("minItems").unwrap_or(0).min(1_000);
        let most = bound("maxItems").unwrap_or(least.max(ENTRIES)).clamp(least, least + ENTRIES);
        let count = match depth >= DEEPEST {
            true => least,
            false => (least.max(1)).min(most) + self.number(path, "count") % (most + 1 - least.max(1).min(most)),
        };
        let Some(items) = schema.get("items") else { return json!([]) };
        (0..count).map(|n| self.value(items, &format!("{path}/{n}"), depth + 1)).collect()
    }

    #[expect(clippy::cast_possible_truncation, reason = "bounds beyond 2^53 are cut to it")]
    fn integer(&self, schema: &Value, path: &str) -> Value {
        let (low, high) = bounds(schema, 1.0);
        let (low, high) = (low.ceil() as i64, high.floor() as i64);
        let step = schema.get("multipleOf").and_then(Value::as_i64).unwrap_or(1).max(1);
        let first = low.div_euclid(step).saturating_mul(step);
        let first = if first < low { first.saturating_add(step) } else { first };
        let steps = (high.saturating_sub(first) / step).max(0) as u64;
        let at = self.number(path, "number") % steps.saturating_add(1).min(1_000);
        json!(first.saturating_add(i64::try_from(at).unwrap_or(0).saturating_mul(step)))
    }

    fn decimal(&self, schema: &Value, path: &str) -> Value {
        let (low, high) = bounds(schema, 0.0);
        let share = (self.number(path, "number") % 1_001) as f64 / 1_000.0;
        let value = match schema.get("multipleOf").and_then(Value::as_f64).filter(|step| *step > 0.0) {
            Some(step) => ((low + (high - low) * share) / step).floor().max((low / step).ceil()) * step,
            None => low + (high - low) * share.clamp(0.001, 0.999),
        };
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }

    fn string(&self, schema: &Value, path: &str) -> String {
        let number = self.number(path, "string");
        let (day, month) = (number % 28 + 1, number / 28 % 12 + 1);
        let text = match schema.get("format").and_then(Value::as_str) {
            Some("date") => return format!("2026-{month:02}-{day:02}"),
            Some("date-time") => return format!("2026-{month:02}-{day:02}T12:00:00Z"),
            Some("time") => return format!("{:02}:{:02}:00Z", number % 24, number / 24 % 60),
            Some("duration") => return format!("PT{}M", number % 59 + 1),
            Some("email") => return format!("caller{}@example.com", number % 1_000),
            Some("hostname") => return "example.com".to_owned(),
            Some("uri" | "url") => return format!("https://example.com/{}", number % 1_000),
            Some("ipv4") => return format!("192.0.2.{}", number % 255),
            Some("ipv6") => return format!("2001:db8::{:x}", number % 0xFFFF),
            Some("uuid") => {
                return format!(
                    "{:08x}-0000-4000-8000-{:012x}",
                    number & 0xFFFF_FFFF,
                    (number >> 8) & 0xFFFF_FFFF_FFFF
                );
            }
            _ => self.phrase(number),
        };
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64).and_then(|most| usize::try_from(most).ok());
        let (least, most) = (bound("minLength").unwrap_or(0).min(100_000), bound("maxLength").unwrap_or(usize::MAX));
        let mut text: String = text.chars().take(most).collect();
        let missing = least.saturating_sub(text.chars().count());
        text.extend(std::iter::repeat_n('x', missing));
        text
    }

    /// One to four words in a row of what was asked.
    fn phrase(&self, number: u64) -> String {
        let from = number % (self.words.len().max(1) as u64);
        let words = self.words.iter().skip(usize::try_from(from).unwrap_or(0));
        let count = usize::try_from(number / 7 % 4 + 1).unwrap_or(1);
        let phrase = words.take(count).copied().collect::<Vec<_>>().join(" ");
        if phrase.is_empty() { "nothing".to_owned() } else { phrase }
    }
}

/// The least and the most that a number may be; `gap` keeps whole numbers off an excluded bound.
fn bounds(schema: &Value, gap: f64) -> (f64, f64) {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64).map(|bound| bound.clamp(-9e15, 9e15));
    let low = bound("minimum").or(bound("exclusiveMinimum").map(|low| low + gap));
    let high = bound("maximum").or(bound("exclusiveMaximum").map(|high| high - gap));
    match (low, high) {
        (Some(low), high) => (low, high.unwrap_or(low + 100.0)),
        (None, Some(high)) => (high - 100.0, high),
        (None, None) => (0.0, 100.0),
    }
}

/// JSON that does not fit: a property is missing and another is of no type that was asked for.
pub(super) fn misfit(mut good: Value) -> Value {
    if let Value::Object(object) = &mut good {
        let first = object.keys().next().cloned();
        if let Some(first) = first {
            object.shift_remove(&first);
        }
        object.insert("not_asked_for".to_owned(), json!({"is": ["nothing", 0]}));
        return good;
    }
    json!({"not_asked_for": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "the parcel for order seven arrived broken on monday and the caller wants a refund";

    /// Fits `value` the parts of JSON Schema that `fill` knows?
    fn fits(schema: &Value, root: &Value, value: &Value) -> bool {
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            return fits(root.pointer(target.trim_start_matches('#')).unwrap(), root, value);
        }
        if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
            return choices.iter().any(|choice| fits(choice, root, value));
        }
        if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
            return choices.contains(value);
        }
        let kinds = match &schema["type"] {
            Value::Array(kinds) => kinds.clone(),
            kind => vec![kind.clone()],
        };
        let at_least = |name: &str, found: f64| schema.get(name).and_then(Value::as_f64).is_none_or(|b| found >= b);
        let at_most = |name: &str, found: f64| schema.get(name).and_then(Value::as_f64).is_none_or(|b| found <= b);
        kinds.iter().any(|kind| match (kind.as_str().unwrap(), value) {
            ("null", Value::Null) | ("boolean", Value::Bool(_)) => true,
            ("string", Value::String(text)) => {
                let length = text.chars().count() as f64;
                at_least("minLength", length) && at_most("maxLength", length)
            }
            ("integer" | "number", Value::Number(number)) => {
                let found = number.as_f64().unwrap();
                let step = schema.get("multipleOf").and_then(Value::as_f64);
                (kind == "number" || number.is_i64())
                    && at_least("minimum", found)
                    && at_most("maximum", found)
                    && step.is_none_or(|step| ((found / step) - (found / step).round()).abs() < 1e-9)
                    && schema.get("exclusiveMinimum").and_then(Value::as_f64).is_none_or(|b| found > b)
                    && schema.get("exclusiveMaximum").and_then(Value::as_f64).is_none_or(|b| found < b)
            }
            ("array", Value::Array(items)) => {
                at_least("minItems", items.len() as f64)
                    && at_most("maxItems", items.len() as f64)
                    && items.iter().all(|item| fits(&schema["items"], root, item))
            }
            ("object", Value::Object(object)) => {
                let properties = schema["properties"].as_object().unwrap();
                object.len() == properties.len()
                    && properties
                        .iter()
                        .all(|(name, property)| object.get(name).is_some_and(|v| fits(property, root, v)))
            }
            _ => false,
        })
    }

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "reason": {"type": "string"},
                "code": {"type": "string", "minLength": 30, "maxLength": 32},
                "tiny": {"type": "string", "maxLength": 1},
                "urgent": {"type": "boolean"},
                "mood": {"type": "string", "enum": ["calm", "angry", "sad"]},
                "stars": {"type": "integer", "minimum": 1, "maximum": 5},
                "even": {"type": "integer", "multipleOf": 4, "minimum": 3, "maximum": 9},
                "below": {"type": "integer", "exclusiveMaximum": -2},
                "share": {"type": "number", "minimum": 0, "maximum": 1},
                "above": {"type": "number", "exclusiveMinimum": 2.5, "exclusiveMaximum": 2.6},
                "half": {"type": "number", "multipleOf": 0.5, "minimum": 0.2, "maximum": 1.2},
                "day": {"type": ["string", "null"], "format": "date"},
                "who": {"anyOf": [{"$ref": "#/$defs/person"}, {"type": "null"}]},
                "topics": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 6},
                "tree": {"$ref": "#/$defs/tree"},
            },
            "$defs": {
                "person": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}},
                    "required": ["name", "age"],
                },
                "tree": {
                    "type": "object",
                    "properties": {"leaf": {"type": "string"}, "twigs": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                    "required": ["leaf", "twigs"],
                },
            },
        })
    }

    proptest::proptest! {
        #[test]
        fn what_is_filled_in_fits(text in ".{0,200}") {
            let (schema, filled) = (schema(), fill(&schema(), &text));
            for (name, property) in schema["properties"].as_object().unwrap() {
                let value = filled.get(name).cloned().unwrap_or_default();
                proptest::prop_assert!(fits(property, &schema, &value), "{}: {}", name, value);
            }
            proptest::prop_assert_eq!(&filled, &fill(&schema, &text));
        }
    }

    #[test]
    fn what_is_filled_in_comes_from_the_text() {
        let filled = fill(&schema(), TEXT);
        assert!(TEXT.contains(filled["reason"].as_str().unwrap()), "{filled}");
        assert_ne!(filled, fill(&schema(), "quite another call"));
        assert_eq!(fill(&json!({"$ref": "#"}), TEXT), Value::Null, "a circle ends");
        assert!(fill(&json!({"enum": []}), TEXT).is_null());
    }

    #[test]
    fn a_misfit_does_not_fit() {
        let good = fill(&schema(), TEXT);
        assert!(!fits(&schema(), &schema(), &misfit(good)));
    }
}
