//! Text in and out of the model, against records of `mistral-common` and against definitions.

mod chat;
mod corrupt_tekken;
mod stream;
mod tekken;
mod tool_calls;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::value::RawValue;
use tramontane_coordinator::text::Tokenizer;

const VOCAB_SIZE: usize = 8192;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The miniature's tokenizer.
fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let path = root("cli/assets/mini-large-3/tekken.json");
        Arc::new(Tokenizer::load(&path, VOCAB_SIZE).unwrap())
    });
    Arc::clone(&TOKENIZER)
}

/// The id of the special token of this name.
fn special(name: &str) -> u32 {
    let tokenizer = tokenizer();
    let ids = 0..VOCAB_SIZE as u32;
    ids.take_while(|&id| tokenizer.is_special(id))
        .find(|&id| tokenizer.token_bytes(id).unwrap() == name.as_bytes())
        .unwrap()
}

/// A recorded text or request and its ids.
#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    text: String,
    #[serde(default)]
    request: Option<Box<RawValue>>,
    ids: Vec<u32>,
}

fn records(path: &str) -> Vec<Record> {
    let lines = std::fs::read_to_string(root(path)).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
