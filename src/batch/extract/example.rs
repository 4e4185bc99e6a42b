//! A schema from an example of what is wanted, with comments: what people write more easily than a schema.
//!
//! ```jsonc
//! // What a caller of our hotline wanted.
//! {
//!   "topic": "invoice is wrong",       // in a few words
//!   "mood": "calm | annoyed | angry",  // several with " | ": one of these
//!   "amount": 12.5,                    // 12 would be a whole number
//!   "order": null,                     // text, or null where there is none
//!   "steps": [{"what": "call back", "urgent": true}]
//! }
//! ```
//! The value's type is the field's type; a list is a list of things like its first element. A comment behind a field, or above it, tells
//! the model what the field means; one above everything, what the whole is. All fields are there in every result; `| null` among the
//! values of an enum allows null, and `"integer | null"` (`number`, `boolean`) is a figure or null.
use jsonc_parser::{
    CollectOptions, CommentCollectionStrategy, ParseOptions,
    ast::{Object, ObjectProp, Value as Node},
    common::Ranged as _,
    parse_to_ast,
};
use serde_json::{Map, Value, json};

use super::strict::step;

/// What is wrong with an example, or with a file that is not even JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExampleError {
    /// It cannot be read.
    #[error("line {line}, column {column}: {what}")]
    Syntax {
        /// From 1 on.
        line: usize,
        /// From 1 on.
        column: usize,
        /// What the parser says.
        what: String,
    },
    /// It can be read, and is no example.
    #[error("`{}`: found {found}; allowed: {allowed}", if .pointer.is_empty() { "/" } else { .pointer })]
    Shape {
        /// JSON pointer into the example.
        pointer: String,
        /// What stands there.
        found: String,
        /// What may.
        allowed: &'static str,
    },
}

/// The schema that this example stands for.
///
/// # Errors
/// It cannot be read, or something in it has no type.
pub fn schema_of(text: &str) -> Result<Value, ExampleError> {
    let (collect, options) = reading();
    let parsed = parse_to_ast(text, &collect, &options).map_err(|e| syntax(&e))?;
    let Some(Node::Object(root)) = &parsed.value else {
        let found = parsed.value.as_ref().map_or("nothing", kind).to_owned();
        return Err(ExampleError::Shape {
            pointer: String::new(),
            found,
            allowed: "an object with the fields of a result",
        });
    };
    let mut fields = Vec::new();
    list(root, &mut fields);
    let mut comments: Vec<(usize, usize, &str)> = Vec::new();
    for one in parsed.comments.iter().flat_map(|map| map.values()).flat_map(|some| some.iter()) {
        comments.push((one.start(), one.end(), one.text()));
    }
    comments.sort_unstable();
    comments.dedup();
    let mut said = Descriptions::default();
    for (start, _, comment) in comments {
        let owner = owner(text, root, &fields, start);
        said.add(owner, comment);
    }
    object("", root, &said, root.start())
}

/// The same text as plain JSON.
///
/// # Errors
/// It cannot be read.
pub(super) fn plain(text: &str) -> Result<Value, ExampleError> {
    let (_, options) = reading();
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|e| syntax(&e))?;
    Ok(parsed.value.as_ref().map_or(Value::Null, value))
}

fn reading() -> (CollectOptions, ParseOptions) {
    // A forgotten comma is said, and not guessed.
    let options =
        ParseOptions { allow_missing_commas: false, allow_non_finite_numbers: false, ..ParseOptions::default() };
    (CollectOptions { comments: CommentCollectionStrategy::Separate, tokens: false }, options)
}

fn syntax(error: &jsonc_parser::errors::ParseError) -> ExampleError {
    ExampleError::Syntax { line: error.line_display(), column: error.column_display(), what: error.kind().to_string() }
}

fn value(node: &Node<'_>) -> Value {
    match node {
        Node::StringLit(text) => text.value.as_ref().into(),
        Node::NumberLit(number) => figure(number.value),
        Node::BooleanLit(yes) => yes.value.into(),
        Node::NullKeyword(_) => Value::Null,
        Node::Array(all) => all.elements.iter().map(value).collect(),
        Node::Object(object) => {
            let one = |prop: &ObjectProp<'_>| (prop.name.as_str().to_owned(), value(&prop.value));
            object.properties.iter().map(one).collect::<Map<_, _>>().into()
        }
    }
}

/// A number in one of JSON5's spellings; null: it is none.
fn figure(text: &str) -> Value {
    let text = text.trim_start_matches('+');
    if let Ok(number) = serde_json::from_str(text) {
        return number;
    }
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    match hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
        Some(number) => number.into(),
        None => text.parse::<f64>().map_or(Value::Null, Value::from),
    }
}

fn kind(node: &Node<'_>) -> &'static str {
    match node {
        Node::StringLit(_) => "a string",
        Node::NumberLit(_) => "a number",
        Node::BooleanLit(_) => "a boolean",
        Node::Object(_) => "an object",
        Node::Array(_) => "a list",
        Node::NullKeyword(_) => "null",
    }
}

/// A field in the text: where its name and its value begin, and where the value ends.
struct Field {
    name_at: usize,
    ends: usize,
}

/// All fields, in the order in which their names stand there.
fn list(object: &Object<'_>, fields: &mut Vec<Field>) {
    fn within(node: &Node<'_>, fields: &mut Vec<Field>) {
        match node {
            Node::Object(object) => list(object, fields),
            Node::Array(all) => all.elements.iter().for_each(|one| within(one, fields)),
            _ => {}
        }
    }
    for prop in &object.properties {
        fields.push(Field { name_at: prop.name.start(), ends: prop.value.end() });
        within(&prop.value, fields);
    }
}

/// Whom a comment is about: the place of a field's name, or that of the whole.
fn owner(text: &str, root: &Object<'_>, fields: &[Field], comment: usize) -> usize {
    let whole = root.start();
    if comment < whole {
        return whole;
    }
    let line = text.get(..comment).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let alone = text.get(line..comment).is_none_or(|before| before.trim().is_empty());
    let next = || fields.iter().find(|field| field.name_at > comment);
    // The last field that begins on this line, or else the outermost that ends on it.
    let begins = fields.iter().rfind(|field| (line..comment).contains(&field.name_at));
    let behind = || begins.or_else(|| fields.iter().find(|field| (line..=comment).contains(&field.ends)));
    let found = if alone { next().or_else(|| fields.last()) } else { behind() };
    found.map_or(whole, |field| field.name_at)
}

/// What comments say, by the place of whom they are about.
#[derive(Default)]
struct Descriptions(std::collections::HashMap<usize, String>);

impl Descriptions {
    fn add(&mut self, owner: usize, comment: &str) {
        let lines = comment.lines().map(|line| line.trim().trim_start_matches('*').trim());
        let words: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        let text = self.0.entry(owner).or_default();
        for line in words {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(line);
        }
    }
}

fn object(pointer: &str, object: &Object<'_>, said: &Descriptions, at: usize) -> Result<Value, ExampleError> {
    if object.properties.is_empty() {
        let allowed = "an object with at least one field";
        return Err(ExampleError::Shape {
            pointer: pointer.to_owned(),
            found: "an object without fields".to_owned(),
            allowed,
        });
    }
    let mut properties = Map::new();
    for prop in &object.properties {
        let name = prop.name.as_str();
        let pointer = step(pointer, name);
        let mut one = schema(&pointer, &prop.value, said)?;
        if let (Some(text), Some(one)) = (said.0.get(&prop.name.start()), one.as_object_mut()) {
            one.insert("description".to_owned(), text.as_str().into());
        }
        if properties.insert(name.to_owned(), one).is_some() {
            return Err(ExampleError::Shape {
                pointer,
                found: "this field twice".to_owned(),
                allowed: "each field once",
            });
        }
    }
    let required: Vec<&String> = properties.keys().collect();
    let mut whole = json!({"type": "object", "required": required, "additionalProperties": false});
    if let (Some(text), Some(whole)) = (said.0.get(&at), whole.as_object_mut()) {
        whole.insert("description".to_owned(), text.as_str().into());
    }
    if let Some(whole) = whole.as_object_mut() {
        whole.insert("properties".to_owned(), properties.into());
    }
    Ok(whole)
}

fn schema(pointer: &str, node: &Node<'_>, said: &Descriptions) -> Result<Value, ExampleError> {
    Ok(match node {
        Node::StringLit(text) => words(&text.value),
        Node::NumberLit(number) if figure(number.value).is_f64() => json!({"type": "number"}),
        Node::NumberLit(_) => json!({"type": "integer"}),
        Node::BooleanLit(_) => json!({"type": "boolean"}),
        Node::NullKeyword(_) => json!({"type": ["string", "null"]}),
        Node::Object(inner) => object(pointer, inner, said, inner.start())?,
        Node::Array(all) => match all.elements.first() {
            Some(first) => json!({"type": "array", "items": schema(&format!("{pointer}/0"), first, said)?}),
            None => {
                let (found, allowed) = ("an empty list".to_owned(), "a list with one element, for its type");
                return Err(ExampleError::Shape { pointer: pointer.to_owned(), found, allowed });
            }
        },
    })
}

/// Any text, or one of those with ` | ` between them.
fn words(text: &str) -> Value {
    let mut several: Vec<Value> = Vec::new();
    for one in text.split(" | ").map(str::trim).filter(|one| !one.is_empty()) {
        let one = if one == "null" { Value::Null } else { one.into() };
        if !several.contains(&one) {
            several.push(one);
        }
    }
    if several.len() < 2 {
        return json!({"type": "string"});
    }
    if several
        .iter()
        .all(|one| ["string", "integer", "number", "boolean"].map(Value::from).contains(one) || one.is_null())
    {
        let kinds = several.iter().map(|one| if one.is_null() { "null".into() } else { one.clone() });
        return json!({"type": kinds.collect::<Value>()});
    }
    let kind = if several.contains(&Value::Null) { json!(["string", "null"]) } else { json!("string") };
    json!({"type": kind, "enum": several})
}

#[cfg(test)]
mod tests {
    use super::{super::strict::violations, *};

    #[test]
    fn types_enums_and_comments_are_read() {
        let text = r#"
// What a caller wanted,
/* in our
 * words. */
{
  topic: 'invoice is wrong', // in a few words
  "mood": "calm | annoyed | angry | null",
  "amount": 12.5, "count": 12, /* whole */
  // the number,
  // if there is one
  "order": null,
  "steps": [ // what is to be done
    {"what": "call back", "urgent": true}, // soon?
  ],
  "tags": ["a | b"], // some of these
  "points": "integer | null",
  "who": {
    "name": "Ada"
  }, // the caller
}
"#;
        let schema = schema_of(text).unwrap();
        assert_eq!(violations(&schema), []);
        let want = json!({
            "type": "object",
            "description": "What a caller wanted, in our words.",
            "required": ["topic", "mood", "amount", "count", "order", "steps", "tags", "points", "who"],
            "additionalProperties": false,
            "properties": {
                "topic": {"type": "string", "description": "in a few words"},
                "mood": {"type": ["string", "null"], "enum": ["calm", "annoyed", "angry", null]},
                "amount": {"type": "number"},
                "count": {"type": "integer", "description": "whole"},
                "order": {"type": ["string", "null"], "description": "the number, if there is one"},
                "steps": {"type": "array", "description": "what is to be done", "items": {
                    "type": "object", "required": ["what", "urgent"], "additionalProperties": false,
                    "properties": {"what": {"type": "string"}, "urgent": {"type": "boolean", "description": "soon?"}},
                }},
                "tags": {"type": "array", "description": "some of these",
                    "items": {"type": "string", "enum": ["a", "b"]}},
                "points": {"type": ["integer", "null"]},
                "who": {"type": "object", "description": "the caller", "required": ["name"], "additionalProperties": false,
                    "properties": {"name": {"type": "string"}}},
            },
        });
        assert_eq!(schema, want, "{schema:#}");
        let order: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(order, ["topic", "mood", "amount", "count", "order", "steps", "tags", "points", "who"]);
    }

    #[test]
    fn what_is_no_example_is_named() {
        for (text, want) in [
            ("", "`/`: found nothing; allowed: an object"),
            ("[1]", "`/`: found a list; allowed: an object"),
            ("\"x\"", "`/`: found a string"),
            ("{}", "`/`: found an object without fields"),
            (r#"{"a": {"b": []}}"#, "`/a/b`: found an empty list"),
            (r#"{"a": [{}]}"#, "`/a/0`: found an object without fields"),
            (r#"{"a": 1, "a": 2}"#, "`/a`: found this field twice"),
            ("{\n  \"a\": 1\n  \"b\": 2\n}", "line 2"),
            (r#"{"a": "#, "line 1"),
            ("{\"a\": NaN}", "line 1"),
            ("{\"a\": hello}", "line 1"),
        ] {
            let error = schema_of(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }

    proptest::proptest! {
        /// Whatever somebody writes: a schema that strict mode takes, or an error; never a panic.
        #[test]
        fn any_text_is_a_schema_or_an_error(text in "[\\[\\]{}:,\"'/* |a-cäß0-9.\n-]{0,60}") {
            if let Ok(schema) = schema_of(&text) {
                proptest::prop_assert_eq!(violations(&schema), []);
            }
        }
    }
}
