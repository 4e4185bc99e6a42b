//! A JSON Schema that was not written for strict mode, rewritten for it: fields that may be missing may be null instead, objects are
//! closed, and limits that strict mode does not know are told to the model in the description. Says what it has changed. What has no
//! equal there (`allOf` of several, `if`, fields of any name) stays, and [`super::strict`] names it.
use serde_json::{Map, Value, json};

use super::strict::{step, types};

/// They say nothing of the value.
const IDLE: [&str; 8] =
    ["default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType"];
/// They limit it, but not in strict mode.
const TOLD: [&str; 5] = ["minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties"];

/// The schema for strict mode, and what was changed, each with its JSON pointer.
pub fn made_strict(schema: &Value) -> (Value, Vec<String>) {
    let mut schema = schema.clone();
    let mut changes = Vec::new();
    node("", &mut schema, &mut changes);
    (schema, changes)
}

fn node(pointer: &str, schema: &mut Value, changes: &mut Vec<String>) {
    let Some(node) = schema.as_object_mut() else { return };
    let mut note = |what: &str| changes.push(format!("`{}`: {what}", if pointer.is_empty() { "/" } else { pointer }));
    for name in IDLE {
        if node.remove(name).is_some() {
            note(&format!("{name} is left out"));
        }
    }
    for name in TOLD {
        if let Some(limit) = node.remove(name) {
            describe(node, &format!("{name}: {limit}"));
            note(&format!("{name} is told in the description"));
        }
    }
    if let Some(several) = node.remove("oneOf") {
        node.insert("anyOf".to_owned(), several);
        note("oneOf is an anyOf");
    }
    if let Some(only) = sole(node.get("allOf")) {
        node.remove("allOf");
        for (name, value) in only {
            node.entry(name).or_insert(value);
        }
        note("an allOf of one is that one");
    }
    if !["type", "anyOf", "$ref"].iter().any(|name| node.contains_key(*name))
        && let Some(kind) = implied(node)
    {
        note("the type is that of its values");
        node.insert("type".to_owned(), kind);
    }
    if node.len() > 1
        && let Some(target) = node.remove("$ref")
    {
        node.insert("anyOf".to_owned(), json!([{"$ref": target}]));
        note("a $ref with something beside it is an anyOf of one");
    }
    // First what is in there: a field is made nullable as what it has become.
    inside(pointer, node, changes);
    if types(node).contains(&"object") {
        close(pointer, node, changes);
    }
}

/// Goes on to the schemas in there.
fn inside(pointer: &str, schema: &mut Map<String, Value>, changes: &mut Vec<String>) {
    for place in ["properties", "$defs", "definitions"] {
        for (name, one) in schema.get_mut(place).and_then(Value::as_object_mut).into_iter().flatten() {
            node(&step(&step(pointer, place), name), one, changes);
        }
    }
    if let Some(items) = schema.get_mut("items") {
        node(&step(pointer, "items"), items, changes);
    }
    for (at, one) in schema.get_mut("anyOf").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        node(&format!("{pointer}/anyOf/{at}"), one, changes);
    }
}

/// An object has its fields and no others, and all of them.
fn close(pointer: &str, node: &mut Map<String, Value>, changes: &mut Vec<String>) {
    if node.get("additionalProperties").is_none_or(|other| other == true) {
        node.insert("additionalProperties".to_owned(), false.into());
        changes.push(format!("`{}`: no fields but those named", if pointer.is_empty() { "/" } else { pointer }));
    }
    let required: Vec<Value> = node.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(properties) = node.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, one) in &mut *properties {
        if !required.contains(&Value::from(name.as_str())) {
            nullable(one);
            changes.push(format!("`{}`: was optional and may be null", step(&step(pointer, "properties"), name)));
        }
    }
    let all: Vec<Value> = properties.keys().map(|name| name.as_str().into()).collect();
    node.insert("required".to_owned(), all.into());
}

/// The same schema, or null.
fn nullable(schema: &mut Value) {
    let Some(node) = schema.as_object_mut() else { return };
    if node.contains_key("$ref") {
        let whole = std::mem::take(node);
        node.insert("anyOf".to_owned(), json!([whole, {"type": "null"}]));
        return;
    }
    for place in ["anyOf", "oneOf"] {
        if let Some(several) = node.get_mut(place).and_then(Value::as_array_mut) {
            if !several.iter().any(|one| one.get("type").is_some_and(|kind| kind == "null")) {
                several.push(json!({"type": "null"}));
            }
            return;
        }
    }
    if let Some(constant) = node.remove("const") {
        node.insert("enum".to_owned(), json!([constant]));
    }
    if let Some(values) = node.get_mut("enum").and_then(Value::as_array_mut)
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
    match node.get_mut("type") {
        Some(Value::Array(several)) if !several.contains(&"null".into()) => several.push("null".into()),
        Some(Value::String(one)) if one != "null" => {
            let both = json!([one, "null"]);
            node.insert("type".to_owned(), both);
        }
        _ => {}
    }
}

fn describe(node: &mut Map<String, Value>, more: &str) {
    let text = match node.get("description").and_then(Value::as_str) {
        Some(text) => format!("{text} ({more})"),
        None => more.to_owned(),
    };
    node.insert("description".to_owned(), text.into());
}

fn sole(all: Option<&Value>) -> Option<Map<String, Value>> {
    match all?.as_array()?.as_slice() {
        [Value::Object(only)] => Some(only.clone()),
        _ => None,
    }
}

/// The type of a constant, or of an enum's values.
fn implied(node: &Map<String, Value>) -> Option<Value> {
    let constant = node.get("const").map(std::slice::from_ref);
    let values = constant.or_else(|| node.get("enum")?.as_array().map(Vec::as_slice))?;
    let mut kinds: Vec<Value> = Vec::new();
    for value in values {
        let kind: Value = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) | Value::Object(_) => return None,
        }
        .into();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.len() == 1 { kinds.pop() } else { Some(kinds.into()) }
}

#[cfg(test)]
mod tests {
    use super::{super::strict::violations, *};

    #[test]
    fn a_loose_schema_becomes_strict_and_says_how() {
        let loose = json!({
            "type": "object",
            "properties": {
                "topic": {"type": "string", "minLength": 3, "description": "what about"},
                "kind": {"enum": ["a", "b"]},
                "who": {"$ref": "#/$defs/who", "description": "the caller"},
                "steps": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer", "default": 0}}}},
                "one": {"oneOf": [{"type": "string"}, {"type": "number"}]},
                "same": {"allOf": [{"type": "boolean"}]},
                "fixed": {"type": "string", "const": "x"},
            },
            "required": ["topic"],
            "$defs": {"who": {"type": "object", "properties": {"name": {"type": ["string", "null"]}}, "required": ["name"]}},
        });
        let (strict, changes) = made_strict(&loose);
        assert_eq!(violations(&strict), [], "{strict}");
        let field = |name: &str| &strict["properties"][name];
        assert_eq!(field("topic"), &json!({"type": "string", "description": "what about (minLength: 3)"}));
        assert_eq!(field("kind"), &json!({"enum": ["a", "b", null], "type": ["string", "null"]}));
        assert_eq!(field("one"), &json!({"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}));
        assert_eq!(field("same")["type"], json!(["boolean", "null"]), "{strict}");
        assert_eq!(field("fixed"), &json!({"type": ["string", "null"], "enum": ["x", null]}));
        assert_eq!(field("steps")["items"]["properties"]["n"]["type"], json!(["integer", "null"]));
        assert!(
            changes.iter().any(|change| change == "`/properties/kind`: was optional and may be null"),
            "{changes:?}"
        );
        assert!(changes.iter().any(|change| change.contains("`/properties/steps/items/properties/n`: default")));
        let again = made_strict(&strict);
        assert_eq!(again, (strict, Vec::new()), "what is strict stays as it is");
    }

    #[test]
    fn what_has_no_equal_stays_and_is_named() {
        for (loose, pointer) in [
            (
                json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
                "/additionalProperties",
            ),
            (
                json!({"type": "object", "properties": {"a": {"allOf": [{"type": "null"}, {"type": "null"}]}}}),
                "/properties/a/allOf",
            ),
            (json!({"type": "object", "properties": {}, "if": {}}), "/if"),
            (json!({"type": "array", "items": {"type": "string"}}), "/type"),
        ] {
            let left = violations(&made_strict(&loose).0);
            assert!(left.iter().any(|one| one.pointer == pointer), "{pointer}: {left:?}");
        }
    }
}
