//! A schema's columns in a table: the fields of the outermost object, each with the type of its cells.
use serde_json::{Map, Value};

use super::strict::types;

/// What a column's cells are; any of them may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text, and enums of text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// Yes or no.
    Boolean,
    /// Lists, objects, and what may be of several types: as JSON text.
    Json,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// The field's name.
    pub name: String,
    /// What its cells are.
    pub kind: Kind,
}

/// The columns of a strict schema, in its order.
pub fn columns(schema: &Value) -> Vec<Column> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let one = |(name, field): (&String, &Value)| Column { name: name.clone(), kind: kind(schema, field, 4) };
    properties.into_iter().flatten().map(one).collect()
}

/// `hops`: references followed at most; one may lead to itself.
fn kind(root: &Value, field: &Value, hops: u8) -> Kind {
    let Some(node) = field.as_object() else { return Kind::Json };
    if let Some(target) = node.get("$ref").and_then(Value::as_str) {
        let target = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
        return target.filter(|_| hops > 0).map_or(Kind::Json, |target| kind(root, target, hops - 1));
    }
    if let Some(several) = node.get("anyOf").and_then(Value::as_array) {
        let is_null = |one: &Map<String, Value>| types(one) == ["null"];
        let mut kinds = several.iter().filter(|one| !one.as_object().is_some_and(is_null));
        return match (kinds.next(), kinds.next()) {
            (Some(only), None) if hops > 0 => kind(root, only, hops - 1),
            _ => Kind::Json,
        };
    }
    match types(node).into_iter().filter(|kind| *kind != "null").collect::<Vec<_>>().as_slice() {
        ["string"] => Kind::String,
        ["integer"] => Kind::Integer,
        ["number"] | ["integer", "number"] | ["number", "integer"] => Kind::Number,
        ["boolean"] => Kind::Boolean,
        _ => Kind::Json,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_have_the_types_of_fields() {
        let schema = json!({"properties": {
            "a": {"type": "string", "enum": ["x"]},
            "b": {"type": ["integer", "null"]},
            "c": {"type": "number"},
            "d": {"type": "boolean"},
            "e": {"type": "array", "items": {"type": "string"}},
            "f": {"type": "object"},
            "g": {"anyOf": [{"type": "null"}, {"type": "number"}]},
            "h": {"anyOf": [{"type": "string"}, {"type": "number"}]},
            "i": {"$ref": "#/$defs/i"},
            "j": {"$ref": "#/properties/j"},
            "k": {"type": ["string", "number"]},
            "l": true,
        }, "$defs": {"i": {"type": "integer"}}});
        let kinds: Vec<Kind> = columns(&schema).into_iter().map(|column| column.kind).collect();
        use Kind::{Boolean, Integer, Json, Number, String};
        assert_eq!(kinds, [String, Integer, Number, Boolean, Json, Json, Number, Json, Integer, Json, Json, Json]);
        assert_eq!(columns(&json!({})), []);
        assert_eq!(serde_json::to_value(&columns(&schema)[0]).unwrap(), json!({"name": "a", "kind": "string"}));
    }
}
