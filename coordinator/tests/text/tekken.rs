//! Encoding and decoding.

use std::path::Path;

use proptest::prelude::*;
use tramontane_coordinator::text::{EncodeError, Tokenizer, UnknownToken};

use super::{VOCAB_SIZE, records, root, tokenizer};

#[test]
fn texts_have_their_recorded_ids() {
    let records = records("tests/fixtures/text/encode.jsonl");
    assert!(records.len() > 100);
    for record in records {
        assert_eq!(
            tokenizer().encode(&record.text).unwrap(),
            record.ids,
            "{:?}",
            record.text
        );
    }
}

#[test]
fn special_names_in_text_are_text() {
    let tokenizer = tokenizer();
    for id in (0..VOCAB_SIZE as u32).take_while(|&id| tokenizer.is_special(id)) {
        let name = String::from_utf8(tokenizer.token_bytes(id).unwrap().to_vec()).unwrap();
        let ids = tokenizer.encode(&name).unwrap();
        assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{name}");
        assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), name.as_bytes());
    }
}

#[test]
fn special_tokens_stand_for_no_bytes() {
    let tokenizer = tokenizer();
    let mut ids = vec![tokenizer.bos()];
    ids.extend(tokenizer.encode("text").unwrap());
    ids.push(tokenizer.eos());
    assert_eq!((ids[0], ids.last()), (1, Some(&2)));
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), b"text");
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let tokenizer = tokenizer();
    let unknown = |id| UnknownToken {
        id,
        vocab_size: VOCAB_SIZE,
    };
    assert!(tokenizer.token_bytes(VOCAB_SIZE as u32 - 1).is_ok());
    assert_eq!(
        tokenizer.token_bytes(VOCAB_SIZE as u32),
        Err(unknown(VOCAB_SIZE as u32))
    );
    assert_eq!(tokenizer.decode_bytes(&[1, u32::MAX]), Err(unknown(u32::MAX)));
    assert_eq!(tokenizer.vocab_size(), VOCAB_SIZE);
}

#[test]
fn a_text_past_the_limit_is_refused_before_any_work() {
    let text = "a".repeat((4 << 20) + 1);
    let error = tokenizer().encode(&text).unwrap_err();
    assert!(matches!(error, EncodeError::TooLong { bytes } if bytes == text.len()));
}

#[test]
fn a_megabyte_of_one_character_comes_back() {
    for unit in ["a", " ", "\n", "é", "!"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer().encode(&text).unwrap();
        assert_eq!(tokenizer().decode_bytes(&ids).unwrap(), text.as_bytes());
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused_with_both_numbers() {
    let path = root("tests/fixtures/micro-bf16/tekken.json");
    assert!(Tokenizer::load(&path, 2048).is_ok());
    let error = Tokenizer::load(&path, VOCAB_SIZE).unwrap_err().to_string();
    let expected = "tekken.json: config.default_vocab_size is 2048, the model has vocab_size 8192";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Tokenizer::load(Path::new("no/such/tekken.json"), VOCAB_SIZE).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no/such/tekken.json: cannot be read: "),
        "{error}"
    );
}

proptest! {
    #[test]
    fn any_text_comes_back(text in any::<String>()) {
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert_eq!(tokenizer().decode_bytes(&ids).unwrap(), text.as_bytes());
    }

    #[test]
    fn ordinary_text_comes_back(text in "([A-Za-zéß中]{0,9}[ \\t\\n]{0,3}[0-9.,!]{0,2}){0,20}") {
        let ids = tokenizer().encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| !tokenizer().is_special(id) && (id as usize) < VOCAB_SIZE));
        prop_assert_eq!(tokenizer().decode_bytes(&ids).unwrap(), text.as_bytes());
    }
}
