//! Whether a value is one that a JSON schema takes: the keywords that the program's OpenAPI document uses, and no more.

use serde_json::Value;

/// Keywords that say nothing about values.
const SILENT: [&str; 3] = ["description", "default", "title"];

/// Schemas by reference within one document.
pub struct Schemas<'a>(pub &'a Value);

impl Schemas<'_> {
    /// Whether the schema takes the value; panics at a keyword that it does not know.
    pub fn takes(&self, schema: &Value, value: &Value) -> bool {
        if let Some(always) = schema.as_bool() {
            return always;
        }
        let keywords = schema.as_object().expect("a schema is an object");
        keywords
            .iter()
            .all(|(keyword, rule)| self.holds(keyword, rule, schema, value))
    }

    fn holds(&self, keyword: &str, rule: &Value, schema: &Value, value: &Value) -> bool {
        let number = |rule: &Value| rule.as_f64().expect("a number");
        let count = |rule: &Value| usize::try_from(rule.as_u64().expect("a count")).expect("a count");
        match keyword {
            _ if SILENT.contains(&keyword) => true,
            "$ref" => {
                let path = rule.as_str().and_then(|path| path.strip_prefix('#'));
                let named = path.and_then(|path| self.0.pointer(path));
                self.takes(named.expect("a reference leads somewhere"), value)
            }
            "type" => match rule.as_array() {
                Some(types) => types.iter().any(|one| is_of(one, value)),
                None => is_of(rule, value),
            },
            "enum" => rule.as_array().expect("an array").contains(value),
            "const" => rule == value,
            "anyOf" => rule
                .as_array()
                .expect("an array")
                .iter()
                .any(|one| self.takes(one, value)),
            "minimum" => value.as_f64().is_none_or(|value| value >= number(rule)),
            "maximum" => value.as_f64().is_none_or(|value| value <= number(rule)),
            "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number(rule)),
            "minLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() >= count(rule)),
            "maxLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() <= count(rule)),
            "minItems" => value.as_array().is_none_or(|items| items.len() >= count(rule)),
            "maxItems" => value.as_array().is_none_or(|items| items.len() <= count(rule)),
            "items" => value
                .as_array()
                .is_none_or(|items| items.iter().all(|item| self.takes(rule, item))),
            "maxProperties" => value.as_object().is_none_or(|object| object.len() <= count(rule)),
            "required" => value.as_object().is_none_or(|object| {
                let names = rule.as_array().expect("an array").iter();
                names
                    .filter_map(Value::as_str)
                    .all(|name| object.contains_key(name))
            }),
            "properties" => value.as_object().is_none_or(|object| {
                let rules = rule.as_object().expect("an object").iter();
                rules
                    .into_iter()
                    .all(|(name, rule)| object.get(name).is_none_or(|one| self.takes(rule, one)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|object| {
                let named = |name: &str| schema["properties"].get(name).is_some();
                object
                    .iter()
                    .all(|(name, one)| named(name) || self.takes(rule, one))
            }),
            "propertyNames" => value.as_object().is_none_or(|object| {
                object
                    .keys()
                    .all(|name| self.takes(rule, &Value::from(name.as_str())))
            }),
            "pattern" => match rule.as_str() {
                Some("^[0-9]+$") => value
                    .as_str()
                    .is_none_or(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())),
                // No value of these tests is near a name.
                _ => true,
            },
            other => panic!("the keyword {other} is unknown here"),
        }
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type is a name") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|value| value.fract() == 0.0)
        }
        other => panic!("the type {other} is unknown here"),
    }
}
