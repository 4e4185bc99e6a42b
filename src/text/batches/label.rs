//! The name that a file of requests has at the service: it says whose it is and what is in it, for a relay that remembers nothing.
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// What it begins with.
const MARK: &str = "voxrelay";
/// Longest name of the client's own that is kept, characters.
const LONGEST: usize = 64;

/// What a file's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Whose it is.
    pub tenant: String,
    /// The model that all of its requests name.
    pub model: String,
    /// Requests.
    pub requests: u64,
    /// What they read, tokens: a guess from above.
    pub input: u64,
    /// What they may write at most, tokens.
    pub output: u64,
    /// The client's own name of it.
    pub name: String,
}

impl Label {
    /// As the file is called.
    pub fn write(&self) -> String {
        let Self { tenant, model, requests, input, output, name } = self;
        let name: String = name.chars().take(LONGEST).collect();
        let pieces = [tenant, model, &requests.to_string(), &input.to_string(), &output.to_string(), &name];
        let pieces: Vec<String> = pieces.into_iter().map(|piece| written(piece)).collect();
        format!("{MARK}~{}~.jsonl", pieces.join("~"))
    }

    /// Reads a name; none: the file is not of a relay.
    pub fn read(name: &str) -> Option<Self> {
        let mut pieces = name.strip_prefix(MARK)?.strip_prefix('~')?.strip_suffix("~.jsonl")?.split('~').map(read);
        let mut next = || pieces.next().flatten();
        let (tenant, model) = (next()?, next()?);
        let mut number = || next()?.parse().ok();
        let (requests, input, output) = (number()?, number()?, number()?);
        Some(Self { tenant, model, requests, input, output, name: next()? })
    }
}

/// Plain where it is plain, for operators who look at their account.
fn written(piece: &str) -> String {
    if piece.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return piece.to_owned();
    }
    format!("@{}", URL_SAFE_NO_PAD.encode(piece))
}

fn read(piece: &str) -> Option<String> {
    match piece.strip_prefix('@') {
        None => Some(piece.to_owned()),
        Some(encoded) => String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(tenant in ".{0,40}", model in ".{1,40}", counts: [u64; 3], name in ".{0,64}") {
            let [requests, input, output] = counts;
            let label = Label { tenant, model, requests, input, output, name };
            let written = label.write();
            proptest::prop_assert!(written.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-~@".contains(&b)));
            proptest::prop_assert_eq!(Label::read(&written), Some(label));
        }
    }

    #[test]
    fn other_names_are_of_nobody() {
        for name in [
            "",
            "lines.jsonl",
            "voxrelay~acme~.jsonl",
            "voxrelay~acme~m~1~2~x~n~.jsonl",
            "voxrelay~@=~m~1~2~3~n~.jsonl",
        ] {
            assert_eq!(Label::read(name), None, "{name}");
        }
        let label = Label::read("voxrelay~acme~gpt-5.6-luna~2~30~400~calls.jsonl~.jsonl").unwrap();
        assert_eq!((label.tenant.as_str(), label.output, label.name.as_str()), ("acme", 400, "calls.jsonl"));
    }
}
