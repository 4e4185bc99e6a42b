//! A text's words, as they are compared: without case, punctuation and space.
use std::ops::Range;

/// A text's words and where they stand.
#[derive(Debug)]
pub(super) struct Words {
    words: Vec<Word>,
}

/// One word.
#[derive(Debug)]
pub(super) struct Word {
    /// Its letters and digits, in lower case.
    pub(super) plain: String,
    /// Its bytes, from the first letter to the last.
    pub(super) place: Range<usize>,
}

impl Word {
    /// It is one letter of a script without spaces.
    pub(super) fn is_letter(&self) -> bool {
        self.plain.chars().all(is_unspaced)
    }
}

impl Words {
    /// The words of `text`. In scripts that put no space between words, every letter is one.
    pub(super) fn of(text: &str) -> Self {
        let mut words: Vec<Word> = Vec::new();
        let mut open = false;
        for (at, c) in text.char_indices() {
            if c.is_whitespace() {
                open = false;
                continue;
            }
            if !c.is_alphanumeric() {
                continue;
            }
            let alone = is_unspaced(c);
            let end = at + c.len_utf8();
            match words.last_mut().filter(|_| open && !alone) {
                Some(word) => {
                    word.plain.extend(c.to_lowercase());
                    word.place.end = end;
                }
                None => words.push(Word { plain: c.to_lowercase().collect(), place: at..end }),
            }
            open = !alone;
        }
        Self { words }
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    pub(super) fn as_slice(&self) -> &[Word] {
        &self.words
    }
}

/// Written without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}' | '\u{3040}'..='\u{30FF}'
        | '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// What belongs between two texts.
pub(super) fn glue(before: &str, after: &str) -> &'static str {
    let unspaced = |c: char| is_unspaced(c) || matches!(c, '\u{3000}'..='\u{303F}' | '\u{FF00}'..='\u{FF65}');
    match (before.chars().next_back(), after.chars().next()) {
        (None, _) | (_, None) => "",
        (Some(last), Some(first)) if unspaced(last) && unspaced(first) || last.is_whitespace() => "",
        _ => " ",
    }
}

/// A text's sentences, with the space behind them; together they are the text. A full stop ends one only before a space.
pub(super) fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut ended, mut spaced) = (false, false);
        let end = rest.char_indices().find_map(|(at, c)| {
            if ended && !c.is_whitespace() && (spaced || !is_closing(c)) {
                return Some(at);
            }
            spaced = ended && c.is_whitespace();
            let next = rest.get(at + c.len_utf8()..).and_then(|rest| rest.chars().next());
            ended |= matches!(c, '。' | '！' | '？')
                || matches!(c, '.' | '!' | '?' | '…' | '؟' | '।')
                    && next.is_none_or(|c| c.is_whitespace() || is_closing(c));
            None
        });
        let (sentence, others) = rest.split_at(end.unwrap_or(rest.len()));
        rest = others;
        Some(sentence)
    })
}

fn is_closing(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '»' | '」' | '』' | '.' | '!' | '?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters_and_digits() {
        let plain = |text: &str| Words::of(text).words.into_iter().map(|word| word.plain).collect::<Vec<_>>();
        assert_eq!(plain("  Don't STOP -- “now”, 12.50 €!"), ["dont", "stop", "now", "1250"]);
        assert_eq!(plain("我在 OpenAI 工作。"), ["我", "在", "openai", "工", "作"]);
        assert_eq!(plain(" … "), [""; 0]);
        let words = Words::of("a (bc), d");
        assert_eq!(words.words[1].place, 3..5);
    }

    #[test]
    fn sentences_are_the_text() {
        for (text, want) in [
            ("Hello. How are you?  Fine", vec!["Hello. ", "How are you?  ", "Fine"]),
            ("It costs 3.50 today! \"Really?\" Yes.", vec!["It costs 3.50 today! ", "\"Really?\" ", "Yes."]),
            ("好。我来了！", vec!["好。", "我来了！"]),
            ("Wait... what?!", vec!["Wait... ", "what?!"]),
            ("", vec![]),
        ] {
            assert_eq!(sentences(text).collect::<Vec<_>>(), want);
        }
    }
}
