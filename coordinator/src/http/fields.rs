//! A JSON body as named fields, each read when a handler asks for it.
//!
//! Every error names its field, down to the element (`messages[2].content`). What nobody asked for is left over and
//! can be looked at last. Values stay as text until they are read, so a field that is ignored costs its bytes only.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{ApiError, ErrorKind};

/// Most fields of a body.
const MAX_FIELDS: usize = 256;
/// Deepest nesting within a field, as deep as serde_json reads typed values.
const MAX_DEPTH: usize = 127;
/// Longest part of a value that is shown in an error, in characters.
const MAX_SHOWN: usize = 60;

/// The fields of a body that have not been read yet.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    left: Vec<(String, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Reads a body that must be a JSON object; checks the depth of every field.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let left = reader
            .deserialize_any(FieldsVisitor)
            .and_then(|fields| reader.end().map(|()| fields))
            .map_err(|error| ApiError::new(ErrorKind::Invalid, body_problem(&error)))?;
        for (name, value) in &left {
            if depth(value.get()) > MAX_DEPTH {
                let problem = format_args!("is nested too deep, at most {MAX_DEPTH} levels are read");
                return Err(ApiError::invalid(shown(name), problem));
            }
        }
        Ok(Self { left })
    }

    /// Whether a field is there and not `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        let mut left = self.left.iter();
        left.any(|(known, value)| known == name && value.get() != "null")
    }

    /// A field's JSON text, which stays; `null` counts as absent.
    pub(super) fn peek(&self, name: &str) -> Option<&'a RawValue> {
        let mut left = self.left.iter();
        let (_, value) = left.find(|(known, value)| known == name && value.get() != "null")?;
        Some(value)
    }

    /// Takes a field as its JSON text; `null` counts as absent.
    pub(super) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        #[cfg(test)]
        asked::note(name);
        let place = self.left.iter().position(|(known, _)| known == name)?;
        let (_, value) = self.left.swap_remove(place);
        (value.get() != "null").then_some(value)
    }

    /// Takes a field as a `T`; `null` counts as absent.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.raw(name).map(|value| parse(name, value)).transpose()
    }

    /// Takes a whole number within bounds.
    pub(super) fn integer(&mut self, name: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        match serde_json::from_str::<i64>(value.get()) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) => {
                let problem = format!(
                    "is {}, it must be a whole number from {low} to {high}",
                    shown(value.get())
                );
                Err(ApiError::invalid(name, problem))
            }
        }
    }

    /// Takes a number within bounds that `takes` decides and `right` names.
    pub(super) fn number(
        &mut self,
        name: &str,
        takes: impl Fn(f64) -> bool,
        right: &str,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.raw(name) else {
            return Ok(None);
        };
        match serde_json::from_str::<f64>(value.get()) {
            Ok(number) if takes(number) => Ok(Some(number)),
            Ok(_) | Err(_) => {
                let problem = format!("is {}, it must be a number {right}", shown(value.get()));
                Err(ApiError::invalid(name, problem))
            }
        }
    }

    /// Takes a boolean; false if absent.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.take(name)?.unwrap_or(false))
    }

    /// Names of the fields that nobody asked for.
    pub(super) fn rest(&self) -> impl Iterator<Item = &str> {
        self.left.iter().map(|(name, _)| name.as_str())
    }
}

/// Reads one value; errors name the element within it.
pub(super) fn parse<T: DeserializeOwned>(field: &str, value: &RawValue) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_str(value.get());
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let field = match path.as_str() {
            "." => field.to_owned(),
            element if element.starts_with('[') => format!("{field}{element}"),
            member => format!("{field}.{member}"),
        };
        ApiError::invalid(brief(&field), without_place(&error.inner().to_string()))
    })
}

/// Reads one object. Without this an array of the members' values would be one too.
pub(super) fn parse_object<T: DeserializeOwned>(field: &str, value: &RawValue) -> Result<T, ApiError> {
    if value.get().starts_with('[') {
        return Err(ApiError::invalid(
            field,
            "invalid type: array, expected an object",
        ));
    }
    parse(field, value)
}

/// The start of a text that a client sent, short enough for an error.
pub(super) fn shown(text: &str) -> String {
    let mut start: String = text.chars().take(MAX_SHOWN).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

fn body_problem(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => format!("the body: {}", without_place(&error.to_string())),
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => format!("the body is not JSON: {error}"),
    }
}

/// Without the line and column that serde_json appends: they count from the field's start, not the body's. Brief: it may
/// repeat what the client sent.
pub(super) fn without_place(message: &str) -> String {
    brief(message.rfind(" at line ").map_or(message, |end| &message[..end]))
}

/// A text of ours, without the middle of what a client sent where that is long.
fn brief(text: &str) -> String {
    const END: usize = 200;
    let characters = text.chars().count();
    if characters <= 2 * END {
        return text.to_owned();
    }
    let (start, end) = (text.chars().take(END), text.chars().skip(characters - END));
    start.chain(std::iter::once('…')).chain(end).collect()
}

/// How deep arrays and objects nest in a valid JSON text.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Vec<(String, &'de RawValue)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if fields.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format_args!(
                    "field {:?} is there twice",
                    shown(&name)
                )));
            }
            if fields.len() == MAX_FIELDS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_FIELDS} fields, the most that are read"
                )));
            }
            fields.push((name, map.next_value()?));
        }
        Ok(fields)
    }
}

/// Names of the fields that parsers asked for on this thread: what the OpenAPI document is compared with.
#[cfg(test)]
pub(super) mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static NAMES: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(super) fn note(name: &str) {
        NAMES.with_borrow_mut(|names| names.insert(name.to_owned()));
    }

    /// The names since the last call.
    pub(in crate::http) fn take() -> BTreeSet<String> {
        NAMES.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &str) -> String {
        Fields::read(body.as_bytes()).unwrap_err().message
    }

    #[test]
    fn a_body_must_be_one_object() {
        assert_eq!(
            error("{\"a\": 1"),
            "the body is not JSON: EOF while parsing an object at line 1 column 7"
        );
        assert_eq!(
            error(""),
            "the body is not JSON: EOF while parsing a value at line 1 column 0"
        );
        assert_eq!(
            error("[1]"),
            "the body: invalid type: sequence, expected a JSON object"
        );
        assert_eq!(
            error("{} {}"),
            "the body is not JSON: trailing characters at line 1 column 4"
        );
        assert_eq!(
            error("{\"a\": 1, \"a\": 2}"),
            "the body: field \"a\" is there twice"
        );
        let many: Vec<_> = (0..=MAX_FIELDS).map(|index| format!("\"f{index}\": 0")).collect();
        assert_eq!(
            error(&format!("{{{}}}", many.join(","))),
            "the body: more than 256 fields, the most that are read"
        );
        assert!(Fields::read(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn depth_is_bounded_in_every_field() {
        let nested = |levels: usize| format!("{{\"x\": {}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(Fields::read(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(
            error(&nested(MAX_DEPTH + 1)),
            "x: is nested too deep, at most 127 levels are read"
        );
        assert!(Fields::read(nested(200_000).as_bytes()).is_err());
        assert_eq!(depth(r#"{"a\"[[[": ["{\\", [1]]}"#), 3);
    }

    #[test]
    fn errors_name_the_element() {
        let body = br#"{"stop": ["a", 5], "deep": {"a": [{"b": 1}]}, "none": null}"#;
        let mut fields = Fields::read(body).unwrap();
        let error = fields.take::<Vec<String>>("stop").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stop[1]"));
        assert_eq!(
            error.message,
            "stop[1]: invalid type: integer `5`, expected a string"
        );
        type Deep = std::collections::BTreeMap<String, Vec<std::collections::BTreeMap<String, String>>>;
        let error = fields.take::<Deep>("deep").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("deep.a[0].b"));
        assert_eq!(fields.take::<String>("none").unwrap(), None);
        assert_eq!(fields.take::<String>("absent").unwrap(), None);
        assert_eq!(fields.rest().count(), 0);
    }

    #[test]
    fn errors_are_brief() {
        let body = format!("{{\"a\": {:?}}}", "x".repeat(1 << 20));
        let mut fields = Fields::read(body.as_bytes()).unwrap();
        let message = fields.take::<bool>("a").unwrap_err().message;
        assert!(message.starts_with("a: invalid type: string \"xxx"), "{message}");
        assert!(message.ends_with("xxx\", expected a boolean"), "{message}");
        assert_eq!(message.chars().count(), "a: ".len() + 401);
    }

    #[test]
    fn numbers_are_bounded_and_shown() {
        let body = br#"{"a": -1, "b": 1e400, "c": 3.5, "d": "7", "e": 99999999999999999999, "f": 4}"#;
        let mut fields = Fields::read(body).unwrap();
        let mut message = |name| fields.integer(name, 1, 9).unwrap_err().message;
        assert_eq!(message("a"), "a: is -1, it must be a whole number from 1 to 9");
        assert_eq!(message("b"), "b: is 1e400, it must be a whole number from 1 to 9");
        assert_eq!(message("c"), "c: is 3.5, it must be a whole number from 1 to 9");
        assert_eq!(message("d"), "d: is \"7\", it must be a whole number from 1 to 9");
        assert_eq!(
            message("e"),
            "e: is 99999999999999999999, it must be a whole number from 1 to 9"
        );
        assert_eq!(fields.integer("f", 1, 9).unwrap(), Some(4));
    }
}
