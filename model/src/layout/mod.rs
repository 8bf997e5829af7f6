//! The layouts in which checkpoints are published: which files hold what.
//!
//! Inside, tensors have the names of Mistral's consolidated layout; `names` says what Hugging Face calls them. No file
//! is opened here.

mod names;

use std::path::Path;

pub use names::{HuggingFaceNames, Place};

/// How a checkpoint's folder is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Mistral's: params.json and `consolidated*.safetensors`, the rotated rows of a head interleaved.
    Consolidated,
    /// Hugging Face's: config.json and `model*.safetensors`, names of DeepSeek-V3, Mistral4 and Ministral3.
    HuggingFace,
}

impl Layout {
    /// The layout of a folder: the consolidated one where both are whole.
    pub fn of(dir: &Path) -> Self {
        let has = |file: &str| dir.join(file).try_exists().unwrap_or(false);
        let is_whole = |layout: &Self| {
            has(layout.params_file()) && (has(layout.index_file()) || has(layout.single_file()))
        };
        let both = [Self::Consolidated, Self::HuggingFace];
        let begun = |layout: &Self| has(layout.params_file());
        let found = both.into_iter().find(is_whole);
        found
            .or_else(|| both.into_iter().find(begun))
            .unwrap_or(Self::Consolidated)
    }

    /// The file with the model's parameters.
    pub fn params_file(self) -> &'static str {
        match self {
            Self::Consolidated => "params.json",
            Self::HuggingFace => "config.json",
        }
    }

    /// The weights when they are one file.
    pub fn single_file(self) -> &'static str {
        match self {
            Self::Consolidated => "consolidated.safetensors",
            Self::HuggingFace => "model.safetensors",
        }
    }

    /// The index when they are several.
    pub fn index_file(self) -> &'static str {
        match self {
            Self::Consolidated => "consolidated.safetensors.index.json",
            Self::HuggingFace => "model.safetensors.index.json",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_consolidated_layout_wins_where_both_are_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let add = |file: &str| std::fs::write(dir.path().join(file), "").expect("written");
        assert_eq!(Layout::of(dir.path()), Layout::Consolidated);
        add("config.json");
        assert_eq!(Layout::of(dir.path()), Layout::HuggingFace);
        add("params.json");
        assert_eq!(Layout::of(dir.path()), Layout::Consolidated);
        add("model.safetensors.index.json");
        assert_eq!(
            Layout::of(dir.path()),
            Layout::HuggingFace,
            "only this one is whole"
        );
        add("consolidated.safetensors");
        assert_eq!(Layout::of(dir.path()), Layout::Consolidated);
    }
}
