//! The fields that hold an answer to a shape: OpenAI's `response_format` and `text.format`, vLLM's `guided_*` and
//! `structured_outputs`.
//!
//! A request has at most one of them. Whether a schema is supported shows when its grammar is compiled.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::fields::{Fields, parse_object, shown};
use crate::text::constraint::{Schema, Shape, ShapeError};

/// A shape, and the field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Structured {
    pub(super) field: &'static str,
    pub(super) shape: Shape,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<JsonSchema>,
}

/// Name, description and `strict` change nothing: an answer is always held to the schema.
#[derive(Deserialize)]
struct JsonSchema {
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
    schema: Option<Box<RawValue>>,
}

/// What responses say of their text; its verbosity changes nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<Box<RawValue>>,
    #[serde(rename = "verbosity")]
    _verbosity: Option<String>,
}

/// A format of responses: the parts of a schema stand beside its type.
#[derive(Deserialize)]
struct TextFormat {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
    schema: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Box<RawValue>>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
}

/// Takes the fields.
pub(super) fn take(fields: &mut Fields<'_>) -> Result<Option<Structured>, ApiError> {
    let mut found = Vec::new();
    if let Some(raw) = fields.raw("response_format") {
        found.extend(response_format(parse_object("response_format", raw)?)?);
    }
    if let Some(raw) = fields.raw("guided_json") {
        found.push(of_json("guided_json", raw)?);
    }
    if let Some(regex) = fields.take::<String>("guided_regex")? {
        found.push(shaped("guided_regex", Shape::regex(&regex))?);
    }
    if let Some(choices) = fields.take("guided_choice")? {
        found.push(shaped("guided_choice", Shape::choice(choices))?);
    }
    if let Some(raw) = fields.raw("structured_outputs") {
        let asked: StructuredOutputs = parse_object("structured_outputs", raw)?;
        if let Some(json) = asked.json {
            found.push(of_json("structured_outputs.json", &json)?);
        }
        if asked.json_object == Some(true) {
            found.push(any_object("structured_outputs.json_object"));
        }
        if let Some(regex) = asked.regex {
            found.push(shaped("structured_outputs.regex", Shape::regex(&regex))?);
        }
        if let Some(choices) = asked.choice {
            found.push(shaped("structured_outputs.choice", Shape::choice(choices))?);
        }
    }
    at_most_one(found)
}

/// Takes `text` beside what other fields ask for; also gives its format as it was sent.
pub(super) fn take_text(
    fields: &mut Fields<'_>,
    other: Option<Structured>,
) -> Result<(Option<Structured>, Option<Box<RawValue>>), ApiError> {
    const FORMAT: &str = "text.format";
    let text = fields.raw("text").map(|raw| parse_object::<Text>("text", raw));
    let Some(raw) = text.transpose()?.and_then(|text| text.format) else {
        return Ok((other, None));
    };
    let format: TextFormat = parse_object(FORMAT, &raw)?;
    let schema_field = "text.format.schema";
    let schema = read_schema(schema_field, format.schema)?.ok_or(schema_field);
    let own = formatted((FORMAT, "text.format.type"), &format.kind, schema)?;
    let structured = at_most_one(other.into_iter().chain(own))?;
    Ok((structured, Some(raw)))
}

fn at_most_one(found: impl IntoIterator<Item = Structured>) -> Result<Option<Structured>, ApiError> {
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => {
            let problem = format!("cannot be asked for beside {}", first.field);
            Err(ApiError::invalid(second.field, problem))
        }
        (first, _) => Ok(first),
    }
}

fn response_format(format: ResponseFormat) -> Result<Option<Structured>, ApiError> {
    let schema = match format.json_schema {
        None => Err("response_format.json_schema"),
        Some(named) => {
            let field = "response_format.json_schema.schema";
            read_schema(field, named.schema)?.ok_or(field)
        }
    };
    formatted(("response_format", "response_format.type"), &format.kind, schema)
}

/// A schema is read whatever the format's kind: what is wrong with it is told.
fn read_schema(field: &'static str, schema: Option<Box<RawValue>>) -> Result<Option<Structured>, ApiError> {
    let read = |raw: Box<RawValue>| shaped(field, Schema::read(&raw).map(Shape::Json));
    schema.map(read).transpose()
}

fn no_schema(field: &str) -> ApiError {
    ApiError::invalid(field, "is missing, a format of type \"json_schema\" has one")
}

/// What a format of this kind asks for, with the names of it and of its kind, and its schema or the name of what is
/// missing.
fn formatted(
    (field, kind_field): (&'static str, &'static str),
    kind: &str,
    schema: Result<Structured, &'static str>,
) -> Result<Option<Structured>, ApiError> {
    match kind {
        "text" => Ok(None),
        "json_object" => Ok(Some(any_object(field))),
        "json_schema" => schema.map(Some).map_err(no_schema),
        other => {
            let problem = format!(
                "{:?} is not supported, use \"text\", \"json_object\" or \"json_schema\"",
                shown(other)
            );
            Err(ApiError::invalid(kind_field, problem))
        }
    }
}

/// A schema, or a text of one as vLLM takes it.
fn of_json(field: &'static str, raw: &RawValue) -> Result<Structured, ApiError> {
    let schema = match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => RawValue::from_string(text)
            .map_err(|error| ShapeError::Json(error.to_string()))
            .and_then(|raw| Schema::read(&raw)),
        Err(_) => Schema::read(raw),
    };
    shaped(field, schema.map(Shape::Json))
}

fn any_object(field: &'static str) -> Structured {
    Structured {
        field,
        shape: Shape::Json(Schema::object()),
    }
}

fn shaped(field: &'static str, shape: Result<Shape, ShapeError>) -> Result<Structured, ApiError> {
    shape
        .map(|shape| Structured { field, shape })
        .map_err(|error| ApiError::invalid(field, error))
}
