//! ST-2: every accepted request ends exactly once: complete, cancelled, or because its time is over.

use tramontane_coordinator::gateway::{Finish, GatewayError};

use super::super::clients::Request;
use super::{Checked, ensure};

/// An accepted request ended; `late` says whether its time was over.
pub(in super::super) fn check(
    client: usize,
    request: &Request,
    tokens: &[u32],
    end: &Result<Finish, GatewayError>,
    late: bool,
) -> Checked {
    match end {
        Ok(finish) => {
            let expected = request.expected();
            ensure("ST-2", tokens.len() == expected.len(), || {
                format!(
                    "client {client} ended with {} of {} tokens",
                    tokens.len(),
                    expected.len()
                )
            })?;
            let stopped = !request.ignore_eos && tokens.last() == Some(&super::super::clients::STOP);
            ensure("ST-2", stopped == (*finish == Finish::Stop), || {
                format!("client {client} ended with {finish:?}")
            })
        }
        Err(GatewayError::Deadline { .. }) => ensure("ST-2", late, || {
            format!("client {client} ran out of time too early")
        }),
        Err(error) => ensure("ST-2", false, || {
            format!("client {client} was accepted and got: {error}")
        }),
    }
}
