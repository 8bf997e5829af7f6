//! What the gateway counts. Names and labels only; the recorder is the process's.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use tramontane_model::ids::ReplicaId;

use super::choice::Reason;
use super::error::GatewayError;
use super::journal::Finish;

const LIVE: &str = "tramontane_requests_live";
const ENDED: &str = "tramontane_requests_ended_total";
const RESUBMITTED: &str = "tramontane_requests_resubmitted_total";
const ROUTED: &str = "tramontane_requests_routed_total";
const STALE: &str = "tramontane_stale_updates_total";
const PROMPT_TOKENS: &str = "tramontane_prompt_tokens_total";
const GENERATED_TOKENS: &str = "tramontane_generated_tokens_total";
const FIRST_TOKEN: &str = "tramontane_time_to_first_token_seconds";
const BETWEEN_TOKENS: &str = "tramontane_time_between_tokens_seconds";
const REQUEST: &str = "tramontane_request_seconds";
const CACHED_TOKENS: &str = "tramontane_cached_prompt_tokens";

/// Describes the gateway's metrics to the recorder.
pub fn describe() {
    describe_gauge!(LIVE, "Requests that are live at this coordinator");
    describe_counter!(ENDED, "Requests that ended, by how");
    describe_counter!(RESUBMITTED, "Attempts that broke off and were made again");
    describe_counter!(
        ROUTED,
        "Attempts given to a replica, by replica and by why: its prefix, the least load, an imbalance that overrides the prefix, its turn, or together with another choice"
    );
    describe_counter!(
        STALE,
        "Updates of an older attempt or generation that were dropped"
    );
    describe_counter!(PROMPT_TOKENS, "Prompt tokens of requests that a replica took in");
    describe_counter!(GENERATED_TOKENS, "Tokens emitted to clients");
    describe_histogram!(
        FIRST_TOKEN,
        "Seconds from a request's submission to its first token, as it reaches the coordinator"
    );
    describe_histogram!(
        BETWEEN_TOKENS,
        "Seconds from a request's token to its next one, as they reach the coordinator"
    );
    describe_histogram!(
        REQUEST,
        "Seconds from a request's submission to its end, by how it ended"
    );
    describe_histogram!(
        CACHED_TOKENS,
        "Tokens of a request's prompt that were found in the prefix cache; of requests that had a token"
    );
}

pub(super) fn live(requests: usize) {
    gauge!(LIVE).set(requests as f64);
}

pub(super) fn resubmitted() {
    counter!(RESUBMITTED).increment(1);
}

pub(super) fn routed(replica: ReplicaId, by: Reason) {
    let labels = [("replica", replica.to_string()), ("by", by.name().to_owned())];
    counter!(ROUTED, &labels).increment(1);
}

pub(super) fn stale() {
    counter!(STALE).increment(1);
}

pub(super) fn started(prompt_tokens: usize) {
    counter!(PROMPT_TOKENS).increment(prompt_tokens as u64);
}

pub(super) fn generated() {
    counter!(GENERATED_TOKENS).increment(1);
}

pub(super) fn first_token(after: Duration, cached_prompt_tokens: u32) {
    histogram!(FIRST_TOKEN).record(after.as_secs_f64());
    histogram!(CACHED_TOKENS).record(f64::from(cached_prompt_tokens));
}

pub(super) fn between_tokens(gap: Duration) {
    histogram!(BETWEEN_TOKENS).record(gap.as_secs_f64());
}

pub(super) fn ended(result: Option<&Result<Finish, GatewayError>>, satisfied: bool, after: Duration) {
    let end = end_name(result, satisfied);
    counter!(ENDED, "end" => end).increment(1);
    histogram!(REQUEST, "end" => end).record(after.as_secs_f64());
}

/// How a request ended, in one word; no result means that the client's side left.
pub(super) fn end_name(result: Option<&Result<Finish, GatewayError>>, satisfied: bool) -> &'static str {
    match result {
        None if satisfied => "stop",
        None => "cancelled",
        Some(Ok(Finish::Stop)) => "stop",
        Some(Ok(Finish::Length)) => "length",
        Some(Err(GatewayError::Overloaded { .. } | GatewayError::QueueFull { .. })) => "overloaded",
        Some(Err(GatewayError::NotServing(_))) => "not_serving",
        Some(Err(GatewayError::Rejected { .. })) => "rejected",
        Some(Err(GatewayError::Deadline { .. })) => "deadline",
        Some(Err(GatewayError::Grammar { .. })) => "grammar_failed",
        Some(Err(GatewayError::Failed { .. } | GatewayError::Random { .. })) => "failed",
        Some(Err(GatewayError::ShuttingDown)) => "shutting_down",
    }
}
