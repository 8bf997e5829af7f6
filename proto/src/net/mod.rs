//! The one constructor of every channel and every listener in the program.
//!
//! **Invariant:** nothing listens on or connects to an address beyond loopback without mutual TLS. There is no way
//! to switch verification off, and no other place that opens a socket.

mod channel;
mod identity;
mod listener;
mod stream;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use channel::{Traffic, channel, connect_http, is_refused, server};
pub use identity::{Identity, TlsFiles};
pub use listener::Listener;
pub use stream::{Connection, Peer};

/// Largest control message, in bytes.
pub const MAX_CONTROL_MESSAGE_BYTES: usize = 8 << 20;
/// Largest message that carries rows, in bytes.
pub const MAX_TENSOR_MESSAGE_BYTES: usize = 64 << 20;

/// Why a channel or listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A listener beyond loopback without certificates.
    #[error(
        "refusing to listen on {0}: an address beyond loopback needs mutual TLS; give tls.ca, tls.certificate and tls.key, or listen on 127.0.0.1"
    )]
    ListenWithoutTls(SocketAddr),
    /// A connection beyond loopback without certificates.
    #[error(
        "refusing to connect to {0}: an address beyond loopback needs mutual TLS; give tls.ca, tls.certificate and tls.key"
    )]
    ConnectWithoutTls(String),
    /// An address that is not `host:port`.
    #[error("address {0:?} is not valid: it must be host:port")]
    Address(String),
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A peer cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate file cannot be read.
    #[error("{}: cannot read {what}: {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why not.
        problem: String,
    },
    /// Certificate, key and authority do not make an identity.
    #[error("{}: {problem}", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Whether a host, as written in an address, can only be this machine.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Checks that an address is `host:port` and may be used under an identity: beyond loopback only with mutual TLS.
pub fn check_address(address: &str, has_tls: bool) -> Result<(), NetError> {
    let (host, _) = host_and_port(address)?;
    if has_tls || is_loopback(host) {
        Ok(())
    } else {
        Err(NetError::ConnectWithoutTls(address.to_owned()))
    }
}

/// Checks that a listener of the configuration key `key` may be made: beyond loopback only with mutual TLS.
pub fn check_listen(key: &str, address: SocketAddr, has_tls: bool) -> Result<(), String> {
    if has_tls || address.ip().is_loopback() {
        Ok(())
    } else {
        Err(format!(
            "{key} is {address}: beyond loopback a [tls] section is needed"
        ))
    }
}

/// Splits `host:port`.
fn host_and_port(address: &str) -> Result<(&str, u16), NetError> {
    let invalid = || NetError::Address(address.chars().take(300).collect());
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let port = port.parse().map_err(|_| invalid())?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let characters_fit = host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if host.is_empty() || !characters_fit || (host.contains(':') && !bracketed) {
        return Err(invalid());
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_rest() {
        for host in ["localhost", "127.0.0.1", "127.9.8.7", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "0.0.0.0",
            "10.0.0.1",
            "example.org",
            "localhost.example.org",
            "[::]",
            "128.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn addresses_are_split() {
        assert_eq!(
            host_and_port("gpu-1.rack:7000").expect("valid"),
            ("gpu-1.rack", 7000)
        );
        assert_eq!(host_and_port("[::1]:7000").expect("valid"), ("[::1]", 7000));
        for bad in [
            "",
            "host",
            "host:",
            "host:99999",
            ":7000",
            "::1:7000",
            "ho st:1",
            "host/x:1",
        ] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
