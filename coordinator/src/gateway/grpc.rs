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
            let answer = client
                .generate(tramontane_proto::v1::GenerateRequest::from(submission))
                .await;
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
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::TryStreamExt;
    use tokio::sync::watch;
    use tokio::time::timeout;
    use tonic::{Request, Response};
    use tramontane_model::ids::Origin;
    use tramontane_model::sampling::SamplingParams;
    use tramontane_proto::net::{Listener, server};
    use tramontane_proto::v1::GenerateEvent;
    use tramontane_proto::v1::GenerateRequest;
    use tramontane_proto::v1::serving_server::{Serving, ServingServer};
    use tramontane_proto::{Ended, Progress};

    use super::super::scripted::{
        Act, CACHED_PROMPT_TOKENS, QUEUED_US, ScriptedHeads, always, fence, sampled, update,
    };
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A gRPC server in front of heads in memory.
    struct Server(Arc<ScriptedHeads>);

    #[tonic::async_trait]
    impl Serving for Server {
        type GenerateStream = futures_util::stream::BoxStream<'static, Result<GenerateEvent, Status>>;

        async fn generate(
            &self,
            request: Request<GenerateRequest>,
        ) -> Result<Response<Self::GenerateStream>, Status> {
            let submission = GenerateSubmission::try_from(request.into_inner())?;
            match self.0.generate("", submission).await {
                Ok(updates) => {
                    let events = updates.map_ok(GenerateEvent::from);
                    Ok(Response::new(
                        events
                            .map_err(|error| Status::unavailable(error.to_string()))
                            .boxed(),
                    ))
                }
                Err(error) => Err(Status::failed_precondition(error.to_string())),
            }
        }
    }

    fn submission() -> GenerateSubmission {
        GenerateSubmission {
            fence: fence(3),
            request: tramontane_model::ids::RequestId(77),
            attempt: 2,
            prompt: vec![1, 4],
            emitted: vec![10],
            sampling: SamplingParams::GREEDY,
            max_tokens: 9,
            stop_tokens: vec![2],
            ignore_eos: false,
            timeout_ms: 5000,
            priority: -3,
            cache_salt: vec![1, 2],
            trace: Origin::NOBODY.trace,
        }
    }

    #[tokio::test]
    async fn a_submission_crosses_the_wire_and_leaving_cancels_it() {
        let gone = HeadError::Fenced {
            address: String::new(),
            detail: "generation 4".to_owned(),
        };
        let scripted = ScriptedHeads::new(
            always(&[10, 11, 2]),
            [Act::Answer, Act::HangAfter(1), Act::Refuse(gone)],
        );
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), &Identity::Loopback)
            .await
            .unwrap();
        let address = listener.address().to_string();
        let service = ServingServer::new(Server(scripted.clone()));
        let router = server(Traffic::Control).add_service(service);
        let (stop, mut stopped) = watch::channel(false);
        let served = tokio::spawn(
            router.serve_with_incoming_shutdown(listener.into_stream(), async move {
                // An error means that the test is over as well.
                let _ = stopped.wait_for(|stop| *stop).await;
            }),
        );

        let heads = GrpcHeads::new(Identity::Loopback);
        let sent = submission();
        let updates: Vec<_> = heads
            .generate(&address, sent.clone())
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        let token = |index, id| {
            let token = sampled(id);
            let cached_prompt_tokens = (index == 1).then_some(CACHED_PROMPT_TOKENS + 1);
            let progress = Progress::Token {
                index,
                token,
                cached_prompt_tokens,
                queued_us: (index == 1).then_some(QUEUED_US),
            };
            update(&sent, progress)
        };
        let ended = update(&sent, Progress::Ended(Ended::Stop));
        assert_eq!(updates, [token(1, 11), token(2, 2), ended]);
        assert_eq!(scripted.seen()[0].1, sent);

        let mut open = scripted.open();
        timeout(SOON, open.wait_for(|open| *open == 0))
            .await
            .unwrap()
            .unwrap();
        let mut hanging = heads.generate(&address, sent.clone()).await.unwrap();
        assert_eq!(hanging.next().await, Some(Ok(token(1, 11))));
        assert_eq!(*open.borrow(), 1);
        drop(hanging);
        timeout(SOON, open.wait_for(|open| *open == 0))
            .await
            .unwrap()
            .unwrap();

        let refused = heads.generate(&address, sent.clone()).await.err().unwrap();
        assert!(matches!(&refused, HeadError::Fenced { detail, .. } if detail.contains("generation 4")));

        stop.send(true).unwrap();
        timeout(SOON, served).await.unwrap().unwrap().unwrap();
        let unreachable = heads.generate(&address, sent).await.err().unwrap();
        assert!(
            matches!(unreachable, HeadError::Unavailable { .. }),
            "{unreachable}"
        );
    }

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
        assert!(matches!(
            meaning(Code::Unavailable),
            HeadError::Unavailable { .. }
        ));
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
