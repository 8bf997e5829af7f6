//! Streamed decoding.

use proptest::prelude::*;
use tramontane_coordinator::text::{SpecialText, StreamDecoder};

use super::{VOCAB_SIZE, special, tokenizer};

/// The pieces a decoder gives out for each token, then what it gives at the end.
fn pieces(ids: &[u32], special: SpecialText) -> Vec<String> {
    let mut decoder = StreamDecoder::new(tokenizer(), special);
    let mut pieces = Vec::new();
    for &id in ids {
        let mut text = String::new();
        decoder.push(id, &mut text).unwrap();
        pieces.push(text);
    }
    let mut text = String::new();
    decoder.finish(&mut text);
    pieces.push(text);
    pieces
}

/// The ids of single bytes.
fn byte_ids(bytes: &[u8]) -> Vec<u32> {
    let first = (0..VOCAB_SIZE as u32)
        .find(|&id| !tokenizer().is_special(id))
        .unwrap();
    bytes.iter().map(|&byte| first + u32::from(byte)).collect()
}

#[test]
fn a_character_comes_whole() {
    let ids = byte_ids("a€😀".as_bytes());
    assert_eq!(
        pieces(&ids, SpecialText::Skip),
        ["a", "", "", "€", "", "", "", "😀", ""]
    );
}

#[test]
fn a_character_cut_off_becomes_one_replacement() {
    assert_eq!(
        pieces(&byte_ids(b"\xf0\x9f\x98"), SpecialText::Skip),
        ["", "", "", "\u{fffd}"]
    );
    assert_eq!(
        pieces(&byte_ids(b"\xe2\x82a\xff"), SpecialText::Skip),
        ["", "", "\u{fffd}a", "\u{fffd}", ""]
    );
}

#[test]
fn special_tokens_show_only_when_asked() {
    let ids = [
        &[special("<s>")][..],
        &byte_ids(b"a\xe2"),
        &[special("[ARGS]")],
        &byte_ids(b"b"),
    ]
    .concat();
    assert_eq!(pieces(&ids, SpecialText::Skip).concat(), "a\u{fffd}b");
    assert_eq!(pieces(&ids, SpecialText::Show).concat(), "<s>a\u{fffd}[ARGS]b");
}

#[test]
fn an_unknown_id_is_refused_and_changes_nothing() {
    let mut decoder = StreamDecoder::new(tokenizer(), SpecialText::Skip);
    let mut text = String::new();
    let ids = byte_ids("é".as_bytes());
    decoder.push(ids[0], &mut text).unwrap();
    assert!(decoder.push(VOCAB_SIZE as u32, &mut text).is_err());
    decoder.push(ids[1], &mut text).unwrap();
    assert_eq!(text, "é");
}

proptest! {
    #[test]
    fn streamed_text_is_the_text_of_the_whole(text in any::<String>()) {
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert_eq!(pieces(&ids, SpecialText::Skip).concat(), text);
    }

    #[test]
    fn any_tokens_stream_to_the_text_of_their_bytes(
        ids in prop::collection::vec(1000..VOCAB_SIZE as u32, 0..40),
    ) {
        let bytes = tokenizer().decode_bytes(&ids).unwrap();
        prop_assert_eq!(pieces(&ids, SpecialText::Skip).concat(), String::from_utf8_lossy(&bytes));
    }
}
