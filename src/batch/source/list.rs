//! A list of paths, read as it comes.
use std::io::BufRead;

use super::Unread;

/// Longest line that may be a path, bytes.
const LONGEST: usize = 16 * 1024;

/// Its lines, without those that are empty.
pub(super) struct Lines<R> {
    list: R,
    end: Option<u8>,
    line: u64,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(list: R) -> Self {
        Self { list, end: None, line: 0, ended: false }
    }

    fn read(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let end = match self.end {
            Some(end) => end,
            // `find -print0` ends every path with one, and a path has none in it.
            None => *self.end.insert(if self.list.fill_buf()?.contains(&0) { 0 } else { b'\n' }),
        };
        let mut line = Vec::new();
        let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
        let read = std::io::Read::take(&mut self.list, most).read_until(end, &mut line)?;
        if read == LONGEST && line.last() != Some(&end) {
            return Err(std::io::Error::other(format!("a line of more than {LONGEST} bytes")));
        }
        if line.last() == Some(&end) {
            line.pop();
        }
        if end == b'\n' && line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok((read > 0).then_some(line))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<String, Unread>;

    fn next(&mut self) -> Option<Self::Item> {
        let wrong = |line: u64, reason: String| {
            let place = format!("the list, line {line}");
            Unread { place, file: String::new(), reason }
        };
        while !self.ended {
            self.line += 1;
            match self.read() {
                Ok(None) => self.ended = true,
                Ok(Some(line)) if line.is_empty() => {}
                Ok(Some(line)) => {
                    let text = String::from_utf8(line);
                    return Some(text.map_err(|_| wrong(self.line, "not UTF-8".to_owned())));
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(wrong(self.line, error.to_string())));
                }
            }
        }
        None
    }
}
