//! Heads over gRPC.
//!
//! Channels come from the one constructor of channels; nothing else here opens a connection.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tramontane_proto::net::{Identity, MAX_CONTROL_MESSAGE_BYTES, NetError, Traffic, channel};
use tramontane_proto::v1::serving_client::ServingClient;
use tramontane_proto::{GenerateSubmission, GenerateUpdate};

use super::head::{HeadClient, HeadError, HeadStream};

/// Most channels kept open: far above the heads that a cluster has at once.
const MAX_CHANNELS: usize = 256;
/// Longest part of a head's error message that is passed on, in bytes.
const MAX_DETAIL_BYTES: usize = 1024;

/// Heads reached over gRPC, one channel for each address.
pub struct GrpcHeads {
    identity: Identity,
    channels: Mutex<BTreeMap<String, Channel>>,
}

impl GrpcHeads {
    /// Heads that are shown this identity.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            channels: Mutex::default(),
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, NetError> {
        // Nothing panics while the lock is held.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = channels.get(address) {
            return Ok(known.clone());
        }
        if channels.len() >= MAX_CHANNELS {
            // Streams in flight hold their own channels.
            channels.clear();
        }
        let made = channel(address, &self.identity, Traffic::Control)?;
        channels.insert(address.to_owned(), made.clone());
        Ok(made)
    }
}

impl HeadClient for GrpcHeads {
    fn generate(
        &self,
        address: &str,
        submission: GenerateSubmission,
    ) -> BoxFuture<'_, Result<HeadStream, HeadError>> {
        let address = address.to_owned();
        async move {
            let channel = self.channel(&address).map_err(|error| HeadError::Unavailable {
                address: address.clone(),
                detail: error.to_string(),
            })?;
            let mut client = ServingClient::new(channel)
                .max_decoding_message_size(MAX_CONTROL_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_CONTROL_MESSAGE_BYTES);
            let answer = client.generate(tramontane_proto::v1::GenerateRequest::from(submission)).await;
            let events = answer.map_err(|status| refusal(&address, &status))?.into_inner();
            let updates = events.map(move |event| match event {
                Ok(event) => GenerateUpdate::try_from(event).map_err(|error| HeadError::Protocol {
                    address: address.clone(),
                    detail: error.to_string(),
                }),
                Err(status) => Err(refusal(&address, &status)),
            });
            Ok(updates.boxed())
        }
        .boxed()
    }
}

/// What a gRPC status of a head means: the one table of it.
fn refusal(address: &str, status: &Status) -> HeadError {
    let address = address.to_owned();
    let message = status.message();
    let detail = match message.char_indices().find(|(at, _)| *at >= MAX_DETAIL_BYTES) {
        Some((cut, _)) => message[..cut].to_owned(),
        None => message.to_owned(),
    };
    match status.code() {
        Code::FailedPrecondition => HeadError::Fenced { address, detail },
        Code::ResourceExhausted => HeadError::QueueFull { address, detail },
        Code::InvalidArgument | Code::OutOfRange => HeadError::Rejected { address, detail },
        Code::Unimplemented | Code::DataLoss => HeadError::Protocol { address, detail },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::Unauthenticated => HeadError::Unavailable {
            address,
            detail: format!("{}: {detail}", status.code()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_meaning() {
        let meaning = |code| refusal("w1:1", &Status::new(code, "why"));
        let text = "why".to_owned();
        let address = "w1:1".to_owned();
        assert_eq!(
            meaning(Code::FailedPrecondition),
            HeadError::Fenced {
                address: address.clone(),
                detail: text.clone()
            }
        );
        assert_eq!(
            meaning(Code::ResourceExhausted),
            HeadError::QueueFull {
                address: address.clone(),
                detail: text.clone()
            }
        );
        assert_eq!(
            meaning(Code::InvalidArgument),
            HeadError::Rejected {
                address,
                detail: text
            }
        );
        assert!(matches!(meaning(Code::Unavailable), HeadError::Unavailable { .. }));
        assert!(matches!(meaning(Code::Internal), HeadError::Unavailable { .. }));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = Status::unavailable("é".repeat(MAX_DETAIL_BYTES));
        let HeadError::Unavailable { detail, .. } = refusal("w1:1", &status) else {
            panic!("another error")
        };
        assert!(detail.len() < MAX_DETAIL_BYTES + 100, "{}", detail.len());
    }

    #[tokio::test]
    async fn an_address_beyond_loopback_needs_an_identity() {
        let heads = GrpcHeads::new(Identity::Loopback);
        let error = heads.channel("10.0.0.1:7000").unwrap_err();
        assert!(matches!(error, NetError::ConnectWithoutTls(_)), "{error}");
        assert!(heads.channel("127.0.0.1:7000").is_ok());
    }
}
