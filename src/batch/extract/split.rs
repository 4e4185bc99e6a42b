//! A text that is too long, in parts that fit and lose nothing: the parts one after the other are the text, byte by byte. Cut at the last
//! paragraph's end that fits, or else at a line's, a sentence's, a word's, and only then in a word.
use std::ops::Range;

use crate::text::ask::tokens;

/// Tokens of a text as a JSON string within a request.
pub fn quoted(text: &str) -> u64 {
    // Line ends, tabs, quotes and backslashes get a backslash; other controls six letters.
    let doubled = text.bytes().filter(|b| matches!(b, b'\n' | b'\r' | b'\t' | b'"' | b'\\')).count() as u64;
    let controls = text.bytes().filter(|b| *b < 0x20 && !matches!(b, b'\n' | b'\r' | b'\t')).count() as u64;
    tokens(text).saturating_add(doubled).saturating_add(controls.saturating_mul(3)).saturating_add(2)
}

/// The parts of `text`, each of at most `most` tokens as [`quoted`] counts (but at least one letter). A text that fits is one part, also an
/// empty one. A little less than `most` is filled where that makes the parts equal.
pub fn split(text: &str, most: u64) -> Vec<Range<usize>> {
    let whole = quoted(text);
    if whole <= most || text.is_empty() {
        return std::iter::once(0..text.len()).collect();
    }
    // Equal parts, not full ones and a rest of three words; a tenth more, for boundaries are not where one wants them.
    let parts = whole.div_ceil(most.max(1));
    let even = whole.div_ceil(parts);
    let want = even.saturating_add(even / 10 + 8).min(most);
    let mut cuts = Vec::new();
    let mut from = 0;
    while let Some(rest) = text.get(from..).filter(|rest| !rest.is_empty()) {
        let fits = fitting(rest, want);
        let length = if fits == rest.len() { fits } else { boundary(rest, fits) };
        cuts.push(from..from + length);
        from += length;
    }
    cuts
}

/// The most bytes of the beginning that fit, at least one letter.
fn fitting(text: &str, most: u64) -> usize {
    let mut fits = text.chars().next().map_or(0, char::len_utf8);
    // A token is four bytes at most.
    let bytes = usize::try_from(most.saturating_add(1).saturating_mul(4)).unwrap_or(usize::MAX);
    let mut over = floor(text, text.len().min(bytes)).max(fits);
    while fits < over {
        let middle = ceil(text, fits + (over - fits).div_ceil(2));
        if text.get(..middle).is_some_and(|head| quoted(head) <= most) {
            fits = middle;
        } else {
            over = floor(text, middle - 1);
        }
    }
    fits
}

fn ceil(text: &str, at: usize) -> usize {
    (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Where to cut within the first `most` bytes; what is cut off first keeps its white space at the end. Not so early that the part is less
/// than half full, where anything later is there.
fn boundary(text: &str, most: usize) -> usize {
    let Some(head) = text.get(..most) else { return most };
    let ends = |mark: &str| head.rfind(mark).map(|at| at + mark.len());
    let sentence = || {
        let marks = [". ", "? ", "! ", "。", "？", "！", "… "];
        marks.iter().filter_map(|mark| ends(mark)).max()
    };
    let word = || head.char_indices().rev().find(|(_, c)| c.is_whitespace()).map(|(at, c)| at + c.len_utf8());
    let kinds = [ends("\n\n"), ends("\n"), sentence(), word()];
    let late = kinds.iter().flatten().find(|at| **at > most / 2);
    late.or_else(|| kinds.iter().flatten().max()).copied().unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str, most: u64) -> Vec<&str> {
        split(text, most).into_iter().map(|part| &text[part]).collect()
    }

    #[test]
    fn cut_where_the_text_allows() {
        assert_eq!(parts("", 0), [""]);
        assert_eq!(parts("all of it", 100), ["all of it"]);
        let paragraphs = "One is here, with words.\n\nTwo is here, with words.\n\n";
        assert_eq!(parts(paragraphs, 14), ["One is here, with words.\n\n", "Two is here, with words.\n\n"]);
        let lines = "Anna: good day, who is there\nBert: it is me, of course\n";
        assert_eq!(parts(lines, 14), ["Anna: good day, who is there\n", "Bert: it is me, of course\n"]);
        let sentences = "This is the first sentence here. And that is the second one of them all";
        assert_eq!(
            parts(sentences, 14),
            ["This is the first sentence here. ", "And that is the second one of them all"]
        );
        let words = "so many words and never a full stop in all of it as far as one can see";
        assert!(parts(words, 12).iter().all(|part| part.ends_with([' ', 'e'])), "{:?}", parts(words, 12));
        assert_eq!(parts("aaaaaaaaaaaaaaaa", 4), ["aaaaaaaa", "aaaaaaaa"]);
        assert_eq!(
            parts("東京は日本の首都です。京都は昔の首都です。", 13),
            ["東京は日本の首都です。", "京都は昔の首都です。"]
        );
        assert_eq!(parts("äöü", 0), ["ä", "ö", "ü"], "a letter is never cut");
    }

    #[test]
    fn parts_are_about_equal() {
        let text = "Somebody says something here.\n".repeat(1_000);
        let whole = quoted(&text);
        let cut = parts(&text, whole / 3 * 2);
        assert_eq!(cut.len(), 2);
        assert!(cut[0].len() * 10 < text.len() * 6, "{} of {}", cut[0].len(), text.len());
    }

    proptest::proptest! {
        /// Nothing is lost, nothing is doubled, and every part fits.
        #[test]
        fn the_parts_are_the_text(text in "(?s)[a-zA-Z .,!?\n\t\"\\\\äß東。\u{1F600}\u{0}]{0,600}", most in 0u64..200) {
            let parts = parts(&text, most);
            proptest::prop_assert_eq!(parts.concat(), text.clone());
            for part in &parts {
                let fits = quoted(part) <= most || part.chars().count() <= 1;
                proptest::prop_assert!(fits, "{} tokens of {}: {:?}", quoted(part), most, part);
            }
            proptest::prop_assert!(parts.len() == 1 || parts.iter().all(|part| !part.is_empty()));
        }

        /// What is counted is no less than what is sent.
        #[test]
        fn quoting_is_counted_from_above(text in "(?s)[a-z0-9.\n\t\"\\\\ä\u{1}\u{7f}]{0,300}") {
            let sent = serde_json::Value::from(text.as_str()).to_string();
            proptest::prop_assert!(quoted(&text) >= tokens(&sent), "{} for {}", quoted(&text), tokens(&sent));
        }
    }
}
