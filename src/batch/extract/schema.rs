//! The shape that results have: read from a JSON Schema, from a commented example or by a preset's name, checked to be one that strict
//! mode takes, and kept ready to hold results against.
use std::{fmt, io, path::PathBuf};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

use super::{
    column::{Column, columns},
    example::{self, ExampleError, schema_of},
    loose::made_strict,
    strict::{KEYWORDS, Violation, violations},
};

/// Presets by name: commented examples.
pub const PRESETS: [(&str, &str); 4] = [
    ("call-summary", include_str!("../../../assets/extract/call-summary.jsonc")),
    ("support-ticket", include_str!("../../../assets/extract/support-ticket.jsonc")),
    ("sales-call", include_str!("../../../assets/extract/sales-call.jsonc")),
    ("survey", include_str!("../../../assets/extract/survey.jsonc")),
];
/// Longest file with a schema, bytes.
const LONGEST: u64 = 4 << 20;
/// Longest name of a schema (OpenAI's API reference, `text.format.name`).
const LONGEST_NAME: usize = 64;
/// What is wrong with one result is told in at most so many lines of at most so many letters.
const MOST_PROBLEMS: usize = 20;
const LONGEST_PROBLEM: usize = 300;

/// Why there is no schema.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Neither a preset nor a file.
    #[error("`{what}`: found no such file and no such preset; presets: {}", presets())]
    Missing {
        /// What was asked for.
        what: String,
    },
    /// The file is there and cannot be read.
    #[error("`{path}` cannot be read: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no JSON, or no example.
    #[error("`{0}` is neither a JSON Schema nor an example of a result: {1}")]
    Example(String, ExampleError),
    /// It looks like a schema, and is not one.
    #[error("`{name}` is not a JSON Schema: {problems}")]
    NotASchema {
        /// What was read.
        name: String,
        /// What is wrong.
        problems: String,
    },
    /// It is a schema, and not one for strict mode.
    #[error("`{name}` is not a schema for strict mode:\n{}{}", lines(.violations), if *.helped { HELP } else { "" })]
    NotStrict {
        /// What was read.
        name: String,
        /// All of it.
        violations: Vec<Violation>,
        /// Rewriting it would help.
        helped: bool,
    },
}

const HELP: &str = "\nIt can be rewritten for strict mode: optional fields become nullable, objects are closed. Ask for that with \
                    `--make-strict`, or in the file with {\"strict\": false, \"schema\": ...}.";

fn presets() -> String {
    PRESETS.map(|(name, _)| name).join(", ")
}

fn lines(violations: &[Violation]) -> String {
    violations.iter().map(|one| format!("  {one}")).collect::<Vec<_>>().join("\n")
}

/// What a schema was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// One of ours.
    Preset,
    /// A JSON Schema.
    Schema,
    /// A commented example.
    Example,
}

/// The shape that results have.
pub struct Schema {
    name: String,
    value: Value,
    origin: Origin,
    changes: Vec<String>,
    validator: Validator,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").field("name", &self.name).field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Schema {
    /// By a preset's name, or from a file. `make_strict`: a schema that is not strict is rewritten, see [`Self::changes`].
    ///
    /// # Errors
    /// See [`SchemaError`].
    pub fn open(what: &str, make_strict: bool) -> Result<Self, SchemaError> {
        if let Some((name, text)) = PRESETS.iter().find(|(name, _)| *name == what) {
            let value = schema_of(text).map_err(|e| SchemaError::Example((*name).to_owned(), e))?;
            return Self::checked(what, what, value, Origin::Preset, false);
        }
        let path = PathBuf::from(what);
        let broken = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => SchemaError::Missing { what: what.to_owned() },
            _ => SchemaError::File { path: path.clone(), source },
        };
        let bytes = std::fs::metadata(&path).map_err(broken)?.len();
        if bytes > LONGEST {
            let message = format!("found {bytes} bytes; allowed: {LONGEST}");
            return Err(broken(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        let text = std::fs::read_to_string(&path).map_err(broken)?;
        Self::read(what, text.trim_start_matches('\u{feff}'), make_strict)
    }

    /// From a text. `what` names it in errors; its last part without the ending names the schema.
    ///
    /// # Errors
    /// See [`SchemaError`].
    pub fn read(what: &str, text: &str, make_strict: bool) -> Result<Self, SchemaError> {
        let wrong = |e| SchemaError::Example(what.to_owned(), e);
        let plain = example::plain(text).map_err(wrong)?;
        let stem = PathBuf::from(what).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let (inner, name, loose) = unwrapped(&plain);
        let name = name.unwrap_or(&stem);
        if inner.is_some() || looks_like_a_schema(&plain) {
            let value = inner.unwrap_or(&plain).clone();
            return Self::checked(what, name, value, Origin::Schema, make_strict || loose);
        }
        Self::checked(what, name, schema_of(text).map_err(wrong)?, Origin::Example, false)
    }

    fn checked(
        what: &str,
        name: &str,
        mut value: Value,
        origin: Origin,
        make_strict: bool,
    ) -> Result<Self, SchemaError> {
        let not = |problems: String| SchemaError::NotASchema { name: what.to_owned(), problems };
        // They say which schema this is, and nothing about results.
        for idle in ["$schema", "$id", "$comment"] {
            value.as_object_mut().and_then(|root| root.remove(idle));
        }
        let meta = jsonschema::draft202012::meta::validator();
        let problems = told(meta.iter_errors(&value));
        if !problems.is_empty() {
            return Err(not(problems.join("; ")));
        }
        let mut changes = Vec::new();
        if make_strict {
            (value, changes) = made_strict(&value);
        }
        let found = violations(&value);
        if !found.is_empty() {
            let helped = !make_strict && violations(&made_strict(&value).0).is_empty();
            return Err(SchemaError::NotStrict { name: what.to_owned(), violations: found, helped });
        }
        // What a pattern or a reference is worth shows here.
        let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        let validator = options.build(&value).map_err(|e| not(told(std::iter::once(e)).join("; ")))?;
        Ok(Self { name: named(name), value, origin, changes, validator })
    }

    /// Its name, as the service takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The schema itself.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// What it was read from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// What was changed to make it strict.
    pub fn changes(&self) -> &[String] {
        &self.changes
    }

    /// Its columns in a table.
    pub fn columns(&self) -> Vec<Column> {
        columns(&self.value)
    }

    /// `text.format` of a request.
    pub fn format(&self) -> Value {
        json!({"type": "json_schema", "name": self.name, "strict": true, "schema": self.value})
    }

    /// What is wrong with a result, each with its JSON pointer; empty: it fits.
    pub fn problems(&self, result: &Value) -> Vec<String> {
        told(self.validator.iter_errors(result))
    }
}

/// A validator's errors, so many and so long that somebody reads them.
fn told<'a>(errors: impl Iterator<Item = jsonschema::ValidationError<'a>>) -> Vec<String> {
    let one = |error: jsonschema::ValidationError<'a>| {
        let at = error.instance_path().to_string();
        // Without the value: it may be as long as the whole.
        let text = error.masked_with("the value").to_string();
        format!("`{}`: {}", if at.is_empty() { "/" } else { &at }, shortened(&text, LONGEST_PROBLEM))
    };
    errors.take(MOST_PROBLEMS).map(one).collect()
}

pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most).chain("...".chars()).collect() }
}

/// The schema in the frame that the API has around it, its name there, and whether it is said not to be strict.
fn unwrapped(plain: &Value) -> (Option<&Value>, Option<&str>, bool) {
    const FRAME: [&str; 5] = ["type", "name", "description", "strict", "schema"];
    let frame = plain.as_object().filter(|frame| frame.keys().all(|name| FRAME.contains(&name.as_str())));
    let inner = frame.and_then(|frame| frame.get("schema")).filter(|inner| inner.is_object());
    match (frame, inner) {
        (Some(frame), Some(inner)) => {
            let loose = frame.get("strict").is_some_and(|strict| strict == false);
            (Some(inner), frame.get("name").and_then(Value::as_str), loose)
        }
        _ => (None, None, false),
    }
}

/// Whether this is meant as a schema, right or wrong, and not as an example of a result.
fn looks_like_a_schema(plain: &Value) -> bool {
    const MORE: [&str; 10] = ["$schema", "$id", "$comment", "oneOf", "allOf", "not", "if", "then", "else", "default"];
    const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];
    let Some(root) = plain.as_object() else { return false };
    let known = |name: &String| KEYWORDS.contains(&name.as_str()) || MORE.contains(&name.as_str());
    let kind = root.get("type").is_some_and(|kind| match kind {
        Value::String(kind) => TYPES.contains(&kind.as_str()),
        Value::Array(several) => several.iter().all(|one| one.as_str().is_some_and(|one| TYPES.contains(&one))),
        _ => false,
    });
    let fields = root.get("properties").is_some_and(Value::is_object);
    let several = ["anyOf", "oneOf", "allOf"].iter().any(|name| root.get(*name).is_some_and(Value::is_array));
    root.contains_key("$schema")
        || (fields && root.contains_key("type"))
        || (root.keys().all(known) && (kind || fields || several || is_reference(root)))
}

fn is_reference(root: &Map<String, Value>) -> bool {
    root.get("$ref").is_some_and(Value::is_string)
}

/// Letters, figures, `_` and `-`, and not too many.
fn named(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = name.chars().map(allowed).take(LONGEST_NAME).collect();
    if name.is_empty() { "result".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: &str = r#"{"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.example/call",
        "type": "object", "properties": {"topic": {"type": "string"}, "score": {"type": ["integer", "null"], "minimum": 1},
        "day": {"type": "string", "format": "date"}}, "required": ["topic", "score", "day"], "additionalProperties": false}"#;

    #[test]
    fn presets_are_schemas_for_strict_mode() {
        for (name, _) in PRESETS {
            let schema = Schema::open(name, false).unwrap();
            assert_eq!((schema.name(), schema.origin()), (name, Origin::Preset));
            assert!(schema.columns().iter().any(|column| column.name == "language"), "{name}");
            let described = |(_, field): (&String, &Value)| field.get("description").is_some();
            assert!(
                schema.value["properties"].as_object().unwrap().iter().all(described),
                "{name}: {:#}",
                schema.value
            );
        }
        let schema = Schema::open("call-summary", false).unwrap();
        let names: Vec<String> = schema.columns().into_iter().map(|column| column.name).collect();
        assert_eq!(names, ["topic", "summary", "outcome", "sentiment", "next_steps", "language"]);
    }

    #[test]
    fn a_strict_schema_is_taken_as_it_is() {
        let schema = Schema::read("schemas/my call.json", STRICT, false).unwrap();
        assert_eq!((schema.name(), schema.origin()), ("my_call", Origin::Schema));
        assert_eq!(schema.changes(), [] as [&str; 0]);
        assert_eq!(schema.value().get("$schema"), None);
        let format = schema.format();
        assert_eq!((&format["type"], &format["strict"]), (&json!("json_schema"), &json!(true)));
        assert_eq!(schema.problems(&json!({"topic": "a", "score": null, "day": "2026-11-28"})), [] as [&str; 0]);
        let problems = schema.problems(&json!({"topic": 5, "score": 0, "day": "today", "more": 1}));
        let places: Vec<&str> = problems.iter().map(|one| one.split(": ").next().unwrap()).collect();
        for place in ["`/`", "`/topic`", "`/score`", "`/day`"] {
            assert!(places.contains(&place), "{problems:?}");
        }
        let wrapped = format!(r#"{{"type": "json_schema", "name": "of_mine", "strict": true, "schema": {STRICT}}}"#);
        assert_eq!(Schema::read("a.json", &wrapped, false).unwrap().name(), "of_mine");
    }

    #[test]
    fn a_schema_that_is_not_strict_is_refused_or_rewritten() {
        let loose = r#"{"type": "object", "properties": {"a": {"type": "string", "minLength": 2}}}"#;
        let error = Schema::read("loose.json", loose, false).unwrap_err().to_string();
        for part in
            ["/required`: found nothing of a", "/properties/a/minLength`", "additionalProperties", "--make-strict"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        let schema = Schema::read("loose.json", loose, true).unwrap();
        assert_eq!(schema.changes().len(), 3, "{:?}", schema.changes());
        assert_eq!(schema.problems(&json!({"a": null})), [] as [&str; 0]);
        let said = format!(r#"{{"strict": false, "schema": {loose}}}"#);
        assert_eq!(Schema::read("loose.json", &said, false).unwrap().changes(), schema.changes());
        let hopeless = r#"{"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}"#;
        for make_strict in [false, true] {
            let error = Schema::read("map.json", hopeless, make_strict).unwrap_err().to_string();
            assert!(error.contains("/additionalProperties") && !error.contains("--make-strict"), "{error}");
        }
    }

    #[test]
    fn what_is_not_a_schema_is_named() {
        for (name, text, want) in [
            (
                "a type that is none",
                r#"{"type": "objekt", "properties": {}}"#,
                "`x.json` is not a JSON Schema: `/type`",
            ),
            ("fields in a list", r#"{"$schema": "a", "properties": []}"#, "is not a JSON Schema: `/properties`"),
            ("required is text", r#"{"type": "object", "required": "a"}"#, "is not a JSON Schema: `/required`"),
            ("a list", "[1, 2]", "is neither a JSON Schema nor an example of a result: `/`: found a list"),
            ("a number", "5", "is neither"),
            ("nothing", "", "is neither"),
            ("half", r#"{"type": "obj"#, "is neither a JSON Schema nor an example of a result: line 1"),
            ("not JSON", "topic: string", "is neither"),
            (
                "a pattern that is none",
                r#"{"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}, "required": ["a"],
                    "additionalProperties": false}"#,
                "is not a JSON Schema",
            ),
            (
                "a reference to nothing",
                r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}, "required": ["a"],
                    "additionalProperties": false}"##,
                "is not a JSON Schema",
            ),
            (
                "a reference to elsewhere",
                r#"{"type": "object", "properties": {"a": {"$ref": "https://a.example/b"}}, "required": ["a"],
                    "additionalProperties": false}"#,
                "/properties/a/$ref",
            ),
            ("not an object", r#"{"type": "string"}"#, "`/type`: found type \"string\""),
        ] {
            let error = Schema::read("x.json", text, false).unwrap_err().to_string();
            assert!(error.contains(want), "{name}: {error}");
        }
    }

    #[test]
    fn examples_and_files_are_found() {
        let schema = Schema::read("a.json", r#"{"title": "x", "type": "invoice", "items": ["a"]}"#, false).unwrap();
        assert_eq!(schema.origin(), Origin::Example);
        let error = Schema::open("call-sumary", false).unwrap_err().to_string();
        assert!(error.contains("presets: call-summary, support-ticket"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.jsonc");
        std::fs::write(&path, "\u{feff}// what\n{\"a\": 1}").unwrap();
        let schema = Schema::open(path.to_str().unwrap(), false).unwrap();
        assert_eq!((schema.name(), &schema.value()["description"]), ("mine", &json!("what")));
        assert!(matches!(Schema::open(dir.path().to_str().unwrap(), false), Err(SchemaError::File { .. })));
        std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
        assert!(matches!(Schema::open(path.to_str().unwrap(), false), Err(SchemaError::File { .. })));
        std::fs::write(&path, " ".repeat((4 << 20) + 1)).unwrap();
        let error = Schema::open(path.to_str().unwrap(), false).unwrap_err().to_string();
        assert!(error.contains("allowed: 4194304"), "{error}");
    }
}
