//! The model as a coordinator knows it: names, sizes and tokenizer. Weights are not read.

use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::step::StepBounds;
use tramontane_model::tekken;

use super::CoordinatorError;
use crate::control::needs::footprint;
use crate::control::state::ModelEntry;
use crate::text::Tokenizer;

/// What of a checkpoint a coordinator needs.
pub(super) struct ServedModel {
    /// What the cluster is told of it.
    pub(super) entry: ModelEntry,
    /// Its files, for workers that have none.
    pub(super) checkpoint: Arc<Checkpoint>,
    /// Its tokenizer.
    pub(super) tokenizer: Tokenizer,
    /// Most tokens of prompt and answer together.
    pub(super) max_context: u32,
    /// When its parameters were written, in seconds since 1970: equal on all who have the same files.
    pub(super) created: u64,
}

impl ServedModel {
    /// Opens a checkpoint's folder and checks that every tensor of the model is there as it must be.
    pub(super) fn open(
        dir: &Path,
        name: String,
        steps: StepBounds,
        kv_block_tokens: u32,
    ) -> Result<Self, CoordinatorError> {
        let checkpoint = Checkpoint::open(dir)?;
        let spec = checkpoint.spec()?;
        let inventory = checkpoint.validate(&spec)?;
        let tokenizer = Tokenizer::load(&tekken::file_in(dir), spec.vocab_size as usize)?;
        let entry = ModelEntry {
            name,
            fingerprint: checkpoint.fingerprint().0,
            footprint: footprint(&spec, &inventory.bytes, steps, kv_block_tokens),
        };
        let written =
            std::fs::metadata(dir.join(checkpoint.layout().params_file())).and_then(|file| file.modified());
        let created = written.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            entry,
            checkpoint: Arc::new(checkpoint),
            tokenizer,
            max_context: spec.max_context,
            created: created.map_or(0, |since| since.as_secs()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_miniature_is_described_as_its_files_say() {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3");
        let served = ServedModel::open(&dir, "mini".to_owned(), StepBounds::default(), 16).unwrap();
        let footprint = &served.entry.footprint;
        footprint.check().unwrap();
        assert_eq!((footprint.n_layers(), footprint.first_moe_layer()), (6, 1));
        assert_eq!((footprint.n_experts, footprint.experts_per_token), (16, 4));
        assert_eq!(footprint.layers[3].kv_token_bytes, (64 + 16) * 4);
        assert_eq!(footprint.embedding_bytes, 8192 * 256 * 2);
        assert_eq!((served.max_context, served.tokenizer.vocab_size()), (4096, 8192));
        assert_eq!(footprint.tied_bytes, 0);
    }

    #[test]
    fn a_dense_model_with_tied_embeddings_is_described_in_either_layout() {
        for layout in ["micro-ministral-tied", "micro-ministral-tied-hf"] {
            let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("../tests/fixtures")
                .join(layout);
            let served = ServedModel::open(&dir, "micro".to_owned(), StepBounds::default(), 16).unwrap();
            let footprint = &served.entry.footprint;
            footprint.check().unwrap();
            assert_eq!((footprint.n_layers(), footprint.first_moe_layer()), (3, 3));
            assert_eq!((footprint.n_experts, footprint.experts_per_token), (0, 0));
            assert_eq!(footprint.layers[0].kv_token_bytes, 2 * 2 * 32 * 4);
            let embedding = 2048 * 128 * 2;
            assert_eq!(footprint.tied_bytes, embedding);
            assert_eq!(footprint.end_bytes(true, false), embedding);
            assert_eq!(footprint.end_bytes(false, true), embedding + 128 * 2);
            assert_eq!(footprint.end_bytes(true, true), embedding + 128 * 2);
            assert!(served.created > 0);
        }
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_refused_by_its_name() {
        let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3");
        let dir = tempfile::tempdir().unwrap();
        for file in ["params.json", "consolidated.safetensors"] {
            std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
        let opened = ServedModel::open(dir.path(), "mini".to_owned(), StepBounds::default(), 16);
        let message = opened.err().expect("refused").to_string();
        assert!(message.contains("tekken.json"), "{message}");
    }
}
