//! How the gateways of the simulation reach heads: what they send goes to the world's desk, answers come back through
//! channels that the world feeds.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tramontane_coordinator::gateway::{HeadClient, HeadError, HeadStream};
use tramontane_proto::{GenerateSubmission, GenerateUpdate};

use super::clients::Desk;

pub(super) type Answer = oneshot::Sender<Result<HeadStream, HeadError>>;
pub(super) type Updates = mpsc::UnboundedSender<Result<GenerateUpdate, HeadError>>;

/// What a gateway wants of the network.
pub(super) enum Outgoing {
    Submit {
        /// The coordinator, and which start of it.
        from: (u64, u64),
        key: u64,
        address: String,
        submission: Box<GenerateSubmission>,
        answer: Answer,
    },
    /// The attempt of this key is given up.
    Leave { key: u64 },
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Submit { key, address, .. } => write!(f, "submit {key} to {address}"),
            Self::Leave { key } => write!(f, "leave {key}"),
        }
    }
}

/// One coordinator's way to the heads.
#[derive(Debug)]
pub(super) struct Heads {
    pub(super) from: (u64, u64),
    pub(super) desk: Desk,
}

/// Tells the world once an attempt is given up or over.
struct Guard {
    key: u64,
    desk: Desk,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.desk.send(Outgoing::Leave { key: self.key });
    }
}

impl HeadClient for Heads {
    fn generate(
        &self,
        address: &str,
        submission: GenerateSubmission,
    ) -> BoxFuture<'_, Result<HeadStream, HeadError>> {
        let (answer, answered) = oneshot::channel();
        let key = self.desk.key();
        let guard = Guard {
            key,
            desk: self.desk.clone(),
        };
        let address = address.to_owned();
        self.desk.send(Outgoing::Submit {
            from: self.from,
            key,
            address: address.clone(),
            submission: Box::new(submission),
            answer,
        });
        async move {
            let gone = HeadError::Unavailable {
                address,
                detail: "the world forgot".to_owned(),
            };
            let updates = answered.await.map_err(|_| gone)??;
            let guarded = updates.map(move |update| {
                let _guard = &guard;
                update
            });
            Ok(guarded.boxed())
        }
        .boxed()
    }
}

/// A stream, and what feeds it.
pub(super) fn updates() -> (Updates, HeadStream) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let updates = stream::poll_fn(move |context| receiver.poll_recv(context));
    (sender, updates.boxed())
}
