//! One command, one table: what is in it, in every format, and what it cost.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
};

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::Value;

use super::{CLIPS, Desk, bill, whole};

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_becomes_one_table_and_its_bill_is_the_services_count() {
    let desk = Desk::new().await;
    (0..200).for_each(|n| desk.made(&format!("made/{:03}.wav", n), n));
    (0..3).for_each(|n| desk.made(&format!("again/{n}.wav"), n));
    let ran = desk.run(&["transcribe", CLIPS, "made", "again", "--min-seconds", "1", "--out", "out.csv"]).await;
    assert_eq!(ran.code, 1, "a film without sound is among them: {}", ran.said);
    let (rows, errors) = (desk.table("out.csv"), desk.errors("out.errors.csv"));
    let ids: BTreeSet<&str> = rows.iter().map(|row| row["id"].as_str()).collect();
    assert_eq!(ids.len(), rows.len(), "no file twice");
    assert!((0..200).all(|n| ids.contains(format!("made/{n:03}.wav").as_str())), "{ids:?}");
    let clips = fs::read_dir(CLIPS).unwrap().filter(|clip| {
        let name = clip.as_ref().unwrap().file_name();
        name != "README.md" && name != "g711"
    });
    assert_eq!(rows.len() + errors.len(), 203 + clips.count(), "{errors:?}");
    assert!(rows.iter().all(|row| row["transcript"].len() > 3 || row["id"].contains("silence")), "{rows:?}");
    let codes: Vec<&str> = errors.values().map(|(code, _)| code.as_str()).collect();
    assert_eq!(codes, ["no_audio_track", "too_short", "too_short"]);
    let paid = desk.paid();
    assert_eq!((paid.paid_again(), paid.refused.len()), (0, 0), "{:?}", paid.refused);
    let reused: Vec<&str> =
        rows.iter().filter(|row| row["reused"] == "true").map(|row| row["cost_usd"].as_str()).collect();
    assert_eq!(reused.len(), 3, "the same content under two names is paid once");
    assert!(reused.iter().all(|cost| cost.parse::<f64>() == Ok(0.0)), "{reused:?}");
    let ((cost, ms), (booked, seconds)) = (bill(&rows), desk.booked().await);
    assert_eq!((ms, whole(seconds * 1_000.0)), (paid.billed_ms, paid.billed_ms));
    // 0.0045 USD a minute, by hand.
    assert_eq!((cost, cost.pico()), (booked, i128::from(ms) * 4_500_000_000 / 60_000));
    assert!(ran.said.contains(&format!("cost       {cost} USD")), "{}", ran.said);
    assert!(ran.said.contains("film_without_sound.mp4: there is no audio track in this file"), "{}", ran.said);
}

/// Texts by id, whatever they were written as.
fn texts(desk: &Desk, out: &str) -> BTreeMap<String, String> {
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    match out.rsplit('.').next().unwrap() {
        "csv" => desk.table(out).iter().map(|row| (row["id"].clone(), row["transcript"].clone())).collect(),
        "jsonl" => {
            let text = fs::read_to_string(desk.path(out)).unwrap();
            let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            rows.map(|row| (field(&row, "id"), field(&row, "transcript"))).collect()
        }
        "parquet" => {
            let reader = SerializedFileReader::new(File::open(desk.path(out)).unwrap()).unwrap();
            let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
            let named = rows.map(|row| {
                let field = |wanted: &str| {
                    let (_, field) = row.get_column_iter().find(|(name, _)| *name == wanted).unwrap();
                    field.to_string().trim_matches('"').to_owned()
                };
                (field("id"), field("transcript"))
            });
            named.collect()
        }
        _ => {
            let ids = (0..6).map(|n| format!("in/{n}.wav"));
            let read = |id: String| {
                let text = fs::read_to_string(desk.path(&format!("{out}/{id}.txt"))).unwrap();
                let json = fs::read_to_string(desk.path(&format!("{out}/{id}.json"))).unwrap();
                let json: Value = serde_json::from_str(&json).unwrap();
                assert_eq!(field(&json, "transcript"), text.trim_end());
                for (subtitles, begins) in [("srt", "1\n00:00:00,"), ("vtt", "WEBVTT\n")] {
                    let subtitles = fs::read_to_string(desk.path(&format!("{out}/{id}.{subtitles}"))).unwrap();
                    assert!(subtitles.starts_with(begins) && subtitles.contains(" --> "), "{subtitles}");
                }
                (id, text.trim_end().to_owned())
            };
            ids.map(read).collect()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_has_the_same_texts() {
    let desk = Desk::new().await;
    (0..6).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    let mut found: Option<BTreeMap<String, String>> = None;
    for (out, more) in [("a.csv", &[][..]), ("a.jsonl", &[]), ("a.parquet", &[]), ("texts", &["--srt", "--vtt"])] {
        let args = [&["transcribe", "in", "--min-seconds", "1", "--out", out], more].concat();
        let ran = desk.run(&args).await;
        assert_eq!(ran.code, 0, "{out}: {}", ran.said);
        let texts = texts(&desk, out);
        assert_eq!(texts.len(), 6, "{out}");
        assert!(found.is_none_or(|found| found == texts), "{out}: {texts:?}");
        found = Some(texts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_stand_beside_the_texts_they_were_taken_from() {
    let desk = Desk::new().await;
    (0..6).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    let args = ["transcribe", "in", "--min-seconds", "1", "--extract", "call-summary", "--out", "out.csv"];
    let ran = desk.run(&args).await;
    assert_eq!(ran.code, 0, "{}", ran.said);
    let rows = desk.table("out.csv");
    for column in ["topic", "summary", "outcome", "sentiment", "next_steps", "transcript"] {
        assert!(rows.iter().all(|row| !row[column].is_empty()), "{column}: {rows:?}");
    }
    let (paid, booked) = (desk.paid(), desk.booked().await);
    let tokens = |name: &str| rows.iter().map(|row| row[name].parse::<u64>().unwrap()).sum::<u64>();
    assert_eq!((tokens("input_tokens"), tokens("output_tokens")), (paid.input_tokens, paid.output_tokens));
    assert_eq!((bill(&rows).0, paid.paid_again()), (booked.0, 0));
    // And of texts that are there.
    fs::create_dir(desk.path("texts")).unwrap();
    rows.iter().enumerate().for_each(|(n, row)| {
        fs::write(desk.path(&format!("texts/{n}.txt")), &row["transcript"]).unwrap();
    });
    let ran = desk.run(&["extract", "texts", "--extract", "call-summary", "--out", "facts.jsonl"]).await;
    assert_eq!(ran.code, 0, "{}", ran.said);
    assert_eq!(fs::read_to_string(desk.path("facts.jsonl")).unwrap().lines().count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_job_with_the_same_recording_under_another_name_is_not_paid_again() {
    let desk = Desk::new().await;
    desk.made("in/a.wav", 1);
    fs::copy(desk.path("in/a.wav"), desk.path("b.wav")).unwrap();
    for (what, out) in [("in", "1.csv"), ("b.wav", "2.csv")] {
        let ran = desk.run(&["transcribe", what, "--min-seconds", "1", "--out", out]).await;
        assert_eq!((ran.code, desk.table(out).len()), (0, 1), "{}", ran.said);
    }
    let (first, second) = (&desk.table("1.csv")[0], &desk.table("2.csv")[0]);
    assert_eq!((&first["transcript"], desk.paid().requests["transcriptions"]), (&second["transcript"], 1));
    assert_eq!(bill(&desk.table("1.csv")).0, desk.booked().await.0);
    let billed = ["cost_usd", "audio_s", "input_tokens"].map(|name| second[name].parse::<f64>().unwrap());
    assert_eq!(billed, [0.0; 3], "{second:?}");
}
