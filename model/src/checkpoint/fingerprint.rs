//! A checkpoint's fingerprint: coordinator and workers compare it to know that they serve one model.
//!
//! SHA-256 over params.json, every tensor's name, dtype and shape, and the first bytes of the tensors outside the
//! routed experts and of expert 0, so that two fine-tunings of one model differ. How the tensors are spread over
//! files does not matter. Not a checksum: bytes further in are not looked at.

use std::fmt;

use sha2::{Digest, Sha256};

use super::view::TensorView;

/// Bytes of each sampled tensor that count: one page, so that opening a model on slow storage stays quick.
pub(super) const SAMPLE_BYTES: usize = 4096;

/// SHA-256 of what tells one model from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Takes the tensors in the order of their names.
pub(super) fn fingerprint<'a>(params: &[u8], tensors: impl Iterator<Item = TensorView<'a>>) -> Fingerprint {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // The length first, so that no two lists of parts run into the same bytes.
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(b"tramontane checkpoint 1");
    part(params);
    for tensor in tensors {
        part(tensor.name.as_bytes());
        part(tensor.dtype.name().as_bytes());
        let shape: Vec<u8> = tensor.shape.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        part(&shape);
        if is_sampled(tensor.name) {
            part(&tensor.bytes[..tensor.bytes.len().min(SAMPLE_BYTES)]);
        }
    }
    Fingerprint(hash.finalize().into())
}

/// Whether the first bytes of the tensor of this name count.
pub(super) fn is_sampled(name: &str) -> bool {
    !name.contains(".experts.") || name.contains(".experts.0.")
}
