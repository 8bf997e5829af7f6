//! What an answer must be, written as a grammar.
//!
//! An answer is content, calls, or both: each may be free, forbidden or held to something, and reasoning may come first.
//! JSON has `", "` and `": "` and no other white space, so that no answer runs on in it. Source of the notation:
//! llguidance's `docs/syntax.md`; of calls and reasoning, the v13 format of [`super::chat`].
//!
//! Absent: compilation, which says whether a schema or an expression is supported.

use std::fmt::Write;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tramontane_model::grammar::{Grammar, GrammarError};

use super::json;
use super::tekken::Tokenizer;

/// Deepest nesting of a schema's JSON, and of the groups of a regular expression.
pub const MAX_NESTING: usize = 64;
/// Most patterns of properties in a schema: each is compared with each.
pub const MAX_PATTERN_PROPERTIES: usize = 32;
/// Longest regular expression, in bytes.
pub const MAX_REGEX_BYTES: usize = 8 << 10;
/// Most choices.
pub const MAX_CHOICES: usize = 1024;

/// What content is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// JSON of a schema.
    Json(Schema),
    /// A text that a regular expression matches whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A JSON schema, with what it says of white space.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema(Value);

/// What an answer's content may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Anything.
    Free,
    /// Nothing: there are calls.
    None,
    /// A text of a shape.
    Shaped(Shape),
}

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Callable {
    /// Its name.
    pub name: String,
    /// The schema of its arguments; without one they are what the model writes.
    pub arguments: Option<Schema>,
}

/// Whether reasoning may stand before the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reasoning {
    /// No.
    None,
    /// It may.
    May,
    /// The prompt ends within it.
    Open,
}

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// Its content.
    pub content: Content,
    /// What it may call.
    pub calls: Vec<Callable>,
    /// Whether it may have several calls.
    pub parallel: bool,
    /// What comes first.
    pub reasoning: Reasoning,
}

/// A schema or an expression that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// No JSON, or with numbers beyond any type.
    #[error("is not JSON: {0}")]
    Json(String),
    /// A schema of another type.
    #[error("must be a JSON schema, which is an object")]
    NotASchema,
    /// Nested too deep.
    #[error("is nested deeper than {MAX_NESTING} levels")]
    Nesting,
    /// Too many patterns of properties.
    #[error("has {0} patternProperties, at most {MAX_PATTERN_PROPERTIES} are allowed")]
    PatternProperties(usize),
    /// Too long.
    #[error("has {found} bytes, at most {limit} are allowed")]
    TooLong {
        /// How many bytes it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
    /// An expression that ends within an escape.
    #[error("ends with a single backslash")]
    Backslash,
    /// No choices, or too many.
    #[error("has {0} choices, it must have 1 to {MAX_CHOICES}")]
    Choices(usize),
}

impl Schema {
    /// Reads a schema.
    pub fn read(raw: &RawValue) -> Result<Self, ShapeError> {
        let limit = tramontane_model::grammar::MAX_GRAMMAR_BYTES;
        let found = raw.get().len();
        if found > limit {
            return Err(ShapeError::TooLong { found, limit });
        }
        let schema = serde_json::from_str(raw.get()).map_err(|error| ShapeError::Json(error.to_string()))?;
        Self::new(schema)
    }

    /// Any object.
    pub fn object() -> Self {
        Self::with_options(json!({"type": "object"}))
    }

    /// The schema of a function's arguments, which are an object whatever it says.
    pub fn arguments(raw: Option<&RawValue>) -> Result<Self, ShapeError> {
        let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
            return Ok(Self::object());
        };
        let mut schema = Self::read(raw)?;
        if let Value::Object(members) = &mut schema.0 {
            members.entry("type").or_insert_with(|| json!("object"));
        }
        Ok(schema)
    }

    fn new(schema: Value) -> Result<Self, ShapeError> {
        if depth(&schema) > MAX_NESTING {
            return Err(ShapeError::Nesting);
        }
        if !schema.is_object() {
            return Err(ShapeError::NotASchema);
        }
        let patterns = pattern_properties(&schema);
        if patterns > MAX_PATTERN_PROPERTIES {
            return Err(ShapeError::PatternProperties(patterns));
        }
        Ok(Self::with_options(schema))
    }

    /// Says in the schema what white space there is, in place of what the client may say there.
    fn with_options(mut schema: Value) -> Self {
        schema["x-guidance"] =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        Self(schema)
    }
}

/// How many patterns of properties there are, at all places.
fn pattern_properties(value: &Value) -> usize {
    match value {
        Value::Array(elements) => elements.iter().map(pattern_properties).sum(),
        Value::Object(members) => {
            let own = members.get("patternProperties").and_then(Value::as_object);
            let inner: usize = members.values().map(pattern_properties).sum();
            own.map_or(0, serde_json::Map::len) + inner
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(elements) => elements.iter().map(depth).max(),
        Value::Object(members) => members.values().map(depth).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    };
    1 + inner.unwrap_or(0)
}

impl Shape {
    /// A regular expression; it matches the whole text, with or without `^` and `$` around it.
    pub fn regex(text: &str) -> Result<Self, ShapeError> {
        let found = text.len();
        if found > MAX_REGEX_BYTES {
            let limit = MAX_REGEX_BYTES;
            return Err(ShapeError::TooLong { found, limit });
        }
        let mut escaped = false;
        let mut ends_anchored = false;
        let (mut nesting, mut deepest) = (0_usize, 0);
        for character in text.chars() {
            ends_anchored = character == '$' && !escaped;
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '(' => {
                    nesting += 1;
                    deepest = deepest.max(nesting);
                }
                ')' => nesting = nesting.saturating_sub(1),
                _ => {}
            }
        }
        if escaped {
            return Err(ShapeError::Backslash);
        }
        if deepest > MAX_NESTING {
            return Err(ShapeError::Nesting);
        }
        // Anchors of one alternative are not the whole's.
        let whole = |text: &str| !text.contains('|');
        let text = match text.strip_prefix('^') {
            Some(rest) if whole(rest) => rest,
            Some(_) | None => text,
        };
        let text = match text.strip_suffix('$') {
            Some(rest) if ends_anchored && whole(rest) => rest,
            Some(_) | None => text,
        };
        Ok(Self::Regex(text.to_owned()))
    }

    /// One of some texts.
    pub fn choice(texts: Vec<String>) -> Result<Self, ShapeError> {
        match texts.len() {
            1..=MAX_CHOICES => Ok(Self::Choice(texts)),
            found => Err(ShapeError::Choices(found)),
        }
    }

    /// The grammar of a text of this shape and nothing else.
    pub fn alone(&self) -> Result<Grammar, GrammarError> {
        let mut text = String::from("start: content\n");
        self.write(&mut text);
        Grammar::new(text)
    }

    fn write(&self, text: &mut String) {
        match self {
            Self::Json(schema) => rule(text, "content", |text| schema.write(text)),
            // An empty literal is a rule's, no expression's.
            Self::Regex(regex) if regex.is_empty() => rule(text, "content", |text| text.push_str("\"\"")),
            Self::Regex(regex) => rule(text, "content", |text| {
                let _ = write!(text, "/{}/", llguidance_regex(regex));
            }),
            Self::Choice(choices) => rule(text, "content", |text| {
                for (index, choice) in choices.iter().enumerate() {
                    text.push_str(if index == 0 { "" } else { " | " });
                    literal(choice, text);
                }
            }),
        }
    }
}

impl Schema {
    /// The grammar of JSON of this schema and nothing else.
    pub fn alone(&self) -> Result<Grammar, GrammarError> {
        Shape::Json(self.clone()).alone()
    }

    fn write(&self, text: &mut String) {
        let _ = write!(text, "%json {}", self.0);
    }
}

impl Constraint {
    /// The grammar of such an answer; none if it may be anything.
    pub fn grammar(&self, tokenizer: &Tokenizer) -> Result<Option<Grammar>, GrammarError> {
        let is_free = self.content == Content::Free && self.calls.iter().all(|call| call.arguments.is_none());
        if is_free {
            return Ok(None);
        }
        let markers = tokenizer.markers();
        let mut text = String::new();
        let think = markers.think.filter(|_| self.reasoning != Reasoning::None);
        match (think, self.reasoning) {
            (Some(think), Reasoning::Open) => {
                let _ = writeln!(text, "start: ANY? <[{}]> answer", think.end);
            }
            (Some(think), Reasoning::May | Reasoning::None) => {
                let _ = writeln!(
                    text,
                    "start: reasoning? answer\nreasoning: <[{}]> ANY? <[{}]>",
                    think.begin, think.end
                );
            }
            (None, _) => text.push_str("start: answer\n"),
        }
        text.push_str("ANY: /(?s:.)+/\n");
        let calls = (!self.calls.is_empty()).then_some("calls");
        let content = match &self.content {
            Content::Free => Some("ANY"),
            Content::Shaped(_) => Some("content"),
            Content::None => None,
        };
        text.push_str("answer: ");
        text.push_str(&match (content, calls) {
            (Some("ANY"), Some(calls)) => format!("ANY? {calls}?"),
            (Some("ANY"), None) => "ANY?".to_owned(),
            (Some(content), Some(calls)) => format!("{content} | {calls}"),
            (Some(one), None) | (None, Some(one)) => one.to_owned(),
            (None, None) => "\"\"".to_owned(),
        });
        text.push('\n');
        if let Content::Shaped(shape) = &self.content {
            shape.write(&mut text);
        }
        if calls.is_some() {
            self.write_calls(&mut text, (markers.tool_calls, markers.args));
        }
        Grammar::new(text).map(Some)
    }

    fn write_calls(&self, text: &mut String, (begin, args): (u32, u32)) {
        text.push_str(if self.parallel {
            "calls: call+\n"
        } else {
            "calls: call\n"
        });
        rule(text, "call", |text| {
            for index in 0..self.calls.len() {
                let _ = write!(text, "{}call_{index}", if index == 0 { "" } else { " | " });
            }
        });
        for (index, call) in self.calls.iter().enumerate() {
            let _ = write!(text, "call_{index}: <[{begin}]> ");
            literal(&call.name, text);
            let _ = write!(text, " <[{args}]> ");
            match &call.arguments {
                Some(schema) => schema.write(text),
                None => text.push_str("ANY?"),
            }
            text.push('\n');
        }
    }
}

fn rule(text: &mut String, name: &str, body: impl FnOnce(&mut String)) {
    text.push_str(name);
    text.push_str(": ");
    body(text);
    text.push('\n');
}

/// A text as Lark quotes it: as JSON does, and without the delete character as it is.
fn literal(text: &str, out: &mut String) {
    let mut quoted = String::new();
    json::render_string(text, &mut quoted);
    out.push_str(&quoted.replace('\u{7f}', "\\u007f"));
}

/// An expression as Lark quotes it, between slashes.
fn llguidance_regex(regex: &str) -> String {
    let mut quoted = String::with_capacity(regex.len());
    let mut escaped = false;
    for character in regex.chars() {
        match character {
            '/' if !escaped => quoted.push_str("\\/"),
            '\n' if escaped => quoted.push('n'),
            '\n' => quoted.push_str("\\n"),
            '\r' if escaped => quoted.push('r'),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
        escaped = character == '\\' && !escaped;
    }
    quoted
}
