//! DET-1: the tokens are those of a world without faults.

use super::{Checked, ensure};

pub(in super::super) fn check(client: usize, index: usize, token: u32, expected: &[u32]) -> Checked {
    let right = expected.get(index).copied();
    ensure("DET-1", right == Some(token), || {
        format!("client {client} got {token} as token {index}, without faults it is {right:?}")
    })
}
