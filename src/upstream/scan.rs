//! Finds the top-level fields of a flat JSON object without building a tree.
//!
//! Audio events are flat: a handful of short strings and numbers beside one long base64 string. Scanning them costs a
//! tenth of parsing (benchmark `hot_path`). Whatever is not that simple (nesting, escapes, broken JSON) is left to serde.
use memchr::memchr2;

/// A value of a flat object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string without escapes, without its quotes.
    Str(&'a str),
    /// A number, `true`, `false` or `null`, as it stands.
    Bare(&'a str),
}

/// Walks the fields of `text`, a flat object; `false` as soon as it is not one, and `visit` may have been called by then.
/// `visit` says whether to go on.
pub fn flat<'a>(text: &'a str, mut visit: impl FnMut(&'a str, Value<'a>) -> bool) -> bool {
    let mut scan = Scan { text, at: 0 };
    if !scan.take(b'{') {
        return false;
    }
    loop {
        let Some(key) = scan.string() else { return false };
        if !scan.take(b':') {
            return false;
        }
        let value = match scan.peek() {
            Some(b'"') => scan.string().map(Value::Str),
            Some(b'0'..=b'9' | b'-' | b't' | b'f' | b'n') => scan.bare().map(Value::Bare),
            _ => None,
        };
        let Some(value) = value else { return false };
        if !visit(key, value) {
            return true;
        }
        if scan.take(b'}') {
            return scan.peek().is_none();
        }
        if !scan.take(b',') {
            return false;
        }
    }
}

/// Where in `text` a part of it stands.
pub fn place(text: &str, part: &str) -> std::ops::Range<usize> {
    let begin = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    begin..begin + part.len()
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let white = self.rest().iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.at += white;
        self.rest().first().copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let here = self.peek() == Some(wanted);
        self.at += usize::from(here);
        here
    }

    fn string(&mut self) -> Option<&'a str> {
        if !self.take(b'"') {
            return None;
        }
        let rest = self.rest();
        let end = memchr2(b'"', b'\\', rest)?;
        if rest.get(end) != Some(&b'"') {
            return None; // an escape
        }
        let found = self.text.get(self.at..self.at + end)?;
        self.at += end + 1;
        Some(found)
    }

    fn bare(&mut self) -> Option<&'a str> {
        let end = self.rest().iter().position(|b| matches!(b, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r'))?;
        let found = self.text.get(self.at..self.at + end)?;
        self.at += end;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Option<Vec<(String, String)>> {
        let mut out = Vec::new();
        flat(text, |key, value| {
            let (Value::Str(v) | Value::Bare(v)) = value;
            out.push((key.to_owned(), v.to_owned()));
            true
        })
        .then_some(out)
    }

    #[test]
    fn flat_objects_are_read_and_others_left() {
        for (text, want) in [
            (r#"{"type":"a","n":12,"x":null}"#, Some(vec![("type", "a"), ("n", "12"), ("x", "null")])),
            ("{ \"type\" : \"a\" ,\n \"n\" : -1.5 } ", Some(vec![("type", "a"), ("n", "-1.5")])),
            (r#"{"a":"with \" escape"}"#, None),
            (r#"{"a":{"nested":1}}"#, None),
            (r#"{"a":[1]}"#, None),
            (r#"{"a":1"#, None),
            (r#"{"a":1} more"#, None),
            ("", None),
            ("{}", None),
        ] {
            let want = want.map(|f| f.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
            assert_eq!(fields(text), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_serde(map in proptest::collection::btree_map("[a-z_]{1,8}", "[ -~]{0,40}", 1..6)) {
            let text = serde_json::to_string(&map).unwrap();
            if let Some(found) = fields(&text) {
                proptest::prop_assert_eq!(found, map.into_iter().collect::<Vec<_>>());
            } else {
                proptest::prop_assert!(text.contains('\\'));
            }
        }

        #[test]
        fn never_panics(text: String) {
            let _ = fields(&text);
        }
    }
}
