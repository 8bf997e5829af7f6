//! What can be wrong with a message.

/// A message that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A field has a value that it cannot have.
    #[error("field {field} is not valid: {problem}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A field is longer than it may be.
    #[error("field {field} has {found} {unit}, at most {limit} are allowed")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// Its longest length.
        limit: usize,
        /// What the length counts.
        unit: &'static str,
    },
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}
