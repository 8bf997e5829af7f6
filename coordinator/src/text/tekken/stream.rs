//! Token ids to text, one at a time.
//!
//! A character of several bytes may come in several tokens. Text is given out when its last byte has
//! come; bytes that can be no character become U+FFFD, one for each maximal run that starts like one
//! (Unicode 16, section 3.9, as `String::from_utf8_lossy` does it).

use std::sync::Arc;

use super::{Tokenizer, UnknownToken};

/// Whether special tokens show in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialText {
    /// They stand for no text.
    Skip,
    /// They show by name: `[TOOL_CALLS]`.
    Show,
}

/// Decodes the tokens of one stream as they come.
///
/// **Invariant:** what was given out plus what is held back is the text of all tokens so far; held
/// back are at most the three first bytes of one character.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    special: SpecialText,
    partial: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the start of a stream.
    pub fn new(tokenizer: Arc<Tokenizer>, special: SpecialText) -> Self {
        Self {
            tokenizer,
            special,
            partial: Vec::new(),
        }
    }

    /// Takes the next token and appends the characters it completes to `text`.
    ///
    /// A special token ends a character that is still partial: text does not run through it.
    pub fn push(&mut self, id: u32, text: &mut String) -> Result<(), UnknownToken> {
        let bytes = self.tokenizer.token_bytes(id)?;
        if self.tokenizer.is_special(id) {
            let show = match self.special {
                SpecialText::Skip => &[][..],
                SpecialText::Show => bytes,
            };
            give_up_partial(&mut self.partial, text);
            text.push_str(&String::from_utf8_lossy(show));
        } else {
            self.partial.extend_from_slice(bytes);
            give_complete(&mut self.partial, text);
        }
        Ok(())
    }

    /// Ends the stream: a character that is still partial becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        give_up_partial(&mut self.partial, text);
    }
}

/// Moves all complete characters of `bytes` to `text`; leaves the start of one that may yet complete.
fn give_complete(bytes: &mut Vec<u8>, text: &mut String) {
    let mut given = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        given += chunk.valid().len();
        let invalid = chunk.invalid();
        let may_complete = given + invalid.len() == bytes.len()
            && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
        if !invalid.is_empty() && !may_complete {
            text.push(char::REPLACEMENT_CHARACTER);
            given += invalid.len();
        }
    }
    bytes.drain(..given);
}

fn give_up_partial(bytes: &mut Vec<u8>, text: &mut String) {
    if !bytes.is_empty() {
        bytes.clear();
        text.push(char::REPLACEMENT_CHARACTER);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_text_of_the_whole(
            bytes in prop::collection::vec(prop_oneof![
                any::<u8>(),
                prop::sample::select(vec![0xe2u8, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xc3, 0xa9, b'a', 0xed, 0xa0]),
            ], 0..40),
            cuts in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut text = String::new();
            let mut partial = Vec::new();
            for (&byte, &cut) in bytes.iter().zip(&cuts) {
                partial.push(byte);
                if cut {
                    give_complete(&mut partial, &mut text);
                    prop_assert!(partial.len() <= 3);
                }
            }
            give_complete(&mut partial, &mut text);
            give_up_partial(&mut partial, &mut text);
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
