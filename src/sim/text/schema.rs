//! Whether a schema is one of those that strict answers may have, in the service's words where it is not. Pure.
//!
//! The rules: the top is an object, every object names all its properties as required and allows no others, and there are no
//! keywords that a grammar cannot hold. The texts are the service's as far as they are known.
use serde_json::Value;

/// Deepest nesting of objects, and most properties in all.
const DEEPEST: usize = 10;
const MAX_PROPERTIES: usize = 5_000;
/// Keywords that strict schemas have not.
const FORBIDDEN: [&str; 12] = [
    "allOf",
    "not",
    "oneOf",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "then",
    "else",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "uniqueItems",
];

/// Checks a schema; `Err`: what is wrong with it.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    if schema.get("anyOf").is_some() || schema.get("type").and_then(Value::as_str) != Some("object") {
        let found = schema.get("type").map_or_else(|| "None".to_owned(), |kind| kind.to_string().replace('"', ""));
        return Err(format!("schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{found}\"'."));
    }
    let mut walk = Walk { path: Vec::new(), properties: 0 };
    walk.schema(schema, 0)?;
    for name in ["$defs", "definitions"] {
        for (key, part) in schema.get(name).and_then(Value::as_object).into_iter().flatten() {
            walk.within(&[name, key], part, 1)?;
        }
    }
    Ok(())
}

struct Walk {
    path: Vec<String>,
    properties: usize,
}

impl Walk {
    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        let path: Vec<String> = self.path.iter().map(|step| format!("'{step}'")).collect();
        // As Python writes a tuple.
        let comma = if path.len() == 1 { "," } else { "" };
        Err(format!("In context=({}{comma}), {what}", path.join(", ")))
    }

    fn within(&mut self, steps: &[&str], schema: &Value, depth: usize) -> Result<(), String> {
        self.path.extend(steps.iter().map(|step| (*step).to_owned()));
        self.schema(schema, depth)?;
        self.path.truncate(self.path.len() - steps.len());
        Ok(())
    }

    fn schema(&mut self, schema: &Value, depth: usize) -> Result<(), String> {
        let Value::Object(map) = schema else { return self.wrong("schema must be an object.") };
        if depth > DEEPEST {
            return self.wrong(&format!("schema exceeds the nesting limit of {DEEPEST} levels."));
        }
        if let Some(keyword) = FORBIDDEN.iter().find(|keyword| map.contains_key(**keyword)) {
            return self.wrong(&format!("'{keyword}' is not permitted."));
        }
        if map.contains_key("$ref") {
            return Ok(());
        }
        if let Some(choices) = map.get("anyOf") {
            let Some(choices) = choices.as_array() else { return self.wrong("'anyOf' must be an array.") };
            for (n, choice) in choices.iter().enumerate() {
                self.within(&["anyOf", &n.to_string()], choice, depth + 1)?;
            }
            return Ok(());
        }
        let is = |kind: &str| match map.get("type") {
            Some(Value::String(found)) => found == kind,
            Some(Value::Array(found)) => found.iter().any(|found| found == kind),
            _ => false,
        };
        if map.get("type").is_none() && map.get("enum").is_none() && map.get("const").is_none() {
            return self.wrong("schema must have a 'type' key.");
        }
        if is("object") {
            self.object(schema, depth)?;
        }
        if is("array") {
            let Some(items) = map.get("items") else { return self.wrong("array schema missing items.") };
            self.within(&["items"], items, depth + 1)?;
        }
        Ok(())
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Result<(), String> {
        if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
            return self.wrong("'additionalProperties' is required to be supplied and to be false.");
        }
        let empty = serde_json::Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        self.properties += properties.len();
        if self.properties > MAX_PROPERTIES {
            return self.wrong(&format!("schema has more than {MAX_PROPERTIES} properties."));
        }
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let must = "'required' is required to be supplied and to be an array including every key in properties.";
        if let Some(missing) = properties.keys().find(|key| !required.contains(&key.as_str())) {
            return self.wrong(&format!("{must} Missing '{missing}'."));
        }
        if let Some(extra) = required.iter().find(|key| !properties.contains_key(**key)) {
            return self.wrong(&format!("{must} Extra required key '{extra}' supplied."));
        }
        for (key, property) in properties {
            self.within(&["properties", key], property, depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strict_schemas_are_checked_as_the_service_does() {
        let with = |property: Value| json!({"type": "object", "properties": {"a": property}, "required": ["a"], "additionalProperties": false});
        for (schema, wrong) in [
            (with(json!({"type": ["string", "null"], "enum": ["x", null]})), None),
            (with(json!({"anyOf": [{"type": "string"}, {"type": "null"}]})), None),
            (with(json!({"$ref": "#"})), None),
            (json!({"type": "array", "items": {"type": "string"}}), Some("got 'type: \"array\"'.")),
            (json!({}), Some("got 'type: \"None\"'.")),
            (
                json!({"type": "object", "properties": {}}),
                Some("In context=(), 'additionalProperties' is required to be supplied and to be false."),
            ),
            (
                json!({"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": false}),
                Some(
                    "In context=(), 'required' is required to be supplied and to be an array including every key in \
                      properties. Missing 'b'.",
                ),
            ),
            (
                json!({"type": "object", "properties": {}, "required": ["z"], "additionalProperties": false}),
                Some("Extra required key 'z' supplied."),
            ),
            (with(json!({"type": "object"})), Some("In context=('properties', 'a'), 'additionalProperties'")),
            (with(json!({"oneOf": []})), Some("In context=('properties', 'a'), 'oneOf' is not permitted.")),
            (with(json!({"description": "?"})), Some("In context=('properties', 'a'), schema must have a 'type' key.")),
            (with(json!({"type": "array"})), Some("In context=('properties', 'a'), array schema missing items.")),
            (
                with(json!({"type": "array", "items": with(json!({}))})),
                Some("('properties', 'a', 'items', 'properties', 'a')"),
            ),
        ] {
            match (check(&schema), wrong) {
                (Ok(()), None) => {}
                (Err(found), Some(wrong)) => assert!(found.contains(wrong), "{schema}\n  {found}\n  {wrong}"),
                (found, _) => panic!("{schema}: {found:?}"),
            }
        }
        let deep = (0..12).fold(json!({"type": "string"}), |inner, _| with(inner));
        assert!(check(&deep).unwrap_err().contains("nesting limit"));
    }
}
