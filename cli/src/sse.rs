//! Server-sent events out of the bytes of an answer.
//!
//! Only what OpenAI's streams use: the data of an event; comments keep a connection alive and say nothing. No I/O here.

/// Longest event, in bytes.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Why a stream cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Splits bytes, however they are cut, into the data of events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Parser {
    /// Takes more bytes; adds the data of the events that they end.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<String>) -> Result<(), TooLong> {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() + self.data.len() == MAX_EVENT_BYTES {
                    return Err(TooLong);
                }
                self.line.push(byte);
                continue;
            }
            let mut line = std::mem::take(&mut self.line);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            self.take_line(&line, events);
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], events: &mut Vec<String>) {
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let data = std::mem::take(&mut self.data);
                events.push(String::from_utf8_lossy(&data).into_owned());
            }
            return;
        }
        let Some(value) = line.strip_prefix(b"data:") else {
            return;
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend(value.strip_prefix(b" ").unwrap_or(value));
        self.has_data = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(chunk, &mut events).expect("short events");
        }
        events
    }

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let text = ": hello\n\ndata: {\"a\": \"é\"}\n\nevent: x\r\ndata:b\r\ndata: c\r\n\r\ndata: [DONE]\n\ndata: half";
        let expected = ["{\"a\": \"é\"}", "b\nc", "[DONE]"];
        assert_eq!(parse(&[text.as_bytes()]), expected);
        let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(parse(&single), expected);
    }

    #[test]
    fn an_empty_event_is_an_event_and_a_comment_is_none() {
        assert_eq!(parse(&[b"data:\n\n", b":\n\n\n\n"]), [""]);
    }

    #[test]
    fn endless_events_are_refused() {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        assert_eq!(
            parser.push(&vec![b'x'; MAX_EVENT_BYTES + 1], &mut events),
            Err(TooLong)
        );
        assert!(events.is_empty());
    }
}
