//! A long recording: its pieces' words are the whole's, in order, and its times go on.
use std::fs;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{Desk, sound, wav};

/// What pieces have: so nothing is rounded anew.
const RATE: u32 = 16_000;
/// Different sentences in it.
const SENTENCES: u64 = 8;
const LENGTH_S: usize = 15 * 60;

/// Of `00:01:02,003`, ms.
fn ms(time: &str) -> u64 {
    let digits: Vec<u64> = time.split([':', ',']).map(|part| part.parse().unwrap()).collect();
    ((digits[0] * 60 + digits[1]) * 60 + digits[2]) * 1_000 + digits[3]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_recording_in_pieces_has_the_words_and_times_of_the_whole() {
    let desk = Desk::new().await;
    let mut dice = StdRng::seed_from_u64(40);
    let mut whole = Vec::new();
    let mut order = Vec::new();
    while whole.len() < LENGTH_S * RATE as usize {
        let sentence = dice.random_range(0..SENTENCES);
        order.push(sentence);
        whole.extend(sound(sentence, RATE));
    }
    wav(&desk.path("long.wav"), RATE, 1, &whole);
    (0..SENTENCES).for_each(|n| wav(&desk.path(&format!("{n}.wav")), RATE, 1, &sound(n, RATE)));
    let more = ["--min-seconds", "1", "--piece-seconds", "60", "--model", "whisper-1", "--srt", "--out", "texts"];
    let ran = desk.run(&[&["transcribe", "."], &more[..]].concat()).await;
    assert_eq!(ran.code, 0, "{}", ran.said);
    assert!((15..25).contains(&(desk.paid().requests["transcriptions"] - SENTENCES)), "{:?}", desk.paid().requests);
    let read = |name: &str| fs::read_to_string(desk.path(&format!("texts/{name}"))).unwrap();
    let sentences: Vec<String> = (0..SENTENCES).map(|n| read(&format!("{n}.wav.txt")).trim_end().to_owned()).collect();
    let want: Vec<&str> = order.iter().flat_map(|n| sentences[usize::try_from(*n).unwrap()].split(' ')).collect();
    let text = read("long.wav.txt");
    let found: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(found.len(), want.len());
    assert_eq!(found, want);
    let subtitles = read("long.wav.srt");
    let times: Vec<(u64, u64)> = subtitles
        .lines()
        .filter_map(|line| line.split_once(" --> "))
        .map(|(start, end)| (ms(start), ms(end)))
        .collect();
    let length = (whole.len() / (RATE as usize / 1_000)) as u64;
    assert!(times.len() > 40 && times.iter().all(|(start, end)| start < end && *end <= length), "{times:?}");
    assert!(times.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{times:?}");
    assert!(times.last().unwrap().1 + 3_000 > length, "the last word is at the end");
    let json: Value = serde_json::from_str(&read("long.wav.json")).unwrap();
    assert_eq!(json["duration_s"].as_f64(), Some(whole.len() as f64 / f64::from(RATE)));
    assert_eq!(desk.paid().paid_again(), 0, "nothing was heard twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_spoke_is_told_where_the_model_tells_it() {
    let desk = Desk::new().await;
    let talk: Vec<i16> = (0..18).flat_map(|n| sound(n, RATE)).collect();
    wav(&desk.path("talk.wav"), RATE, 1, &talk);
    let more = ["--model", "gpt-4o-transcribe-diarize", "--srt", "--out", "texts"];
    let ran = desk.run(&[&["transcribe", "talk.wav"], &more[..]].concat()).await;
    assert_eq!(ran.code, 0, "more than 30 s, which the service cuts itself: {}", ran.said);
    let read = |name: &str| fs::read_to_string(desk.path(&format!("texts/talk.wav.{name}"))).unwrap();
    let json: Value = serde_json::from_str(&read("json")).unwrap();
    let segments = json["segments"].as_array().unwrap();
    assert!(json["duration_s"].as_f64().unwrap() > 30.0 && segments.len() > 2, "{json}");
    for (n, segment) in segments.iter().enumerate() {
        assert_eq!(segment["speaker"], if n % 2 == 0 { "A" } else { "B" }, "{segment}");
        assert_eq!(segment.get("estimated"), None, "{segment}");
    }
    assert!(read("srt").contains("\nA: ") && read("srt").contains("\nB: "));
    assert!(!read("txt").contains("A: "), "the text is what was said");
}
