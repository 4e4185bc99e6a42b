//! A stream of server-sent events, looked at while it passes.
//!
//! Nothing is changed, and nothing is kept but the event that is being read: the bytes go on as they came, and what they say is found out
//! beside them. Events that the service invents tomorrow are passed like all others.
use memchr::memchr;

/// An event is not looked into beyond this, bytes. It is passed all the same.
const LONGEST: usize = 16 << 20;

/// Finds the events in a stream, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    name: String,
    data: Vec<u8>,
    /// Its data is longer than what is looked into.
    long: bool,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its name, where the stream says it; empty: it stands in the data alone.
    pub name: &'a str,
    /// Its data; empty where that is too long to be looked into.
    pub data: &'a [u8],
}

impl Events {
    /// Takes the next bytes; `each` gets the events that they end.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Event<'_>)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.end_of(line, &mut each);
            } else {
                self.keep(line);
                let line = std::mem::take(&mut self.line);
                self.end_of(&line, &mut each);
            }
        }
        self.keep(bytes);
    }

    /// Whether the bytes so far end between two events.
    pub fn is_between(&self) -> bool {
        self.line.is_empty() && self.name.is_empty() && self.data.is_empty() && !self.long
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LONGEST.saturating_sub(self.line.len());
        self.long |= part.len() > room;
        self.line.extend_from_slice(part.get(..room).unwrap_or(part));
    }

    fn end_of(&mut self, line: &[u8], each: &mut impl FnMut(Event<'_>)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let data: &[u8] = if self.long { b"" } else { &self.data };
            if !self.name.is_empty() || !self.data.is_empty() || self.long {
                each(Event { name: &self.name, data });
            }
            self.name.clear();
            self.data.clear();
            self.long = false;
            return;
        }
        let value = |field: &str| {
            let value = line.strip_prefix(field.as_bytes())?.strip_prefix(b":")?;
            Some(value.strip_prefix(b" ").unwrap_or(value))
        };
        if let Some(name) = value("event") {
            self.name = String::from_utf8_lossy(name).into_owned();
        } else if let Some(data) = value("data") {
            if self.data.len() + data.len() > LONGEST {
                self.long = true;
                return;
            }
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = ": hello\n\nevent: response.created\ndata: {\"type\":\"response.created\"}\n\ndata: {\"a\":\ndata: 1}\r\n\r\n\
                          event:x\nid: 7\ndata:{}\n\ndata: [DONE]\n\n";

    fn events(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let (mut events, mut found) = (Events::default(), Vec::new());
        for piece in pieces {
            events.feed(piece, |event| {
                found.push((event.name.to_owned(), String::from_utf8(event.data.to_vec()).unwrap()));
            });
        }
        assert!(events.is_between());
        found
    }

    #[test]
    fn events_are_found() {
        let found = events(&[STREAM.as_bytes()]);
        let found: Vec<_> = found.iter().map(|(name, data)| (name.as_str(), data.as_str())).collect();
        assert_eq!(
            found,
            [("response.created", "{\"type\":\"response.created\"}"), ("", "{\"a\":\n1}"), ("x", "{}"), ("", "[DONE]"),]
        );
    }

    #[test]
    fn what_is_too_long_is_named_but_not_looked_into() {
        let mut events = Events::default();
        let mut found = Vec::new();
        events.feed(b"event: big\ndata: ", |_| panic!());
        let piece = vec![b'x'; 1 << 20];
        (0..17).for_each(|_| events.feed(&piece, |_| panic!()));
        assert!(events.line.len() <= LONGEST);
        events.feed(b"\n\nevent: next\ndata: 1\n\n", |event| found.push((event.name.to_owned(), event.data.len())));
        assert_eq!(found, [("big".to_owned(), 0), ("next".to_owned(), 1)]);
    }

    proptest! {
        #[test]
        fn however_it_is_cut(cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&STREAM.as_bytes()[from..cut]);
                from = cut;
            }
            pieces.push(&STREAM.as_bytes()[from..]);
            prop_assert_eq!(events(&pieces), events(&[STREAM.as_bytes()]));
        }
    }
}
