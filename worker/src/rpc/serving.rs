//! The Serving service: requests of gateways to the scheduler that this worker hosts.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tramontane_model::ids::RequestId;
use tramontane_proto::v1::serving_server::Serving;
use tramontane_proto::{GenerateSubmission, v1 as pb};

use super::assignments::Heads;
use super::head::{HeadHandle, SubmitError, Update};
use crate::scheduler::{Refusal, Submission};

/// Longest time a request may be given, in milliseconds: a day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// Serves the heads that this worker hosts.
pub struct ServingServer {
    heads: Heads,
}

impl ServingServer {
    /// `heads` is kept up to date by whoever assigns replicas.
    pub fn new(heads: Heads) -> Self {
        Self { heads }
    }
}

#[tonic::async_trait]
impl Serving for ServingServer {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<pb::GenerateEvent, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let submitted = GenerateSubmission::try_from(request.into_inner())?;
        let head = self.heads.get(submitted.fence).ok_or_else(|| {
            metrics::counter!("tramontane_fenced_messages_total").increment(1);
            Status::failed_precondition(format!("{} is not served here", submitted.fence))
        })?;
        let (request, attempt) = (submitted.request, submitted.attempt);
        let (trace, fence) = (submitted.trace, submitted.fence);
        let submission = Submission {
            request,
            trace,
            attempt,
            priority: submitted.priority,
            prompt: submitted.prompt,
            emitted: submitted.emitted,
            cache_salt: submitted.cache_salt,
            sampling: submitted.sampling,
            max_tokens: submitted.max_tokens,
            stop_tokens: submitted.stop_tokens,
            ignore_eos: submitted.ignore_eos,
            deadline: head.now().after_ms(submitted.timeout_ms.min(MAX_TIMEOUT_MS)),
        };
        let updates = head.submit(submission).await.map_err(|error| refused(&error))?;
        tracing::debug!(%trace, %request, attempt, %fence, "request accepted");
        Ok(Response::new(
            Updates {
                head,
                request,
                attempt,
                updates,
                over: false,
            }
            .boxed(),
        ))
    }
}

fn refused(error: &SubmitError) -> Status {
    let message = error.to_string();
    match error {
        SubmitError::Unavailable(_) | SubmitError::Refused(Refusal::Failed(_)) => {
            Status::unavailable(message)
        }
        SubmitError::Refused(Refusal::QueueFull { .. } | Refusal::TokensFull { .. }) => {
            Status::resource_exhausted(message)
        }
        SubmitError::Refused(Refusal::DeadlinePassed { .. }) => Status::deadline_exceeded(message),
        SubmitError::Refused(Refusal::Duplicate { .. } | Refusal::Superseded { .. }) => {
            metrics::counter!("tramontane_fenced_messages_total").increment(1);
            Status::already_exists(message)
        }
        SubmitError::Refused(
            Refusal::EmptyPrompt
            | Refusal::TooLong { .. }
            | Refusal::Token { .. }
            | Refusal::MaxTokens { .. }
            | Refusal::StopTokens(_)
            | Refusal::CacheSalt(_)
            | Refusal::Priority(_)
            | Refusal::Sampling(_),
        ) => Status::invalid_argument(message),
    }
}

/// A request's tokens; dropping it before its end cancels the request.
struct Updates {
    head: HeadHandle,
    request: RequestId,
    attempt: u32,
    updates: mpsc::Receiver<Update>,
    over: bool,
}

impl Stream for Updates {
    type Item = Result<pb::GenerateEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        self.updates.poll_recv(cx).map(|update| {
            let event = match update {
                Some(Ok(update)) => {
                    self.over = matches!(update.progress, tramontane_proto::Progress::Ended(_));
                    Ok(update.into())
                }
                Some(Err(lost)) => {
                    self.over = true;
                    Err(Status::unavailable(lost.0))
                }
                None => {
                    self.over = true;
                    Err(Status::unavailable("the replica is being placed anew"))
                }
            };
            Some(event)
        })
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        if !self.over {
            let (head, request, attempt) = (self.head.clone(), self.request, self.attempt);
            tokio::spawn(async move { head.cancel(request, attempt).await });
        }
    }
}
