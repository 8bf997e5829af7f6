//! Free ports of this machine, for the configuration files of nodes that are about to start.
//!
//! They are below the range that systems give to outgoing connections, so that none of those takes a port between its
//! choice and the node's start.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow};
use tramontane_proto::net::{Identity, Listener};

/// The ports that are tried.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
/// How many of them are tried at most for each.
const TRIES: u32 = 200;

/// Gives out each port once.
#[derive(Default)]
pub(crate) struct Ports {
    given: BTreeSet<u16>,
}

impl Ports {
    /// Keeps a port that was chosen elsewhere from being given out.
    pub(crate) fn keep(&mut self, port: u16) {
        self.given.insert(port);
    }

    /// An address of loopback with a port that was free a moment ago. Must be called within a runtime.
    pub(crate) async fn free(&mut self) -> Result<SocketAddr> {
        for _ in 0..TRIES {
            let random = getrandom::u32().map_err(|error| anyhow!("no randomness: {error}"))?;
            let offset = u16::try_from(random % u32::from(COUNT)).context("a port")?;
            let address = SocketAddr::from(([127, 0, 0, 1], FIRST + offset));
            let is_new = self.given.insert(address.port());
            if is_new && Listener::bind(address, &Identity::Loopback).await.is_ok() {
                return Ok(address);
            }
        }
        let last = FIRST + COUNT - 1;
        Err(anyhow!(
            "no free port was found between {FIRST} and {last} on 127.0.0.1"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ports_are_distinct_and_free() {
        let mut ports = Ports::default();
        let first = ports.free().await.expect("a port");
        let second = ports.free().await.expect("a port");
        assert_ne!(first, second);
        assert!((FIRST..FIRST + COUNT).contains(&first.port()));
    }

    #[tokio::test]
    async fn a_port_that_was_given_out_can_be_listened_on_at_once() {
        let mut ports = Ports::default();
        for _ in 0..20 {
            let address = ports.free().await.expect("a port");
            Listener::bind(address, &Identity::Loopback)
                .await
                .expect("it is free");
        }
    }
}
