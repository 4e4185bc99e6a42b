//! Requests as lines, and in which file each goes. Files are written by the caller, line by line: none is ever in memory as a whole.
use serde_json::{Value, json};

use super::super::{driver::Send, request::Request};

/// What a request in a file asks for.
pub const ENDPOINT: &str = "/v1/responses";

/// What a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Lines.
    pub requests: usize,
    /// Bytes, line ends included.
    pub bytes: u64,
    /// Tokens that are read: the account's limit for what may be waiting in batches.
    pub tokens: u64,
}

impl Default for Limits {
    /// The service's: 50,000 requests and 200 MB. Of tokens it allows what the account's tier says.
    fn default() -> Self {
        Self { requests: 50_000, bytes: 200_000_000, tokens: u64::MAX }
    }
}

/// A request that fits into no file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request of {bytes} bytes and {tokens} tokens; allowed in a batch: {} bytes, {} tokens", .limits.bytes, .limits.tokens)]
pub struct TooLarge {
    /// With its line end.
    pub bytes: u64,
    /// What it reads.
    pub tokens: u64,
    /// What a file may hold.
    pub limits: Limits,
}

/// A line and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Number of the file, from 0 on; never less than that of the line before.
    pub file: usize,
    /// With its line end.
    pub bytes: Vec<u8>,
}

/// Puts lines into files, one after the other.
#[derive(Debug)]
pub struct Packer {
    limits: Limits,
    file: usize,
    requests: usize,
    bytes: u64,
    tokens: u64,
}

impl Packer {
    /// Begins with file 0.
    pub fn new(limits: Limits) -> Self {
        Self { limits, file: 0, requests: 0, bytes: 0, tokens: 0 }
    }

    /// The next line. Its `custom_id` is the request's key. All of one file must name one model, as all of one setup do.
    ///
    /// # Errors
    /// It fits into no file; send it directly.
    pub fn line(&mut self, send: &Send) -> Result<Line, TooLarge> {
        let Request { body, input: tokens, .. } = &send.request;
        let line = json!({"custom_id": send.key, "method": "POST", "url": ENDPOINT, "body": body});
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');
        let (size, tokens, limits) = (bytes.len() as u64, *tokens, self.limits);
        if size > limits.bytes || tokens > limits.tokens || limits.requests == 0 {
            return Err(TooLarge { bytes: size, tokens, limits });
        }
        let full = self.requests == limits.requests
            || self.bytes + size > limits.bytes
            || self.tokens.saturating_add(tokens) > limits.tokens;
        if full {
            *self = Self { file: self.file + 1, ..Self::new(limits) };
        }
        self.requests += 1;
        self.bytes += size;
        self.tokens += tokens;
        Ok(Line { file: self.file, bytes })
    }
}

/// The body that makes a batch of an uploaded file. `key` finds it again where the answer to this was lost.
pub fn create(input_file: &str, key: &str) -> Value {
    json!({"input_file_id": input_file, "endpoint": ENDPOINT, "completion_window": "24h", "metadata": {KEY: key}})
}

/// The field of `metadata` that holds our own name of a batch.
pub(super) const KEY: &str = "voxrelay_batch";

#[cfg(test)]
mod tests {
    use super::*;

    fn send(key: &str, text: &str, input: u64) -> Send {
        let request = Request { body: json!({"model": "m", "input": text}), input, output: 10 };
        Send { key: key.to_owned(), request }
    }

    #[test]
    fn lines_are_what_the_service_reads() {
        let line = Packer::new(Limits::default()).line(&send("k-1", "two\nlines", 5)).unwrap();
        let text = String::from_utf8(line.bytes).unwrap();
        assert_eq!((line.file, text.matches('\n').count()), (0, 1));
        let want = json!({"custom_id": "k-1", "method": "POST", "url": "/v1/responses",
            "body": {"model": "m", "input": "two\nlines"}});
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), want);
    }

    #[test]
    fn files_end_at_each_limit() {
        let length = Packer::new(Limits::default()).line(&send("k", "x", 5)).unwrap().bytes.len() as u64;
        let none = Limits::default();
        for (name, limits, want) in [
            ("requests", Limits { requests: 2, ..none }, [0, 0, 1, 1, 2]),
            ("bytes, exactly", Limits { bytes: length * 2, ..none }, [0, 0, 1, 1, 2]),
            ("bytes, one less", Limits { bytes: length * 2 - 1, ..none }, [0, 1, 2, 3, 4]),
            ("tokens", Limits { tokens: 15, ..none }, [0, 0, 0, 1, 1]),
            ("none", none, [0, 0, 0, 0, 0]),
        ] {
            let mut packer = Packer::new(limits);
            let files: Vec<usize> = (0..5).map(|_| packer.line(&send("k", "x", 5)).unwrap().file).collect();
            assert_eq!(files, want, "{name}");
        }
        let mut packer = Packer::new(Limits { bytes: length, tokens: 10, ..none });
        let error = packer.line(&send("k", "xx", 5)).unwrap_err();
        assert_eq!((error.bytes, error.tokens), (length + 1, 5));
        assert!(packer.line(&send("k", "x", 11)).is_err());
        assert_eq!(packer.line(&send("k", "x", 10)).unwrap().file, 0, "what does not fit takes no place");
    }
}
