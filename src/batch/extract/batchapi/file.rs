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

/// Says which file each line goes into, one after the other.
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

    /// The file of the next line, of so many bytes and tokens: a number from 0 on, never less than that of the line before.
    ///
    /// # Errors
    /// It fits into no file; send it directly.
    pub fn put(&mut self, bytes: u64, tokens: u64) -> Result<usize, TooLarge> {
        let limits = self.limits;
        if bytes > limits.bytes || tokens > limits.tokens || limits.requests == 0 {
            return Err(TooLarge { bytes, tokens, limits });
        }
        let full = self.requests == limits.requests
            || self.bytes + bytes > limits.bytes
            || self.tokens.saturating_add(tokens) > limits.tokens;
        if full {
            *self = Self { file: self.file + 1, ..Self::new(limits) };
        }
        self.requests += 1;
        self.bytes += bytes;
        self.tokens += tokens;
        Ok(self.file)
    }
}

/// A request as a line, with its end. Its `custom_id` is the request's key. All of one file must name one model, as all of one setup do.
pub fn line(send: &Send) -> String {
    let Request { body, .. } = &send.request;
    let line = json!({"custom_id": send.key, "method": "POST", "url": ENDPOINT, "body": body});
    format!("{line}\n")
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
        let text = line(&send("k-1", "two\nlines", 5));
        assert_eq!(text.matches('\n').count(), 1);
        let want = json!({"custom_id": "k-1", "method": "POST", "url": "/v1/responses",
            "body": {"model": "m", "input": "two\nlines"}});
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), want);
    }

    #[test]
    fn files_end_at_each_limit() {
        let none = Limits::default();
        for (name, limits, want) in [
            ("requests", Limits { requests: 2, ..none }, [0, 0, 1, 1, 2]),
            ("bytes, exactly", Limits { bytes: 100, ..none }, [0, 0, 1, 1, 2]),
            ("bytes, one less", Limits { bytes: 99, ..none }, [0, 1, 2, 3, 4]),
            ("tokens", Limits { tokens: 15, ..none }, [0, 0, 0, 1, 1]),
            ("none", none, [0, 0, 0, 0, 0]),
        ] {
            let mut packer = Packer::new(limits);
            let files: Vec<usize> = (0..5).map(|_| packer.put(50, 5).unwrap()).collect();
            assert_eq!(files, want, "{name}");
        }
        let mut packer = Packer::new(Limits { bytes: 50, tokens: 10, ..none });
        let error = packer.put(51, 5).unwrap_err();
        assert_eq!((error.bytes, error.tokens), (51, 5));
        assert!(packer.put(50, 11).is_err());
        assert_eq!(packer.put(50, 10).unwrap(), 0, "what does not fit takes no place");
    }
}
