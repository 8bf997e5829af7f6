//! Whole-cluster tests and the records they compare with (`fixtures/`).
