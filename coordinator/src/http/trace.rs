//! Which trace a request is part of, by W3C Trace Context: <https://www.w3.org/TR/trace-context/>.
//!
//! `traceparent` comes from outside and is bounded by its form. What is not of that form begins a trace of its own, as
//! the specification has it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tramontane_model::ids::{RequestId, TraceId};

use crate::gateway::{self, GatewayError};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What a response tells of the trace, by the working group's draft of response headers.
pub(super) const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");
/// Length of version 00, which every later version begins with.
const LENGTH: usize = 55;
/// Flags of a trace that begins here: nobody has asked that it be recorded.
const NO_FLAGS: u8 = 0;

/// The trace of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) id: TraceId,
    flags: u8,
}

impl Trace {
    /// The trace that the headers name, or a new one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, GatewayError> {
        let mut named = headers.get_all(TRACEPARENT).iter();
        let trace = match (named.next(), named.next()) {
            (Some(value), None) => value.to_str().ok().and_then(parse),
            // None, or several that may contradict each other.
            (_, _) => None,
        };
        trace.map_or_else(Self::new, Ok)
    }

    fn new() -> Result<Self, GatewayError> {
        loop {
            // All but one of 2^128 are a trace.
            if let Some(id) = TraceId::new(gateway::random_id()?.0) {
                let flags = NO_FLAGS;
                return Ok(Self { id, flags });
            }
        }
    }

    /// The header that tells the trace, with this request as its span.
    pub(super) fn response(self, request: RequestId) -> Option<HeaderValue> {
        // A span's id is 64 bits, not all zero.
        let span = ((request.0 >> 64) as u64).max(1);
        let value = format!("00-{}-{span:016x}-{:02x}", self.id, self.flags);
        HeaderValue::from_str(&value).ok()
    }
}

/// `00-<32 hex digits of the trace>-<16 of the parent>-<2 of flags>`, all lower case; a later version may go on after
/// another dash.
fn parse(text: &str) -> Option<Trace> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let mut parts = known.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits)?;
        let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(part, 16).ok().filter(|_| is_hex)
    };
    let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let ends_well = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    if !ends_well || parent == 0 {
        return None;
    }
    Some(Trace {
        id: TraceId::new(trace)?,
        flags: u8::try_from(flags).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's own example.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(text: &str) -> Option<(String, u8)> {
        parse(text).map(|trace| (trace.id.to_string(), trace.flags))
    }

    #[test]
    fn what_the_specification_allows_is_read() {
        let id = || "4bf92f3577b34da6a3ce929d0e0e4736".to_owned();
        assert_eq!(read(EXAMPLE), Some((id(), 1)));
        assert_eq!(read(&EXAMPLE.replacen("00", "cc", 1)), Some((id(), 1)));
        let later = format!("{}-what-may-come", EXAMPLE.replacen("00", "01", 1));
        assert_eq!(read(&later), Some((id(), 1)));
    }

    #[test]
    fn everything_else_is_not() {
        let long = format!("{EXAMPLE}-x");
        let glued = format!("{}x", EXAMPLE.replacen("00", "01", 1));
        for bad in [
            "",
            "x",
            &EXAMPLE[1..],
            &EXAMPLE[..54],
            &long,
            &glued,
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "0é-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_request_with_none_or_with_several_begins_a_trace() {
        let mut headers = HeaderMap::new();
        let (one, other) = (Trace::of(&headers).unwrap(), Trace::of(&headers).unwrap());
        assert_ne!(one.id, other.id);
        headers.append(TRACEPARENT, HeaderValue::from_static(EXAMPLE));
        assert_eq!(Trace::of(&headers).unwrap(), parse(EXAMPLE).unwrap());
        headers.append(TRACEPARENT, HeaderValue::from_static(EXAMPLE));
        assert_ne!(Trace::of(&headers).unwrap().id, parse(EXAMPLE).unwrap().id);
    }

    #[test]
    fn a_response_tells_the_trace_in_the_same_form() {
        let trace = parse(EXAMPLE).unwrap();
        let told = |request| trace.response(RequestId(request)).unwrap();
        let expected = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01";
        assert_eq!(told(7 << 64), expected);
        assert_eq!(parse(told(0).to_str().unwrap()), Some(trace));
    }
}
