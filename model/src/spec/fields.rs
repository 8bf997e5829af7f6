//! Reads one JSON object key by key and keeps every fault, so that a bad file is refused once with all its faults.
//!
//! No meaning of any key here: the caller names the key and the values it may have.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Longest value shown in a fault, in characters.
const SHOWN_CHARS: usize = 60;
/// Most unknown keys remembered for the log.
const MAX_UNKNOWN: usize = 64;

/// One thing wrong with a model's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, with the objects it lies in: `moe.num_experts`.
    pub key: String,
    /// The value as JSON, shortened; `None` when the key is missing.
    pub found: Option<String>,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(found) => write!(f, "{} is {found}, expected {}", self.key, self.expected),
            None => write!(f, "{} is missing, expected {}", self.key, self.expected),
        }
    }
}

/// What reading an object brought up besides its values.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) faults: Vec<Fault>,
    pub(super) unknown: Vec<String>,
}

impl Report {
    /// Notes a fault of a value that is there.
    pub(super) fn refuse(
        &mut self,
        key: impl Into<String>,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) {
        let found = shorten(&found.to_string());
        self.faults.push(Fault {
            key: key.into(),
            found: Some(found),
            expected: expected.into(),
        });
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= SHOWN_CHARS {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS).chain("...".chars()).collect()
}

/// An object of the parameters; `path` is empty or ends with a dot.
pub(super) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &str, map: &'a Map<String, Value>) -> Self {
        Self {
            path: path.to_owned(),
            map,
            read: BTreeSet::new(),
        }
    }

    /// The key with the objects it lies in.
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The value, unless the key is missing or null.
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.insert(key);
        self.value(key)
    }

    /// The value as it is, unless the key is missing or null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there with a value other than null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Reads a value; a missing key or one that `parse` gives nothing for is a fault.
    fn required<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        expected: &dyn Fn() -> String,
        parse: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.get(key) else {
            report.faults.push(Fault {
                key: self.key(key),
                found: None,
                expected: expected(),
            });
            return None;
        };
        let parsed = parse(value);
        if parsed.is_none() {
            report.refuse(self.key(key), value, expected());
        }
        parsed
    }

    /// A whole number in a range.
    pub(super) fn count(
        &mut self,
        report: &mut Report,
        key: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        self.multiple(report, key, 1, range)
    }

    /// A whole number in a range that `factor` divides.
    pub(super) fn multiple(
        &mut self,
        report: &mut Report,
        key: &'static str,
        factor: u32,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let (low, high) = (*range.start(), *range.end());
        let expected = || {
            let what = if factor == 1 {
                "a whole number".to_owned()
            } else {
                format!("a multiple of {factor}")
            };
            if low == high {
                low.to_string()
            } else {
                format!("{what} from {low} to {high}")
            }
        };
        self.required(report, key, &expected, |value| {
            let number = u32::try_from(value.as_u64()?).ok()?;
            (range.contains(&number) && number % factor == 0).then_some(number)
        })
    }

    /// A number in a range.
    pub(super) fn real(
        &mut self,
        report: &mut Report,
        key: &'static str,
        range: RangeInclusive<f64>,
    ) -> Option<f64> {
        let expected = || match (range.start(), range.end()) {
            (low, high) if low == high => low.to_string(),
            (low, high) => format!("a number from {low} to {high}"),
        };
        self.required(report, key, &expected, |value| {
            value.as_f64().filter(|number| range.contains(number))
        })
    }

    /// A key that must have one value.
    pub(super) fn fixed(&mut self, report: &mut Report, key: &'static str, right: &Value, why: &str) {
        let expected = || format!("{right}: {why}");
        self.required(report, key, &expected, |value| (value == right).then_some(()));
    }

    /// A key that must have one value where it is there.
    pub(super) fn fixed_if_there(
        &mut self,
        report: &mut Report,
        key: &'static str,
        right: &Value,
        why: &str,
    ) {
        self.read.insert(key);
        if self.has(key) {
            self.fixed(report, key, right, why);
        }
    }

    /// True or false; a missing key is `default`.
    pub(super) fn flag(&mut self, report: &mut Report, key: &'static str, default: bool) -> Option<bool> {
        self.read.insert(key);
        if !self.has(key) {
            return Some(default);
        }
        self.required(report, key, &|| "true or false".to_owned(), Value::as_bool)
    }

    /// A number in a range; a missing key is `default`.
    pub(super) fn real_or(
        &mut self,
        report: &mut Report,
        key: &'static str,
        range: RangeInclusive<f64>,
        default: f64,
    ) -> Option<f64> {
        self.read.insert(key);
        if !self.has(key) {
            return Some(default);
        }
        self.real(report, key, range)
    }

    /// A text; a missing key is no fault.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// An object; a missing key is no fault, another type is.
    pub(super) fn object(&mut self, report: &mut Report, key: &'static str) -> Option<Fields<'a>> {
        let value = self.get(key)?;
        let path = format!("{}.", self.key(key));
        match value.as_object() {
            Some(map) => Some(Fields::new(&path, map)),
            None => {
                report.refuse(self.key(key), value, "an object");
                None
            }
        }
    }

    /// An object that must be there.
    pub(super) fn required_object(
        &mut self,
        report: &mut Report,
        key: &'static str,
        expected: &str,
    ) -> Option<Fields<'a>> {
        self.required(report, key, &|| expected.to_owned(), Value::as_object)
            .map(|map| Fields::new(&format!("{}.", self.key(key)), map))
    }

    /// The only member of an object whose keys are free, which must be an object itself.
    pub(super) fn only_member(&mut self, report: &mut Report, expected: &str) -> Option<Fields<'a>> {
        let mut members = self.map.iter();
        if let (Some((name, value)), None) = (members.next(), members.next())
            && let Some(map) = value.as_object()
        {
            return Some(Fields::new(&format!("{}{name}.", self.path), map));
        }
        let names: Vec<&str> = self.map.keys().map(String::as_str).collect();
        report.refuse(
            self.path.trim_end_matches('.'),
            format!("{{{}}}", names.join(", ")),
            expected,
        );
        None
    }

    /// Keys that are known and say nothing that is used.
    pub(super) fn ignore(&mut self, keys: &[&'static str]) {
        self.read.extend(keys);
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self, report: &mut Report) {
        for key in self.map.keys().filter(|key| !self.read.contains(key.as_str())) {
            if report.unknown.len() == MAX_UNKNOWN {
                return;
            }
            report.unknown.push(shorten(&self.key(key)));
        }
    }
}
