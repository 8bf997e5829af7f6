//! The rules of ARCHITECTURE.md that can be checked in a simulated world, one file each.
//!
//! Nothing of the program is asked whether it keeps a rule, except the scheduler for its own tables: what a checker needs
//! it works out anew.

pub(super) mod bq1;
pub(super) mod copies;
pub(super) mod det1;
pub(super) mod kv1;
pub(super) mod kv2;
pub(super) mod lease;
pub(super) mod pl1;
pub(super) mod pl2;
pub(super) mod pl3;
pub(super) mod pl4;
pub(super) mod rf1;
pub(super) mod rf2;
pub(super) mod st1;
pub(super) mod st2;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) rule: &'static str,
    pub(super) what: String,
}

pub(super) type Checked = Result<(), Violation>;

pub(super) fn ensure(rule: &'static str, holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds {
        return Ok(());
    }
    let what = what();
    Err(Violation { rule, what })
}
