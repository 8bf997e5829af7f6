//! Splits text into the pieces that are encoded apart, by the tokenizer's regular expression.
//!
//! Tekken's pattern ends in `\s+(?!\S)|\s+`: a run of white space gives its last character to the word
//! after it. That look-ahead is the one part a linear-time matcher cannot do, and a backtracking one
//! fails on a megabyte of spaces. So it is taken out of the pattern and done here; a pattern with
//! other look-arounds is left as it is to the backtracking matcher, which gives up with an error.

use fancy_regex::Regex;

use super::error::{EncodeError, TokenizerFault};

/// Longest splitting pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;

const SPACE_BEFORE_WORD: &str = r"|\s+(?!\S)|\s+";

/// A compiled splitting pattern.
///
/// **Invariant:** the pieces of a text are the text: none is lost between them.
pub(super) struct Splitter {
    regex: Regex,
    /// The group of the `\s+` that gives its last character to the next piece.
    generous_group: Option<usize>,
}

impl Splitter {
    pub(super) fn new(pattern: &str) -> Result<Self, TokenizerFault> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(TokenizerFault::PatternTooLong {
                bytes: pattern.len(),
                limit: MAX_PATTERN_BYTES,
            });
        }
        let compile = |pattern: &str| Regex::new(pattern).map_err(|e| TokenizerFault::Pattern(Box::new(e)));
        let before = pattern
            .strip_suffix(SPACE_BEFORE_WORD)
            .filter(|before| !before.ends_with('\\'));
        let Some(before) = before else {
            return Ok(Self {
                regex: compile(pattern)?,
                generous_group: None,
            });
        };
        // What is wrong with a pattern should be told of the pattern in the file.
        let regex = compile(&format!(r"{before}|(\s+)")).or_else(|_| compile(pattern))?;
        let generous_group = Some(regex.captures_len() - 1).filter(|_| regex.as_str() != pattern);
        Ok(Self {
            regex,
            generous_group,
        })
    }

    /// Calls `each` with the pieces of `text` in order; some may be empty.
    pub(super) fn split<'t>(&self, text: &'t str, mut each: impl FnMut(&'t [u8])) -> Result<(), EncodeError> {
        let mut given = 0;
        let mut at = 0;
        while at < text.len() {
            let fail = |source| EncodeError::Split { at, source };
            let Some(found) = self
                .regex
                .find_from_pos(text, at)
                .map_err(|e| fail(Box::new(e)))?
            else {
                break;
            };
            let end = self
                .end_of_piece(text, found.start(), found.end())
                .map_err(fail)?;
            // Tekken's pattern leaves no gaps; one that does must not lose text.
            each(&text.as_bytes()[given..found.start()]);
            each(&text.as_bytes()[found.start()..end]);
            given = end;
            // A pattern that matches nothing here must still go on.
            let next_character = at + text[at..].chars().next().map_or(1, char::len_utf8);
            at = end.max(next_character);
        }
        each(&text.as_bytes()[given..]);
        Ok(())
    }

    /// Where the piece matched at `start..end` ends, which is a character earlier for white space
    /// before a word.
    fn end_of_piece(&self, text: &str, start: usize, end: usize) -> Result<usize, Box<fancy_regex::Error>> {
        let Some(group) = self.generous_group else {
            return Ok(end);
        };
        let Some((last, _)) = text[start..end].char_indices().next_back() else {
            return Ok(end);
        };
        let is_space = |text: &str| text.chars().all(char::is_whitespace);
        if last == 0 || end == text.len() || !is_space(&text[start..end]) {
            return Ok(end);
        }
        let captures = self.regex.captures_from_pos(text, start)?;
        let generous = captures.is_some_and(|captures| captures.get(group).is_some());
        Ok(if generous { start + last } else { end })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const TEKKEN: &str = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let keep = |piece: &[u8]| pieces.push(String::from_utf8(piece.to_vec()).unwrap());
        splitter.split(text, keep).unwrap();
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    static SPLITTER: LazyLock<Splitter> = LazyLock::new(|| Splitter::new(TEKKEN).unwrap());
    static PATTERN: LazyLock<Regex> = LazyLock::new(|| Regex::new(TEKKEN).unwrap());

    /// What the pattern itself says, by the backtracking matcher.
    fn matches(text: &str) -> Vec<String> {
        PATTERN
            .find_iter(text)
            .map(|found| found.unwrap().as_str().to_owned())
            .collect()
    }

    #[test]
    fn white_space_gives_its_last_character_to_the_word_after_it() {
        assert!(SPLITTER.generous_group.is_some());
        assert_eq!(
            pieces(&SPLITTER, "a   b\t\t!  \n  c  "),
            ["a", "  ", " b", "\t", "\t", "!", "  \n", " ", " c", "  "]
        );
    }

    #[test]
    fn a_long_run_of_anything_is_split() {
        // More than a backtracking matcher can remember places to return to.
        let length = 1 << 20;
        for unit in ["a", "A", " ", "\n", " \t", "7", "!", "\u{301}", "Aa", " \n"] {
            for end in ["", "x"] {
                let text = unit.repeat(length / unit.len()) + end;
                let total: usize = pieces(&SPLITTER, &text).iter().map(String::len).sum();
                assert_eq!(total, text.len(), "{unit:?}");
            }
        }
    }

    #[test]
    fn other_patterns_lose_nothing() {
        for pattern in [
            "b",
            "",
            "a*",
            r"x|\s+(?!\S)|\s+",
            r"(a)(b)|\s+(?!\S)|\s+",
            r"\w+(?=!)",
        ] {
            let splitter = Splitter::new(pattern).unwrap();
            for text in ["", "abc", "é☃bx  b  ab\t", "  é!"] {
                assert_eq!(pieces(&splitter, text).concat(), text, "{pattern}");
            }
        }
        let splitter = Splitter::new(r"é\|\s+(?!\S)|\s+").unwrap();
        assert_eq!(splitter.generous_group, None);
    }

    #[test]
    fn bad_patterns_are_refused() {
        assert!(matches!(Splitter::new("(a"), Err(TokenizerFault::Pattern(_))));
        assert!(matches!(
            Splitter::new(r"(a|\s+(?!\S)|\s+"),
            Err(TokenizerFault::Pattern(_))
        ));
        let long = "a".repeat(MAX_PATTERN_BYTES + 1);
        assert!(matches!(
            Splitter::new(&long),
            Err(TokenizerFault::PatternTooLong { .. })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn splits_as_the_pattern_says(text in "([ \t\n\r\u{a0}\u{3000}]{0,4}[aBé中7!/\u{301}ǅ]{0,3}){0,8}") {
            prop_assert_eq!(pieces(&SPLITTER, &text), matches(&text));
        }

        #[test]
        fn splits_any_text_as_the_pattern_says(text in any::<String>()) {
            prop_assert_eq!(pieces(&SPLITTER, &text), matches(&text));
        }
    }
}
