//! The family beside Mistral Large 3, and the layouts in which it is published.

mod dense;
mod layouts;
mod rewritten;
