//! Stop strings: ends streamed text before the first of them, wherever token borders fall.
//!
//! Text is held back only while it may be the start of a stop string. The first stop is the one that
//! is complete first, since generation need not go on past it; of several complete at the same place,
//! the longest. The result is the same for every way to cut the text into chunks.
//!
//! Each stop string is followed by its own Knuth-Morris-Pratt automaton, so a byte costs amortised
//! constant time per stop string.

/// Most stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;

/// Stop strings that are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// More than [`MAX_STOPS`].
    #[error("stop: {found} stop strings, at most {MAX_STOPS} are allowed")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A stop string of no characters would stop everywhere.
    #[error("stop[{index}]: must not be empty")]
    Empty {
        /// Which.
        index: usize,
    },
    /// A stop string longer than [`MAX_STOP_BYTES`].
    #[error("stop[{index}]: {bytes} bytes, at most {MAX_STOP_BYTES} are allowed")]
    TooLong {
        /// Which.
        index: usize,
        /// Its length.
        bytes: usize,
    },
}

/// The text ended: the stop string with this index in the request's list is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Which stop string.
    pub index: usize,
}

/// Looks for stop strings in one stream of text.
///
/// **Invariant:** what was given out plus what is held back is all text taken so far; held back is
/// the longest end of it that starts a stop string.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    held: String,
    stopped: Option<Stopped>,
}

#[derive(Debug, Clone)]
struct Stop {
    bytes: Vec<u8>,
    /// For each n, how long the longest proper end of `bytes[..=n]` is that is also a start of it.
    fallback: Vec<usize>,
    /// How many bytes of this stop string the text ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher at the start of a stream; with no stop strings, all text passes at once.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, StopError> {
        if stops.len() > MAX_STOPS {
            return Err(StopError::TooMany { found: stops.len() });
        }
        let check = |(index, stop): (usize, &S)| match stop.as_ref() {
            "" => Err(StopError::Empty { index }),
            long if long.len() > MAX_STOP_BYTES => Err(StopError::TooLong {
                index,
                bytes: long.len(),
            }),
            stop => Ok(Stop::new(stop)),
        };
        Ok(Self {
            stops: stops.iter().enumerate().map(check).collect::<Result<_, _>>()?,
            held: String::new(),
            stopped: None,
        })
    }

    /// Takes more text and appends to `out` what can no longer be part of a stop string.
    ///
    /// Once a stop string is complete the rest of the stream is dropped.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<Stopped> {
        if self.stopped.is_some() {
            return self.stopped;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            for stop in &mut self.stops {
                stop.step(byte);
            }
            if let Some((index, stop)) = self.longest_complete() {
                let start = before + offset + 1 - stop.bytes.len();
                out.push_str(&self.held[..start]);
                self.held.clear();
                self.stopped = Some(Stopped { index });
                return self.stopped;
            }
        }
        let kept = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - kept));
        None
    }

    /// Ends the stream: what is held back was no stop string after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    fn longest_complete(&self) -> Option<(usize, &Stop)> {
        let complete = self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| stop.matched == stop.bytes.len());
        // Of equal ones the first in the list.
        complete.rev().max_by_key(|(_, stop)| stop.bytes.len())
    }
}

impl Stop {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len()];
        let mut matched = 0;
        for end in 1..bytes.len() {
            while matched > 0 && bytes[matched] != bytes[end] {
                matched = fallback[matched - 1];
            }
            matched += usize::from(bytes[matched] == bytes[end]);
            fallback[end] = matched;
        }
        Self {
            bytes,
            fallback,
            matched: 0,
        }
    }

    /// Goes on by a byte; not called once complete, as the stream ends there.
    fn step(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[String], chunks: &[&str]) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops).unwrap();
        let mut out = String::new();
        let mut stopped = None;
        for chunk in chunks {
            stopped = matcher.push(chunk, &mut out);
        }
        matcher.finish(&mut out);
        (out, stopped.map(|stopped| stopped.index))
    }

    /// The definition, on the whole text: the first place where a stop string ends, the longest there.
    fn search(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let mut best: Option<usize> = None;
            for (index, stop) in stops.iter().enumerate() {
                if text[..end].ends_with(stop.as_str()) && best.is_none_or(|b| stop.len() > stops[b].len()) {
                    best = Some(index);
                }
            }
            if let Some(index) = best {
                return (text[..end - stops[index].len()].to_owned(), best);
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn holds_back_only_the_start_of_a_stop() {
        let mut matcher = StopMatcher::new(&["</end>", "\n\n"]).unwrap();
        let mut out = String::new();
        assert_eq!(matcher.push("one <", &mut out), None);
        assert_eq!(out, "one ");
        assert_eq!(matcher.push("/e", &mut out), None);
        assert_eq!(out, "one ");
        assert_eq!(matcher.push("x\n", &mut out), None);
        assert_eq!(out, "one </ex");
        assert_eq!(matcher.push("\nmore", &mut out), Some(Stopped { index: 1 }));
        assert_eq!(matcher.push("dropped", &mut out), Some(Stopped { index: 1 }));
        matcher.finish(&mut out);
        assert_eq!(out, "one </ex");
    }

    #[test]
    fn an_unfinished_stop_is_text() {
        assert_eq!(
            stream(&["abc".to_owned()], &["x", "ab"]),
            ("xab".to_owned(), None)
        );
    }

    #[test]
    fn the_stop_complete_first_ends_the_text() {
        let stops = ["abcd".to_owned(), "bc".to_owned(), "zbc".to_owned()];
        assert_eq!(stream(&stops, &["abcd"]), ("a".to_owned(), Some(1)));
        assert_eq!(stream(&stops, &["yz", "bc"]), ("y".to_owned(), Some(2)));
    }

    #[test]
    fn stops_are_bounded() {
        assert_eq!(
            StopMatcher::new(&["a", ""]).err(),
            Some(StopError::Empty { index: 1 })
        );
        assert!(StopMatcher::new(&vec!["a"; MAX_STOPS]).is_ok());
        assert_eq!(
            StopMatcher::new(&vec!["a"; MAX_STOPS + 1]).err(),
            Some(StopError::TooMany { found: MAX_STOPS + 1 })
        );
        let (long, longer) = ("a".repeat(MAX_STOP_BYTES), "a".repeat(MAX_STOP_BYTES + 1));
        assert!(StopMatcher::new(&[&long]).is_ok());
        let expected = StopError::TooLong {
            index: 0,
            bytes: longer.len(),
        };
        assert_eq!(StopMatcher::new(&[&longer]).err(), Some(expected));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_chunking_stops_where_a_search_of_the_whole_does(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            chunks in prop::collection::vec("[abé☃]{0,5}", 0..8),
        ) {
            let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
            prop_assert_eq!(stream(&stops, &chunks), search(&stops, &chunks.concat()));
        }
    }
}
