//! JSON as the model was trained to see it: parsed and rendered again as Python's `json` does.
//!
//! `serde_json` would change what it reads (integers past 64 bits, `-0`, the last digit of some
//! floats), and each changed character is a changed token. Source of the rules: RFC 8259, and
//! CPython's `json.loads` and `json.dumps(value, ensure_ascii=False)`, which beyond the RFC read
//! `NaN`, `Infinity` and `-Infinity`, and of equal keys keep the last value at the first's place.

mod parse;

use std::fmt::Write;

/// Deepest nesting of arrays and objects.
pub(super) const MAX_DEPTH: usize = 128;

/// A JSON value. Numbers keep what Python keeps of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// The digits, with a sign if negative.
    Integer(String),
    Float(f64),
    String(String),
    Array(Vec<Json>),
    /// In the order of first appearance, keys unique.
    Object(Vec<(String, Json)>),
}

/// Why a text is not JSON that can be read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum JsonError {
    #[error("not JSON at byte {at}")]
    Syntax { at: usize },
    #[error("nested deeper than {MAX_DEPTH} levels at byte {at}")]
    TooDeep { at: usize },
}

impl Json {
    /// Appends the value to `out`, with `", "` and `": "` between elements.
    pub(super) fn render(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(true) => out.push_str("true"),
            Json::Bool(false) => out.push_str("false"),
            Json::Integer(digits) => out.push_str(digits),
            Json::Float(value) => render_float(*value, out),
            Json::String(text) => render_string(text, out),
            Json::Array(elements) => {
                out.push('[');
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    element.render(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    render_string(key, out);
                    out.push_str(": ");
                    value.render(out);
                }
                out.push('}');
            }
        }
    }
}

/// Appends `text` as a JSON string: only quotes, backslashes and controls below U+0020 are escaped.
pub(super) fn render_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' => {
                let code = u32::from(character);
                out.push_str("\\u00");
                out.push(char::from_digit(code >> 4, 16).unwrap_or('0'));
                out.push(char::from_digit(code & 15, 16).unwrap_or('0'));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// As Python's `repr(float)`: the fewest digits that read back, an exponent below 1e-4 and from 1e16.
fn render_float(value: f64, out: &mut String) {
    if !value.is_finite() {
        let name = match (value.is_nan(), value > 0.0) {
            (true, _) => "NaN",
            (false, true) => "Infinity",
            (false, false) => "-Infinity",
        };
        out.push_str(name);
        return;
    }
    let scientific = format!("{value:e}");
    let exponent: i32 = scientific
        .rsplit('e')
        .next()
        .and_then(|e| e.parse().ok())
        .unwrap_or(0);
    // Writing to a String cannot fail.
    let _ = if (-4..16).contains(&exponent) {
        write!(out, "{value:?}")
    } else {
        let mantissa = scientific.split('e').next().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs())
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn again(text: &str) -> String {
        let mut out = String::new();
        Json::parse(text)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .render(&mut out);
        out
    }

    #[test]
    fn renders_what_python_renders() {
        // Right sides recorded from CPython 3.11: json.dumps(json.loads(left), ensure_ascii=False).
        let cases = [
            (
                r#"{"a":1,"b":[1,2 , 3],"c":{}}"#,
                r#"{"a": 1, "b": [1, 2, 3], "c": {}}"#,
            ),
            ("[ ]", "[]"),
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1.0", "1.0"),
            ("2.50e-3", "0.0025"),
            ("1e5", "100000.0"),
            ("1E16", "1e+16"),
            ("9007199254740993.0", "9007199254740992.0"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1.5e300", "1.5e+300"),
            ("5e-324", "5e-324"),
            ("1e400", "Infinity"),
            ("[NaN, -Infinity]", "[NaN, -Infinity]"),
            (r#"{"a": 1, "b": 2, "a": 3}"#, r#"{"a": 3, "b": 2}"#),
            (
                r#""\u00e9\ud83d\ude00\/\b\f\u001f\u007f""#,
                "\"é😀/\\b\\f\\u001f\u{7f}\"",
            ),
            (r#""\ud800x\udc00""#, "\"\u{fffd}x\u{fffd}\""),
            (r#""\ud800\u0041""#, "\"\u{fffd}A\""),
            ("\t\n\r null ", "null"),
        ];
        for (text, expected) in cases {
            assert_eq!(again(text), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_python_refuses() {
        let cases = [
            "",
            " ",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "[1,]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{,}",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u123",
            "\"\n\"",
            "nul",
            "True",
            "[",
            "{",
            "{\"a\":1",
            "1 2",
            "'a'",
            "-I",
            "\u{feff}1",
            "\u{a0}1",
        ];
        for text in cases {
            assert!(
                matches!(Json::parse(text), Err(JsonError::Syntax { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::parse(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(
            Json::parse(&nested(MAX_DEPTH + 1)),
            Err(JsonError::TooDeep { at: MAX_DEPTH })
        );
        let endless = "{\"a\":".repeat(1_000_000);
        assert!(matches!(Json::parse(&endless), Err(JsonError::TooDeep { .. })));
    }
    proptest! {
        #[test]
        fn what_reads_renders_to_what_reads_the_same(text in r#"[\[\]{}",:0-9aEeu+.\\/ nul-]{0,24}"#) {
            if let Ok(value) = Json::parse(&text) {
                let mut rendered = String::new();
                value.render(&mut rendered);
                prop_assert_eq!(again(&rendered), rendered);
            }
        }

        #[test]
        fn any_string_survives(text in any::<String>()) {
            let mut rendered = String::new();
            render_string(&text, &mut rendered);
            prop_assert_eq!(Json::parse(&rendered), Ok(Json::String(text.clone())));
            prop_assert_eq!(serde_json::from_str::<String>(&rendered).unwrap(), text);
        }
    }
}
