use proptest::prelude::*;

use super::*;

fn said(text: &str) -> Transcript {
    Transcript { text: text.to_owned(), ..Transcript::default() }
}

fn part(start: f64, length: f64, overlap: f64, transcript: Transcript) -> Part {
    let [start, length, overlap] = [start, length, overlap].map(Duration::from_secs_f64);
    Part { start, length, overlap, transcript }
}

fn timed_words(segments: &[(f64, f64, &str)]) -> Transcript {
    let text = segments.iter().map(|(.., text)| *text).collect::<Vec<_>>().join(" ");
    let segment = |(start_s, end_s, text): &(f64, f64, &str)| Segment {
        start_s: *start_s,
        end_s: *end_s,
        text: (*text).to_owned(),
        speaker: None,
        estimated: false,
    };
    Transcript { text, segments: segments.iter().map(segment).collect(), ..Transcript::default() }
}

fn plain(text: &str) -> Vec<String> {
    words::Words::of(text).as_slice().iter().map(|word| word.plain.clone()).collect()
}

/// Two pieces that share two seconds.
fn two(first: &str, second: &str) -> String {
    let whole = join(&[part(0.0, 60.0, 0.0, said(first)), part(58.0, 60.0, 2.0, said(second))]);
    let of_segments = whole.segments.iter().flat_map(|segment| plain(&segment.text)).collect::<Vec<_>>();
    assert_eq!(of_segments, plain(&whole.text), "the segments say what the text says");
    whole.text
}

#[test]
fn what_both_heard_is_written_once() {
    let table = [
        ("as it is", "I live in Paris now", "in Paris now and like it.", "I live in Paris now and like it."),
        ("case and punctuation", "I live in Paris, now.", "In Paris now? And you?", "I live in Paris, now? And you?"),
        ("one word", "and then we went", "Went home.", "and then we went home."),
        (
            "a word cut at the end",
            "please tell me the weath",
            "tell me the weather today",
            "please tell me the weather today",
        ),
        (
            "a word cut at the front",
            "please tell me the weather",
            "ell me the weather today",
            "please tell me the weather today",
        ),
        ("cut on both sides", "change my booking for Ju", "ange my booking for June", "change my booking for June"),
        ("nothing alike", "one two three", "four five six", "one two three four five six"),
        ("a broken word beside a single one is no proof", "take the red", "blue red car", "take the red blue red car"),
        ("all of the second", "so long and thanks", "and thanks!", "so long and thanks!"),
        ("the first is silent", "", "hello there", "hello there"),
        ("the second is silent", "hello there", " ", "hello there"),
        ("quoted", "he said \"come here", "Come here\" and left", "he said \"come here\" and left"),
        ("no spaces", "我们明天去北京。", "去北京开会。", "我们明天去北京开会。"),
        ("no spaces, nothing alike", "我们明天", "去北京", "我们明天去北京"),
    ];
    for (name, first, second, want) in table {
        assert_eq!(two(first, second), want, "{name}");
    }
}

#[test]
fn no_more_is_taken_than_can_have_been_said() {
    let words = |count: usize| vec!["no"; count].join(" ");
    // 7 words a second, 2 seconds.
    assert_eq!(plain(&two(&words(40), &words(40))).len(), 66);
    assert_eq!(plain(&two(&words(5), &words(40))).len(), 40);
    let cut = [part(0.0, 60.0, 0.0, said("tick tock")), part(60.0, 60.0, 0.0, said("tock tick"))];
    assert_eq!(join(&cut).text, "tick tock tock tick", "cut in a pause: nothing was heard twice");
}

#[test]
fn times_are_the_recordings() {
    let first = timed_words(&[(0.5, 30.0, "The first half."), (57.0, 60.5, "And now the")]);
    let second = timed_words(&[(0.0, 4.0, "now the second."), (5.0, 9.0, "It ends.")]);
    let whole = join(&[part(0.0, 60.0, 0.0, first), part(58.0, 10.0, 2.0, second)]);
    assert_eq!(whole.text, "The first half. And now the second. It ends.");
    let times: Vec<_> =
        whole.segments.iter().map(|one| (one.start_s, one.end_s, one.text.as_str(), one.estimated)).collect();
    let want = [
        (0.5, 30.0, "The first half.", false),
        (57.0, 60.0, "And now the", false),
        (60.0, 62.0, "second.", false),
        (63.0, 67.0, "It ends.", false),
    ];
    assert_eq!(times, want);
    assert_eq!(whole.duration_s, Some(68.0));
}

#[test]
fn where_words_differ_the_times_decide() {
    let first = timed_words(&[(50.0, 58.5, "It costs"), (59.2, 60.0, "24")]);
    let second = timed_words(&[(0.2, 0.9, "it's"), (1.1, 2.5, "twenty-four euros"), (3.0, 4.0, "each")]);
    let whole = join(&[part(0.0, 60.0, 0.0, first.clone()), part(58.0, 10.0, 2.0, second.clone())]);
    assert_eq!(whole.text, "It costs twenty-four euros each");
    let texts: Vec<_> = whole.segments.iter().map(|one| (one.start_s, one.text.as_str())).collect();
    assert_eq!(texts, [(50.0, "It costs"), (59.1, "twenty-four euros"), (61.0, "each")]);
    let untimed = join(&[part(0.0, 60.0, 0.0, said(&first.text)), part(58.0, 10.0, 2.0, said(&second.text))]);
    assert_eq!(untimed.text, "It costs 24 it's twenty-four euros each", "no times, so both stay");
}

#[test]
fn without_times_sentences_share_them_by_their_length() {
    let whole = join(&[part(0.0, 30.0, 0.0, said("Ten chars. And twenty letters."))]);
    let times: Vec<_> = whole.segments.iter().map(|one| (one.start_s, one.end_s, one.text.as_str())).collect();
    assert_eq!(times, [(0.0, 11.0, "Ten chars."), (11.0, 30.0, "And twenty letters.")]);
    assert!(whole.segments.iter().all(|segment| segment.estimated));
    let written = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<Transcript>(&written).unwrap(), whole);
    assert_eq!(join(&[]), Transcript::default());
    let silent = join(&[part(0.0, 30.0, 0.0, said(""))]);
    assert_eq!((silent.text.as_str(), silent.segments.len(), silent.duration_s), ("", 0, Some(30.0)));
}

/// A recording of words, cut into pieces that share so many of them.
fn cut(words: &[String], cuts: &[(usize, usize)]) -> Vec<Vec<String>> {
    let (mut from, mut at) = (0, 0);
    let mut pieces = Vec::new();
    for (length, shared) in cuts {
        // A piece is far longer than what it shares.
        at += length.max(&30);
        if at + 30 >= words.len() {
            break;
        }
        pieces.push(words[from..at].to_vec());
        from = at - shared;
    }
    pieces.push(words[from..].to_vec());
    pieces
}

/// Pieces of a minute that share two seconds.
fn parts(pieces: &[Vec<String>]) -> Vec<Part> {
    let made = |(index, words): (usize, &Vec<String>)| {
        let overlap = if index == 0 { 0.0 } else { 2.0 };
        part(58.0 * index as f64, 60.0, overlap, said(&words.join(" ")))
    };
    pieces.iter().enumerate().map(made).collect()
}

proptest! {
    #[test]
    fn any_cut_is_joined_again(
        count in 1_usize..400, punctuation in proptest::collection::vec(0_usize..8, 400),
        cuts in proptest::collection::vec((1_usize..90, 1_usize..=14), 0..12), unsure in any::<bool>(),
    ) {
        let mark = |n: usize| ["", "", "", "", ",", ".", "?", "!"][punctuation[n]];
        let words: Vec<String> = (0..count).map(|n| format!("word{n}x{}", mark(n))).collect();
        let mut pieces = cut(&words, &cuts);
        if unsure {
            // A model takes a piece's ends for a sentence's.
            for piece in &mut pieces {
                if let Some(last) = piece.last_mut() {
                    *last = format!("{}.", last.trim_end_matches(['.', ',', '?', '!']));
                }
                piece[0] = piece[0].to_uppercase();
            }
        }
        let whole = join(&parts(&pieces));
        if unsure {
            prop_assert_eq!(plain(&whole.text), plain(&words.join(" ")));
        } else {
            prop_assert_eq!(&whole.text, &words.join(" "));
        }
    }

    #[test]
    fn few_words_are_never_cut_by_more_than_the_overlap(
        words in proptest::collection::vec(prop::sample::select(vec!["no", "yes", "well"]), 1..300),
        cuts in proptest::collection::vec((1_usize..90, 1_usize..=14), 0..8),
    ) {
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let pieces = cut(&words, &cuts);
        let given: usize = pieces.iter().map(Vec::len).sum();
        let kept = plain(&join(&parts(&pieces)).text).len();
        prop_assert!(kept <= words.len() && kept + 14 * (pieces.len() - 1) >= given, "{kept} of {given}");
    }

    #[test]
    fn times_never_go_back(
        pieces in proptest::collection::vec(
            (proptest::collection::vec((0_u32..70_000, 0_u32..9_000, "[a-c]{1,2}( [a-c]{1,2}){0,3}"), 0..8), any::<bool>()), 1..6,
        ),
    ) {
        let transcript = |(segments, timed): &(Vec<(u32, u32, String)>, bool)| {
            let mut segments = segments.clone();
            segments.sort();
            let segments: Vec<_> = segments
                .iter()
                .map(|(start, length, text)| (f64::from(*start) / 1e3, f64::from(start + length) / 1e3, text.as_str()))
                .collect();
            let all = timed_words(&segments);
            if *timed { all } else { said(&all.text) }
        };
        let parts: Vec<Part> = pieces
            .iter()
            .enumerate()
            .map(|(index, piece)| part(58.0 * index as f64, 60.0, if index == 0 { 0.0 } else { 2.0 }, transcript(piece)))
            .collect();
        let whole = join(&parts);
        let end = 58.0 * (parts.len() - 1) as f64 + 60.0;
        let mut last = 0.0;
        for segment in &whole.segments {
            prop_assert!(segment.start_s >= last && segment.end_s >= segment.start_s && segment.end_s <= end);
            prop_assert!(!segment.text.is_empty() && segment.text.trim() == segment.text);
            last = segment.start_s;
        }
        let of_segments: Vec<String> = whole.segments.iter().flat_map(|segment| plain(&segment.text)).collect();
        prop_assert_eq!(of_segments, plain(&whole.text));
    }
}
