//! What goes between a gateway and a head, in the words of either (`worker/src/rpc/{serving,head}.rs`).

use tramontane_coordinator::gateway::HeadError;
use tramontane_model::time::Tick;
use tramontane_proto::{Ended, GenerateSubmission, Progress};
use tramontane_worker::scheduler::{EndReason, Refusal, Submission};

pub(super) fn unavailable(detail: &str) -> HeadError {
    HeadError::Unavailable {
        address: String::new(),
        detail: detail.to_owned(),
    }
}

/// What a gateway hears of a refusal.
pub(super) fn refused(refusal: &Refusal) -> HeadError {
    let (address, detail) = (String::new(), refusal.to_string());
    match refusal {
        Refusal::QueueFull { .. } | Refusal::TokensFull { .. } => HeadError::QueueFull { address, detail },
        Refusal::Failed(_)
        | Refusal::DeadlinePassed { .. }
        | Refusal::Duplicate { .. }
        | Refusal::Superseded { .. } => HeadError::Unavailable { address, detail },
        Refusal::EmptyPrompt
        | Refusal::TooLong { .. }
        | Refusal::Token { .. }
        | Refusal::MaxTokens { .. }
        | Refusal::StopTokens(_)
        | Refusal::CacheSalt(_)
        | Refusal::Priority(_)
        | Refusal::Sampling(_) => HeadError::Rejected { address, detail },
    }
}

pub(super) fn submission(submitted: GenerateSubmission, now: Tick) -> Submission {
    Submission {
        request: submitted.request,
        trace: submitted.trace,
        attempt: submitted.attempt,
        priority: submitted.priority,
        prompt: submitted.prompt,
        emitted: submitted.emitted,
        cache_salt: submitted.cache_salt,
        sampling: submitted.sampling,
        max_tokens: submitted.max_tokens,
        stop_tokens: submitted.stop_tokens,
        ignore_eos: submitted.ignore_eos,
        deadline: now.after_ms(submitted.timeout_ms),
    }
}

pub(super) fn ended(reason: EndReason) -> Result<Progress, HeadError> {
    Ok(Progress::Ended(match reason {
        EndReason::Stop => Ended::Stop,
        EndReason::Length => Ended::Length,
        EndReason::Cancelled => Ended::Cancelled,
        EndReason::DeadlineExceeded => Ended::Deadline,
        EndReason::Grammar(why) => Ended::Grammar(why.to_string()),
        EndReason::Failed(why) => return Err(unavailable(&why)),
    }))
}
