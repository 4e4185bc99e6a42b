use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use ::parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::Field,
};
use serde_json::json;

use super::*;
use crate::{
    admit::price::Usd,
    batch::{
        join::Segment,
        source::{Listed, Unread},
        store::{Content, End, Entry, Extracted, Params, Part, Task, Transcript, Usage},
    },
};

const TEXT: &str = "He said \"no\",\r\nthen left; =1+1 ÄÖ";

fn schema() -> Value {
    json!({"type": "object", "$defs": {"mood": {"type": "string", "enum": ["good", "bad"]}}, "properties": {
        "mood": {"$ref": "#/$defs/mood"}, "score": {"type": ["number", "null"]}, "count": {"type": "integer"},
        "sold": {"type": "boolean"}, "due": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "grade": {"type": ["integer", "number"]}, "tags": {"type": "array", "items": {"type": "string"}}, "model": {"type": "string"},
    }})
}

fn segment(start_s: f64, end_s: f64, text: &str, speaker: Option<&str>) -> Segment {
    Segment { start_s, end_s, text: text.to_owned(), speaker: speaker.map(str::to_owned), estimated: speaker.is_none() }
}

/// Two that are done (one with all, one with little), one that failed, one that was skipped.
fn job(dir: &Path) -> Store {
    let store = Store::create(&dir.join("job"), &Params::default(), Path::new("/in")).unwrap();
    let meta = |agent: Value| [("agent".to_owned(), agent)].into_iter().collect();
    let listed =
        |id: &str, agent| Listed { id: id.to_owned(), source: format!("/in/{id}"), metadata: meta(agent), line: None };
    store
        .add([
            listed("b/x.wav", json!("Doe, J")),
            listed("a/x.wav", json!(7)),
            listed("c", json!("-")),
            listed("d", json!("-")),
        ])
        .unwrap();
    let items = store.claim(9, 1_000).unwrap();
    let [full, bare, failed, skipped] = [0, 1, 2, 3].map(|n: usize| items[n].n);
    store.describe(full, &Content { hash: [1; 32], bytes: 5, duration_ms: 61_500 }).unwrap();
    let part = Part { task: Task::Piece, number: 0, seal: String::new() };
    let usage = Usage {
        input_tokens: 100,
        output_tokens: 20,
        audio_ms: 61_500,
        cost: Usd::from_pico(6_150_000_000),
        unpriced: 0,
    };
    store.begin(full, &part, 1).unwrap();
    store.answered(full, &part, "", &usage, 1).unwrap();
    let segments =
        vec![segment(0.0, 1.25, " He said --> <no> ", None), segment(3_661.007, 3_662.0, "then\n\nleft", Some("B"))];
    store
        .put_transcript(
            full,
            &Transcript { text: TEXT.into(), language: Some("en".into()), model: "w".into(), segments },
        )
        .unwrap();
    let extract = json!({"mood": "good", "score": 0.5, "count": 3.0, "sold": true, "due": "on Monday", "grade": 2,
        "tags": ["a", "b"], "model": "T"});
    store.put_extract(full, &Extracted { json: Some(extract), error: None, model: "m".into() }).unwrap();
    store.end(full, &End::Done, 1_700_000_000_123).unwrap();
    store
        .put_transcript(bare, &Transcript { text: "bare".into(), model: "w".into(), ..Transcript::default() })
        .unwrap();
    store.end(bare, &End::Done, 3_000).unwrap();
    store.end(failed, &End::Failed { code: "not_audio".into(), message: "c: not an audio file".into() }, 2).unwrap();
    store.end(skipped, &End::Skipped { code: "too_short".into(), message: "1 s, allowed is 5 s".into() }, 2).unwrap();
    store
}

fn output(out: PathBuf, order: Order) -> Output {
    let format = Format::of(&out).unwrap();
    Output {
        out,
        format,
        subtitles: Subtitles { srt: true, vtt: true },
        schema: Some(schema()),
        order,
        stop: CancellationToken::new(),
    }
}

#[test]
fn a_csv_is_read_back_as_it_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    let out = output(dir.path().join("new/table.csv"), Order::Listed);
    let written = out.write(&store).unwrap();
    let errors_at = dir.path().join("new/table.errors.csv");
    assert_eq!(written, Written { rows: 2, errors: 2, errors_at: Some(errors_at.clone()) });
    let read = |file: &Path| {
        let mut reader = csv::Reader::from_path(file).unwrap();
        reader.deserialize().collect::<Result<Vec<BTreeMap<String, String>>, _>>().unwrap()
    };
    let rows = read(&out.out);
    for (name, want) in [
        ("id", "b/x.wav"),
        ("file", "/in/b/x.wav"),
        ("duration_s", "61.5"),
        ("transcript", TEXT),
        ("cost_usd", "0.00615"),
        ("input_tokens", "100"),
        ("started", "1970-01-01T00:00:01Z"),
        ("finished", "2023-11-14T22:13:20.123Z"),
        ("attempts", "1"),
        ("agent", "Doe, J"),
        ("mood", "good"),
        ("sold", "true"),
        ("due", "on Monday"),
        ("grade", "2"),
        ("tags", r#"["a","b"]"#),
        ("model", "w"),
        ("extract_model", "T"),
    ] {
        assert_eq!(rows[0][name], want, "{name}");
    }
    assert_eq!((rows[1]["agent"].as_str(), rows[1]["language"].as_str(), rows[1]["score"].as_str()), ("7", "", ""));
    let errors = read(&errors_at);
    assert_eq!((errors[0]["code"].as_str(), errors[0]["state"].as_str()), ("not_audio", "failed"));
    assert_eq!((errors[1]["message"].as_str(), errors[1]["state"].as_str()), ("1 s, allowed is 5 s", "skipped"));
    assert!(fs::read(&out.out).unwrap().windows(2).filter(|end| end == b"\r\n").count() >= 3);
    let left: BTreeSet<_> =
        fs::read_dir(dir.path().join("new")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing half written is left: {left:?}");
}

#[test]
fn jsonl_has_lists_and_numbers_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    let out = output(dir.path().join("table.jsonl"), Order::Id);
    out.write(&store).unwrap();
    let text = fs::read_to_string(&out.out).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows[0]["id"].as_str(), rows[1]["id"].as_str()), (Some("a/x.wav"), Some("b/x.wav")), "by id");
    assert_eq!(
        (&rows[1]["tags"], &rows[1]["transcript"], &rows[1]["count"]),
        (&json!(["a", "b"]), &json!(TEXT), &json!(3.0))
    );
    assert_eq!((&rows[1]["finished"], &rows[0]["agent"]), (&json!("2023-11-14T22:13:20.123Z"), &json!(7)));
    // Nothing failed any more: what was listed is not.
    assert!(out.errors().exists());
    store.retry_failed().unwrap();
    for item in store.claim(9, 1).unwrap() {
        store.end(item.n, &End::Done, 2).unwrap();
    }
    let again = out.write(&store).unwrap();
    assert_eq!((again.rows, again.errors), (3, 1), "what was skipped is");
}

#[test]
fn parquet_is_read_back_with_its_types() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    let out = output(dir.path().join("table.parquet"), Order::Listed);
    assert_eq!(out.write(&store).unwrap().rows, 2);
    let rows = |file: &Path| {
        let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
        let rows = reader.get_row_iter(None).unwrap().map(|row| {
            row.unwrap()
                .get_column_iter()
                .map(|(name, field)| (name.clone(), field.clone()))
                .collect::<BTreeMap<_, _>>()
        });
        rows.collect::<Vec<_>>()
    };
    let found = rows(&out.out);
    let text = |text: &str| Field::Str(text.to_owned());
    for (name, want) in [
        ("id", text("b/x.wav")),
        ("transcript", text(TEXT)),
        ("duration_s", Field::Double(61.5)),
        ("input_tokens", Field::Long(100)),
        ("cost_usd", Field::Double(0.00615)),
        ("finished", Field::TimestampMillis(1_700_000_000_123)),
        ("agent", text("Doe, J")),
        ("mood", text("good")),
        ("score", Field::Double(0.5)),
        ("count", Field::Long(3)),
        ("sold", Field::Bool(true)),
        ("due", text("on Monday")),
        ("grade", Field::Double(2.0)),
        ("tags", text(r#"["a","b"]"#)),
        ("extract_model", text("T")),
    ] {
        assert_eq!(found[0][name], want, "{name}");
    }
    assert_eq!(
        (&found[1]["agent"], &found[1]["score"], &found[1]["language"]),
        (&text("7"), &Field::Null, &Field::Null)
    );
    assert_eq!(rows(&out.errors())[0]["code"], text("not_audio"));
}

#[test]
fn many_rows_are_many_groups_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("job"), &Params::default(), Path::new("/in")).unwrap();
    store.add((0..25_000).map(|n| Listed { id: format!("{n:05}"), source: "/x".into(), ..Listed::default() })).unwrap();
    let out = Output { schema: None, ..output(dir.path().join("t.parquet"), Order::Listed) };
    let columns = columns::of_results(&[], None);
    out.table(&out.out, Format::Parquet, &columns, store.rows(&[State::Waiting], Order::Listed)).unwrap();
    let reader = SerializedFileReader::new(File::open(&out.out).unwrap()).unwrap();
    assert_eq!((reader.num_row_groups(), reader.metadata().file_metadata().num_rows()), (3, 25_000));
    let ids =
        reader.get_row_iter(None).unwrap().map(|row| row.unwrap().get_column_iter().next().unwrap().1.to_string());
    assert!(ids.enumerate().all(|(n, id)| id == format!("\"{n:05}\"")));
}

#[test]
fn a_folder_has_files_for_each_recording() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    let out = output(dir.path().join("texts"), Order::Id);
    assert_eq!(out.write(&store).unwrap().errors_at, Some(dir.path().join("texts/errors.jsonl")));
    let read = |name: &str| fs::read_to_string(out.out.join(name)).unwrap();
    assert_eq!((read("b/x.wav.txt"), read("a/x.wav.txt")), (format!("{TEXT}\n"), "bare\n".to_owned()));
    assert_eq!(
        read("b/x.wav.srt"),
        "1\n00:00:00,000 --> 00:00:01,250\nHe said -> <no>\n\n2\n01:01:01,007 --> 01:01:02,000\nB: then left\n\n"
    );
    assert!(read("b/x.wav.vtt").starts_with("WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHe said --&gt; &lt;no&gt;\n\n"));
    let json: Value = serde_json::from_str(&read("b/x.wav.json")).unwrap();
    assert_eq!(
        (&json["segments"][0]["end"], &json["mood"], &json["agent"]),
        (&json!(1.25), &json!("good"), &json!("Doe, J"))
    );
    let [first, second] = [0, 1].map(|n| (json["segments"][n].get("speaker"), json["segments"][n].get("estimated")));
    assert_eq!((first, second), ((None, Some(&json!(true))), (Some(&json!("B")), None)));
    out.write(&store).unwrap();
}

#[test]
fn a_table_that_cannot_be_written_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    fs::create_dir(dir.path().join("table.csv")).unwrap();
    let error = output(dir.path().join("table.csv"), Order::Id).write(&store).unwrap_err();
    assert!(error.to_string().contains("table.csv"), "{error}");
    assert!(output(dir.path().join("job/table.csv"), Order::Id).write(&store).is_err(), "a file is no folder");
    assert_eq!(
        fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".voxrelay"))
            .count(),
        0
    );
}

/// What is listed as unreadable in a job.
fn unreadable(store: &Store, places: &[&str]) {
    let unread = |place: &&str| {
        let (place, file) = ((*place).to_owned(), format!("/in/{place}"));
        Entry::Unread(Unread { place, file, reason: "permission denied".to_owned() })
    };
    store.add(places.iter().map(unread)).unwrap();
}

#[test]
fn what_cannot_be_read_is_among_the_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    unreadable(&store, &["x", "y"]);
    let out = output(dir.path().join("t.csv"), Order::Id);
    assert_eq!(out.write(&store).unwrap().errors, 4);
    let mut reader = csv::Reader::from_path(out.errors()).unwrap();
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    let told: Vec<[&str; 5]> =
        rows.iter().map(|row| ["id", "file", "state", "code", "message"].map(|name| row[name].as_str())).collect();
    assert_eq!(told[0], ["x", "/in/x", "failed", "unread", "permission denied"]);
    assert_eq!((told[1][0], told[2][0], told[2][3]), ("y", "c", "not_audio"));
}

#[test]
fn a_list_of_errors_goes_when_there_are_none_and_somebody_elses_stays() {
    for name in ["t.csv", "t.jsonl", "t.parquet", "texts"] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("job"), &Params::default(), Path::new("/in")).unwrap();
        unreadable(&store, &["x"]);
        let out = output(dir.path().join(name), Order::Id);
        assert_eq!(out.write(&store).unwrap().errors, 1);
        assert!(out.guard(false).is_ok(), "{name}: it is this program's");
        unreadable(&store, &[]);
        assert_eq!(out.write(&store).unwrap().errors_at, None);
        assert!(!out.errors().exists(), "{name}");
        fs::write(out.errors(), "id,name\n1,mine\n").unwrap();
        let error = out.guard(false).unwrap_err();
        assert!(
            error.contains("errors would be listed in") && error.contains(name.split('.').next().unwrap()),
            "{error}"
        );
        assert_eq!(out.write(&store).unwrap().errors_at, None);
        assert_eq!(fs::read_to_string(out.errors()).unwrap(), "id,name\n1,mine\n", "{name}");
    }
}

#[test]
fn what_results_are_made_of_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("texts/deep")).unwrap();
    for name in ["calls.csv", "other.csv", "texts/a.txt", "texts/deep/b.wav", "texts/c.md"] {
        fs::write(at(name), "x").unwrap();
    }
    std::os::unix::fs::symlink(at("calls.csv"), at("link.csv")).unwrap();
    let table = output(at("calls.csv"), Order::Id).guard(false).unwrap();
    assert!(table.file("the manifest", &at("./texts/../calls.csv")).unwrap_err().contains("is the manifest"));
    assert!(table.item(&at("link.csv")).unwrap_err().contains("is an input"));
    for harmless in ["other.csv", "absent.csv", "texts/a.txt"] {
        assert_eq!(table.item(&at(harmless)), Ok(()), "{harmless}");
    }
    let folder = |texts| output(at("texts"), Order::Id).guard(texts).unwrap();
    let refused = |guard: Guard| {
        let files = ["texts/a.txt", "texts/deep/b.wav", "texts/c.md", "other.csv"];
        files.into_iter().filter(|name| guard.item(&at(name)).is_err()).collect::<Vec<_>>()
    };
    assert_eq!(refused(folder(false)), ["texts/a.txt"], "recordings may be beside their texts");
    assert_eq!(refused(folder(true)), ["texts/a.txt", "texts/deep/b.wav", "texts/c.md"]);
    assert_eq!(refused(output(at("new"), Order::Id).guard(true).unwrap()), Vec::<&str>::new());
}

#[test]
fn a_name_that_is_too_long_for_the_system_is_written_in_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("job"), &Params::default(), Path::new("/in")).unwrap();
    let deep = |end: &str| format!("{}/{end}.wav", vec!["d".repeat(200); 22].join("/"));
    let ids = ["plain.wav".to_owned(), deep("one"), deep("two"), deep(&"ü".repeat(90))];
    store.add(ids.iter().map(|id| Listed { id: id.clone(), source: "/x".into(), ..Listed::default() })).unwrap();
    for item in store.claim(9, 1).unwrap() {
        let transcript = Transcript { text: item.id, model: "w".into(), ..Transcript::default() };
        store.put_transcript(item.n, &transcript).unwrap();
        store.end(item.n, &End::Done, 2).unwrap();
    }
    let out = output(dir.path().join("texts"), Order::Listed);
    assert_eq!(out.write(&store).unwrap().rows, 4);
    let mut texts: Vec<String> = fs::read_dir(&out.out)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "txt"))
        .map(|file| fs::read_to_string(file).unwrap().trim_end().to_owned())
        .collect();
    texts.sort();
    let mut want = ids.to_vec();
    want.sort();
    assert_eq!(texts, want, "each has its own, and nothing else is there");
    assert_eq!(fs::read_dir(&out.out).unwrap().count(), 16);
}

#[test]
fn whoever_does_not_wait_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = job(dir.path());
    for name in ["t.csv", "t.parquet", "texts"] {
        let out = output(dir.path().join(name), Order::Id);
        out.stop.cancel();
        assert!(matches!(out.write(&store), Err(TableError::Stopped)), "{name}");
    }
    let left = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let left: BTreeSet<String> = left.filter(|name| !name.starts_with("job")).collect();
    assert_eq!(left, BTreeSet::from(["texts".to_owned()]), "an empty folder");
}

#[test]
fn names_say_what_is_written() {
    for (name, want) in [
        ("a.csv", Ok(Format::Csv)),
        ("a.JSONL", Ok(Format::Jsonl)),
        ("a.parquet", Ok(Format::Parquet)),
        ("a", Ok(Format::Folder)),
        ("a.b", Ok(Format::Folder)),
    ] {
        assert_eq!(Format::of(Path::new(name)), want, "{name}");
    }
    assert!(Format::of(Path::new("a.xlsx")).unwrap_err().contains("found `.xlsx`"));
}

#[test]
fn an_id_is_a_name_that_stays_inside() {
    assert_eq!(files::name("calls/2024/x.wav"), "calls/2024/x.wav");
    for id in [
        "../x",
        "/etc/passwd",
        "a/../../b",
        ".hidden",
        "a//b",
        "c:\\x",
        "https://a.example/x?y",
        "a.txt/b",
        "",
        "x\0y",
        &"ä".repeat(400),
    ] {
        let name = files::name(id);
        assert_ne!(name, id);
        assert!(
            name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.len() < 240),
            "{id}: {name}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn two_ids_never_share_a_name(ids in proptest::collection::btree_set("[a./_:*]{1,6}", 2..20)) {
        let names: BTreeSet<String> = ids.iter().map(|id| files::name(id)).collect();
        proptest::prop_assert_eq!(names.len(), ids.len());
    }
}
