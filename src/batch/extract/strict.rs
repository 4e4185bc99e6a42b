//! What the strict mode of structured outputs allows of JSON Schema. It is a part of it: every object names all of its fields, every field
//! is there (one that may be missing is null), and few keywords are known. What is outside of it the service refuses with the first thing
//! that it sees; here all of it is named at once, and before anything is paid for.
//!
//! Source: OpenAI's guide to structured outputs, "Supported schemas" (read 2026-11-28).
use std::fmt;

use serde_json::{Map, Value};

/// Levels of objects in objects, the outermost included.
pub const MOST_LEVELS: usize = 10;
/// Fields of all objects together.
pub const MOST_PROPERTIES: usize = 5_000;
/// Values of all enums together.
pub const MOST_ENUM_VALUES: usize = 1_000;
/// Letters of all names of fields and definitions, of enums and constants together.
pub const MOST_LETTERS: usize = 120_000;
/// An enum of strings with more values than this ...
const LONG_ENUM: usize = 250;
/// ... may have this many letters.
const LONG_ENUM_LETTERS: usize = 15_000;

/// Keywords that strict mode knows.
pub(super) const KEYWORDS: [&str; 22] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "anyOf",
    "$ref",
    "$defs",
    "definitions",
    "title",
    "description",
    "pattern",
    "format",
    "multipleOf",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minItems",
    "maxItems",
];
const FORMATS: [&str; 9] = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"];

/// One thing in a schema that strict mode does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where: a JSON pointer into the schema; empty is the whole.
    pub pointer: String,
    /// What stands there.
    pub found: String,
    /// What may.
    pub allowed: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.pointer.is_empty() { "/" } else { &self.pointer };
        write!(f, "`{at}`: found {}; allowed: {}", self.found, self.allowed)
    }
}

/// All that strict mode does not take, in the schema's order. Expects a valid JSON Schema.
pub fn violations(schema: &Value) -> Vec<Violation> {
    let mut check = Check::default();
    if let Some(root) = schema.as_object() {
        if root.get("type").is_none_or(|kind| kind != "object") {
            let found = root.get("type").map_or_else(|| "no type".to_owned(), |kind| format!("type {}", short(kind)));
            check.add("/type", found, "\"object\", for the whole is always an object");
        }
        if root.contains_key("anyOf") {
            check.add("/anyOf", "anyOf for the whole", "anyOf further inside; the whole is one object");
        }
    }
    check.node("", schema, 1);
    check.totals();
    check.found
}

/// A name as a step of a JSON pointer (RFC 6901).
pub(super) fn step(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The types that a schema names.
pub(super) fn types(schema: &Map<String, Value>) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

#[derive(Default)]
struct Check {
    found: Vec<Violation>,
    properties: usize,
    enum_values: usize,
    letters: usize,
}

impl Check {
    fn add(&mut self, pointer: &str, found: impl Into<String>, allowed: impl Into<String>) {
        self.found.push(Violation { pointer: pointer.to_owned(), found: found.into(), allowed: allowed.into() });
    }

    fn node(&mut self, pointer: &str, schema: &Value, level: usize) {
        let Some(node) = schema.as_object() else {
            return self.add(pointer, short(schema), "a schema that is an object");
        };
        let unknown: Vec<&String> = node.keys().filter(|name| !KEYWORDS.contains(&name.as_str())).collect();
        for name in unknown {
            self.add(&step(pointer, name), format!("keyword {name}"), "the keywords of strict mode");
        }
        if node.contains_key("$ref") {
            self.reference(pointer, node);
        } else if !node.contains_key("anyOf") && !node.contains_key("type") && !pointer.is_empty() {
            self.add(pointer, "no type", "a type, an anyOf or a $ref");
        }
        let types = types(node);
        if types.contains(&"object") {
            self.object(pointer, node, level);
        }
        if types.contains(&"array") && !node.contains_key("items") {
            self.add(pointer, "a list without items", "items with the schema of its elements");
        }
        if let Some(format) = node.get("format").and_then(Value::as_str).filter(|format| !FORMATS.contains(format)) {
            self.add(&step(pointer, "format"), format!("\"{format}\""), FORMATS.join(", "));
        }
        self.values(pointer, node);
        if let Some(items) = node.get("items") {
            self.node(&step(pointer, "items"), items, level);
        }
        for (at, one) in node.get("anyOf").and_then(Value::as_array).into_iter().flatten().enumerate() {
            self.node(&format!("{pointer}/anyOf/{at}"), one, level);
        }
        for place in ["$defs", "definitions"] {
            for (name, one) in node.get(place).and_then(Value::as_object).into_iter().flatten() {
                self.letters += name.chars().count();
                self.node(&step(&step(pointer, place), name), one, level);
            }
        }
    }

    fn reference(&mut self, pointer: &str, node: &Map<String, Value>) {
        if let Some(target) = node.get("$ref").and_then(Value::as_str).filter(|target| !target.starts_with('#')) {
            self.add(
                &step(pointer, "$ref"),
                format!("\"{target}\""),
                "a place in the same schema, as \"#/$defs/name\"",
            );
        }
        let beside: Vec<&str> = node.keys().map(String::as_str).filter(|name| *name != "$ref").collect();
        if !beside.is_empty() {
            let allowed = "nothing beside a $ref; put both into an anyOf with one element";
            self.add(pointer, format!("a $ref with {} beside it", beside.join(", ")), allowed);
        }
    }

    fn object(&mut self, pointer: &str, node: &Map<String, Value>, level: usize) {
        if level > MOST_LEVELS {
            return self.add(
                pointer,
                format!("an object at level {level}"),
                format!("{MOST_LEVELS} levels of objects"),
            );
        }
        match node.get("additionalProperties") {
            Some(Value::Bool(false)) => {}
            None => self.add(pointer, "an object without additionalProperties", "\"additionalProperties\": false"),
            Some(Value::Object(_)) => {
                let allowed = "false; a field with names that are not known is written as a list of name and value";
                self.add(&step(pointer, "additionalProperties"), "a schema", allowed);
            }
            Some(other) => self.add(&step(pointer, "additionalProperties"), short(other), "false"),
        }
        let Some(properties) = node.get("properties").and_then(Value::as_object) else {
            return self.add(pointer, "an object without properties", "properties with all of its fields");
        };
        let required: Vec<&str> =
            node.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let optional: Vec<&str> =
            properties.keys().map(String::as_str).filter(|name| !required.contains(name)).collect();
        if !optional.is_empty() {
            let allowed = "all fields in required; one that may be missing has the type null, too";
            self.add(&step(pointer, "required"), format!("nothing of {}", optional.join(", ")), allowed);
        }
        for name in required.iter().filter(|name| !properties.contains_key(**name)) {
            self.add(&step(pointer, "required"), format!("\"{name}\""), "names that are in properties");
        }
        self.properties += properties.len();
        for (name, one) in properties {
            self.letters += name.chars().count();
            self.node(&step(&step(pointer, "properties"), name), one, level + 1);
        }
    }

    fn values(&mut self, pointer: &str, node: &Map<String, Value>) {
        if let Some(constant) = node.get("const").and_then(Value::as_str) {
            self.letters += constant.chars().count();
        }
        let Some(all) = node.get("enum").and_then(Value::as_array) else { return };
        let letters: usize = all.iter().filter_map(Value::as_str).map(|one| one.chars().count()).sum();
        self.enum_values += all.len();
        self.letters += letters;
        if all.len() > LONG_ENUM && letters > LONG_ENUM_LETTERS {
            let allowed = format!("{LONG_ENUM_LETTERS} letters in an enum of more than {LONG_ENUM} values");
            self.add(&step(pointer, "enum"), format!("{} values of {letters} letters", all.len()), allowed);
        }
    }

    fn totals(&mut self) {
        for (found, most, what) in [
            (self.properties, MOST_PROPERTIES, "fields"),
            (self.enum_values, MOST_ENUM_VALUES, "values of enums"),
            (self.letters, MOST_LETTERS, "letters in names and values"),
        ] {
            if found > most {
                self.add("", format!("{found} {what}"), format!("{most}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(properties: Value) -> Value {
        let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
        json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
    }

    #[test]
    fn what_strict_mode_takes() {
        let schema = object(json!({
            "name": {"type": ["string", "null"], "description": "who", "pattern": "^.*$"},
            "kind": {"type": "string", "enum": ["a", "b"]},
            "when": {"type": "string", "format": "date-time"},
            "score": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "steps": {"type": "array", "items": object(json!({"what": {"type": "string"}})), "maxItems": 5},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        }));
        assert_eq!(violations(&schema), []);
    }

    #[test]
    fn each_violation_has_its_place() {
        for (name, schema, pointer, found) in [
            ("root", json!({"type": "string"}), "/type", "type \"string\""),
            ("no root type", json!({"properties": {}}), "/type", "no type"),
            ("open", json!({"type": "object", "properties": {}, "required": []}), "", "without additionalProperties"),
            (
                "map",
                json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
                "/additionalProperties",
                "a schema",
            ),
            (
                "optional",
                json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["b"],
                    "additionalProperties": false}),
                "/required",
                "nothing of a",
            ),
            (
                "required is not there",
                json!({"type": "object", "properties": {}, "required": ["b"], "additionalProperties": false}),
                "/required",
                "\"b\"",
            ),
            ("no type", object(json!({"a": {}})), "/properties/a", "no type"),
            ("anything", object(json!({"a": true})), "/properties/a", "true"),
            ("default", object(json!({"a": {"type": "string", "default": ""}})), "/properties/a/default", "keyword"),
            ("oneOf", object(json!({"a/b": {"type": "null", "oneOf": []}})), "/properties/a~1b/oneOf", "keyword"),
            ("list", object(json!({"a": {"type": "array"}})), "/properties/a", "a list without items"),
            ("format", object(json!({"a": {"type": "string", "format": "uri"}})), "/properties/a/format", "\"uri\""),
            (
                "inside of a list",
                object(json!({"a": {"type": "array", "items": {"type": "object"}}})),
                "/properties/a/items",
                "an object without properties",
            ),
            ("far ref", object(json!({"a": {"$ref": "https://a.example/b"}})), "/properties/a/$ref", "https"),
            (
                "beside a ref",
                object(json!({"a": {"$ref": "#", "description": "x"}})),
                "/properties/a",
                "a $ref with description beside it",
            ),
        ] {
            let all = violations(&schema);
            let one = all.iter().any(|one| one.pointer == pointer && one.found.contains(found));
            assert!(one, "{name}: {all:?}");
        }
        let root = json!({"type": "object", "anyOf": [{"type": "object"}]});
        assert!(violations(&root).iter().any(|one| one.pointer == "/anyOf"));
    }

    #[test]
    fn limits_are_counted() {
        let deep = |levels: usize| (1..levels).fold(object(json!({})), |inner, _| object(json!({"a": inner})));
        assert_eq!(violations(&deep(MOST_LEVELS)), []);
        let all = violations(&deep(MOST_LEVELS + 1));
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(all[0].found.contains("level 11"), "{all:?}");
        let wide = |fields: usize| {
            object((0..fields).map(|at| (format!("f{at}"), json!({"type": "string"}))).collect::<Map<_, _>>().into())
        };
        assert_eq!(violations(&wide(MOST_PROPERTIES)), []);
        assert_eq!(violations(&wide(MOST_PROPERTIES + 1))[0].found, "5001 fields");
        let values: Vec<String> = (0..=MOST_ENUM_VALUES).map(|at| format!("a value of some length, {at}")).collect();
        let all = violations(&object(json!({"a": {"type": "string", "enum": values}})));
        let found: Vec<&str> = all.iter().map(|one| one.pointer.as_str()).collect();
        assert_eq!(found, ["/properties/a/enum", ""], "{all:?}");
        let all = violations(&object(json!({"a": {"type": "string", "const": "x".repeat(MOST_LETTERS)}})));
        assert_eq!(all[0].found, "120001 letters in names and values");
        let line = Violation { pointer: String::new(), found: "a".to_owned(), allowed: "b".to_owned() }.to_string();
        assert_eq!(line, "`/`: found a; allowed: b");
    }
}
