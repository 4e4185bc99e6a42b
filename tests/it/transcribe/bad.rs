//! Bad input: each with a clear line, and never to the harm of the others.
use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, fs::symlink, process::CommandExt as _},
    process::{Command, Stdio},
};

use voxrelay::{
    admit::{price::Usd, store::Store},
    config::{AllowanceConfig, Scope, TenantConfig},
    sim::{TextConfig, config::Delay},
    wall::unix_now,
};

use super::{CLIPS, Desk, end, sound, wav};
use crate::{
    commands::voxrelay,
    support::{new_key, tenant, until},
};

fn plain(words: &str) -> Vec<String> {
    words.split(' ').map(str::to_owned).collect()
}

impl Desk {
    async fn says(&self, words: &str) -> super::Ran {
        let words = plain(words);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_file_has_its_reason_and_the_good_ones_are_done() {
    let desk = Desk::new().await;
    let hello = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/hello.wav")).unwrap();
    let clip = |name: &str| fs::read(format!("{CLIPS}/{name}")).unwrap();
    fs::create_dir_all(desk.path("in/other")).unwrap();
    for (name, bytes) in [
        ("empty.wav", Vec::new()),
        ("cut.wav", hello[..hello.len() / 2].to_vec()),
        ("head.wav", hello[..44].to_vec()),
        ("text.mp3", b"This is no music, but a letter.".repeat(100)),
        ("mp3.wav", clip("hello_question_24k.mp3")),
        ("film.mp4", clip("film_with_sound.mp4")),
        ("mute.mp4", clip("film_without_sound.mp4")),
        ("x.wav", hello.clone()),
        ("other/x.wav", clip("noisy_question_16k.wav")),
    ] {
        fs::write(desk.path(&format!("in/{name}")), bytes).unwrap();
    }
    wav(&desk.path("in/eight.wav"), 16_000, 8, &sound(1, 16_000));
    wav(&desk.path("in/second.wav"), 16_000, 1, &sound(2, 16_000)[..14_400]);
    // Above the service's 25 MB, and short: silence has no words, and costs no time here.
    let mut huge = sound(3, 48_000);
    huge.resize(48_000 * 140, 0);
    wav(&desk.path("in/huge.wav"), 48_000, 2, &huge);
    symlink("nowhere.wav", desk.path("in/gone.wav")).unwrap();
    symlink("loop.wav", desk.path("in/loop.wav")).unwrap();
    let ran = desk.says("transcribe in absent.wav --min-seconds 1 --out t.csv").await;
    assert_eq!(ran.code, 1);
    let rows = desk.table("t.csv");
    let done: Vec<&str> = rows.iter().map(|row| row["id"].as_str()).collect();
    let want = ["cut", "eight", "film", "huge", "mp3", "other/x", "x"];
    let want: Vec<String> =
        want.iter().map(|name| format!("in/{name}.{}", if *name == "film" { "mp4" } else { "wav" })).collect();
    assert_eq!(done, want, "{}", ran.said);
    assert!(rows.iter().all(|row| row["transcript"].len() > 3), "{rows:?}");
    let errors = desk.errors("t.errors.csv");
    let said: Vec<(&str, &str, bool)> = errors
        .iter()
        .map(|(id, (code, message))| {
            (id.as_str(), code.as_str(), ran.said.contains(message.rsplit(": ").next().unwrap()))
        })
        .collect();
    assert_eq!(
        said,
        [
            ("absent.wav", "unread", true),
            ("in/empty.wav", "empty", true),
            ("in/gone.wav", "unread", true),
            ("in/head.wav", "damaged", true),
            ("in/loop.wav", "unread", true),
            ("in/mute.mp4", "no_audio_track", true),
            ("in/second.wav", "too_short", true),
            ("in/text.mp3", "not_audio", true),
        ],
        "{errors:?}"
    );
    let short = desk.table("t.errors.csv").into_iter().find(|row| row["code"] == "too_short").unwrap();
    assert_eq!(short["duration_s"], "0.9");
    for line in [
        "7 done, 4 failed, 1 skipped, 0 left, 3 not readable",
        "absent.wav: no such file",
        "in/gone.wav: no such file",
        "in/loop.wav: ",
        "note: in/cut.wav: cut short, or part of it cannot be read",
    ] {
        assert!(ran.said.contains(line), "{line}: {}", ran.said);
    }
    let largest = fs::metadata(desk.path("in/huge.wav")).unwrap().len();
    assert!(largest > 25 << 20 && desk.paid().refused.is_empty(), "cut, not refused: {largest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_is_told_and_the_others_are_done() {
    let desk = Desk::new().await;
    desk.made("in/good.wav", 1);
    desk.made("in/closed/2.wav", 2);
    desk.made("in/secret.wav", 3);
    let mode = |name: &str, mode: u32| fs::set_permissions(desk.path(name), fs::Permissions::from_mode(mode)).unwrap();
    mode("in/closed", 0o000);
    mode("in/secret.wav", 0o000);
    let mut command = desk.command(&["transcribe", "in", "--min-seconds", "1", "--out", "out/t.csv"]);
    fs::create_dir(desk.path("out")).unwrap();
    // Nothing is closed to the superuser: somebody else it is, then, with a copy of the program within reach.
    if Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
        let program = desk.path("voxrelay");
        fs::copy(command.get_program(), &program).unwrap();
        let mut other = Command::new(program);
        other.args(command.get_args()).current_dir(desk.dir.path()).env("HOME", "/").uid(65_534).gid(65_534);
        command = other;
        mode(".", 0o755);
        mode("out", 0o777);
    }
    let ran = end(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).await;
    mode("in/closed", 0o755);
    assert_eq!((ran.code, desk.table("out/t.csv").len()), (1, 1), "{}", ran.said);
    assert!(ran.said.contains("in/closed: permission denied"), "{}", ran.said);
    let errors = desk.errors("out/t.errors.csv");
    assert_eq!((errors.len(), errors["in/secret.wav"].0.as_str()), (2, "unreadable"), "{errors:?}");
    assert_eq!(errors["in/closed"], ("unread".to_owned(), "permission denied".to_owned()));
    assert!(ran.said.contains("in/secret.wav: cannot be read: Permission denied"), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_it_with_what_is_done() {
    let desk = Desk::new().await;
    (0..60).for_each(|n| desk.made(&format!("in/{n:03}.wav"), n));
    let args = ["transcribe", "in", "--min-seconds", "1", "--jobs", "2", "--out", "disk/t.csv"];
    let command = desk.command(&args);
    let program: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    // As if it were full: no file may become larger.
    let mut full = Command::new("sh");
    full.args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""]).args(program).current_dir(desk.dir.path());
    let ran = end(full.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).await;
    assert_eq!(ran.code, 1, "{}", ran.said);
    assert!(ran.said.contains("t.csv.voxrelay-job") && ran.said.contains("--resume"), "{}", ran.said);
    let first = desk.paid();
    assert!((1..60).contains(&first.answered["transcriptions"]), "{:?}", first.answered);
    let ran = desk.run(&[&args[..], &["--resume"]].concat()).await;
    assert_eq!((ran.code, desk.table("disk/t.csv").len(), desk.paid().paid_again()), (0, 60, 0), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_in_the_middle_stops_it_with_what_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("voxrelay.db");
    let store = Store::open(&file).unwrap();
    let keys = ["one", "two"].map(|label| new_key(label, &Scope::all(), None));
    for (_, key) in &keys {
        store.put_key("acme", key, unix_now()).unwrap();
    }
    store.put_tenant("acme", &TenantConfig::default()).unwrap();
    let text = TextConfig { transcription: Delay::ms(200), ..TextConfig::instant() };
    let mut desk = Desk::with(|config| config.store.file = Some(file), text, "").await;
    (0..60).for_each(|n| desk.made(&format!("in/{n:03}.wav"), n));
    desk.token = Some(keys[0].0.clone());
    let child = desk.start(&["transcribe", "in", "--min-seconds", "1", "--jobs", "3", "--out", "t.csv"]);
    until("some are done", || desk.paid().answered.get("transcriptions").is_some_and(|done| *done >= 3)).await;
    store.remove_keys("acme", &[keys[0].1.hash]).unwrap();
    let ran = end(child).await;
    assert_eq!(ran.code, 1, "{}", ran.said);
    assert!(ran.said.contains("\nstopped: ") && ran.said.contains("To go on, when that is changed"), "{}", ran.said);
    let done = desk.table("t.csv").len();
    assert!((3..60).contains(&done) && ran.said.contains(&format!("{done} done, 0 failed")), "{}", ran.said);
    desk.token = Some(keys[1].0.clone());
    let ran = desk.says("transcribe in --min-seconds 1 --out t.csv --resume").await;
    assert_eq!((ran.code, desk.table("t.csv").len(), desk.paid().paid_again()), (0, 60, 0), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_own_key_does_no_longer_work_and_one_that_is_gone_are_no_files_fault() {
    let faults = "[[fault]]\nkind = \"refuse\"\ndoor = \"transcriptions\"\nstatus = 401\ntimes = 1\nsession = 3";
    let desk = Desk::with(|_| {}, TextConfig::instant(), faults).await;
    (0..9).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    let ran = desk.says("transcribe in --min-seconds 1 --jobs 1 --out t.csv").await;
    assert!(ran.code == 1 && desk.table("t.csv").len() < 9, "{}", ran.said);
    assert!(ran.said.contains("(upstream_auth)") && ran.said.contains("0 failed"), "{}", ran.said);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = voxrelay();
    command.current_dir(desk.dir.path()).args(plain("transcribe in --min-seconds 1 --out n.csv --url"));
    command.arg(format!("http://{nobody}")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = end(command.spawn().unwrap()).await;
    assert_eq!(ran.code, 1, "{}", ran.said);
    assert!(ran.said.contains("the relay is not reached") && ran.said.contains("0 done, 0 failed"), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_days_budget_that_is_spent_stops_it_and_says_when_to_go_on() {
    let mut key = String::new();
    let change = |config: &mut voxrelay::config::Config| {
        let day: Usd = "0.0012".parse().unwrap();
        key = tenant(config, "acme", |tenant| {
            tenant.budget.all = AllowanceConfig { usd_day: Some(day), ..AllowanceConfig::default() };
        });
    };
    let mut desk = Desk::with(change, TextConfig::instant(), "").await;
    desk.token = Some(key);
    (0..20).for_each(|n| desk.made(&format!("in/{n:02}.wav"), n));
    let ran = desk.says("transcribe in --min-seconds 1 --jobs 2 --out t.csv").await;
    assert_eq!(ran.code, 1, "{}", ran.said);
    let done = desk.table("t.csv").len();
    assert!((2..12).contains(&done) && ran.said.contains("0 failed"), "{}", ran.said);
    let line = ran.said.lines().find(|line| line.starts_with("what is done is kept. To go on, from 20"));
    assert!(
        ran.said.contains("(budget_exhausted)") && line.is_some_and(|line| line.contains("T00:00:0")),
        "{}",
        ran.said
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_is_ever_allowed_at_once_is_an_error_of_its_file() {
    let mut key = String::new();
    let change = |config: &mut voxrelay::config::Config| {
        key = tenant(config, "acme", |tenant| tenant.text_tokens_per_minute = 600);
    };
    let mut desk = Desk::with(change, TextConfig::instant(), "").await;
    desk.token = Some(key);
    desk.made("in/small.wav", 1);
    wav(&desk.path("in/large.wav"), 8_000, 1, &sound(2, 8_000).repeat(40));
    let ran = desk.says("transcribe in --min-seconds 1 --out t.csv").await;
    let errors = desk.errors("t.errors.csv");
    assert_eq!((ran.code, desk.table("t.csv").len(), errors.len()), (1, 1, 1), "{}", ran.said);
    let (code, message) = &errors["in/large.wav"];
    assert!(code == "rate_limit_exceeded" && message.contains("larger than your limit"), "{code}: {message}");
    assert!(ran.said.contains("in/large.wav: The request is larger"), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_that_refuse_or_answer_in_the_wrong_shape_are_errors_of_their_file() {
    for (how, times, code, requests) in [
        ("refusal", 9, "refused", 1),
        ("malformed", 9, "malformed_json", 2),
        ("misfit", 9, "invalid_result", 2),
        ("misfit", 1, "", 2),
        ("failed", 9, "server_error", 2),
    ] {
        let faults = format!(
            "[[fault]]\nkind = \"answer\"\nas = \"{how}\"\nmessage = \"I would rather not.\"\ndoor = \"responses\"\ntimes = {times}"
        );
        let desk = Desk::with(|_| {}, TextConfig::instant(), &faults).await;
        fs::write(desk.path("a.txt"), "The invoice was charged twice, and the caller wants it back.").unwrap();
        let ran = desk.says("extract a.txt --extract call-summary --out t.csv").await;
        let asked = desk.paid().requests["responses"];
        if code.is_empty() {
            assert_eq!((ran.code, asked, desk.table("t.csv").len()), (0, requests, 1), "{how}: {}", ran.said);
            continue;
        }
        let errors = desk.errors("t.errors.csv");
        assert_eq!((ran.code, errors["a.txt"].0.as_str(), asked), (1, code, requests), "{how}: {errors:?}");
        assert!(ran.said.contains("a.txt: "), "{how}: {}", ran.said);
        assert!(how != "refusal" || ran.said.contains("I would rather not."), "{}", ran.said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_commands_are_refused_before_anything_is_paid_and_leave_nothing() {
    let desk = Desk::new().await;
    desk.made("in/1.wav", 1);
    fs::create_dir(desk.path("none")).unwrap();
    fs::create_dir(desk.path("folder.csv")).unwrap();
    for (name, text) in [
        ("loose.json", r#"{"type": "object", "properties": {"a": {"type": "string"}}}"#),
        (
            "none.json",
            r#"{"type": "object", "properties": {"a": {"type": "strnig"}}, "required": ["a"], "additionalProperties": false}"#,
        ),
        ("broken.json", "{"),
        ("columns.csv", "name,path\na,in/1.wav\n"),
        ("twice.csv", "id,path\na,in/1.wav\nb,in/1.wav\na,in/2.wav\n"),
        ("ragged.csv", "id,path\na,in/1.wav\nb\n"),
        ("lines.jsonl", "{\"id\": \"a\", \"path\": \"in/1.wav\"}\n{\"id\": \"b\"\n"),
        ("good.csv", "id,path\na,in/1.wav\nb,good.csv\n"),
        ("mine.errors.csv", "who,what\n"),
        ("how.jsonl", "Be short."),
        ("a.txt", "Hello."),
    ] {
        fs::write(desk.path(name), text).unwrap();
    }
    let before = fs::read_dir(desk.dir.path()).unwrap().count();
    for (words, says) in [
        ("transcribe in --out t.xlsx", ".xlsx"),
        ("transcribe in --out t.csv --srt", "--srt and --vtt"),
        ("transcribe none --out t.csv", "no recordings were found"),
        ("transcribe absent --out t.csv", "no recordings were found"),
        ("transcribe in --min-seconds=4000 --out t.csv", "--min-seconds"),
        ("transcribe in --jobs 0 --out t.csv", "allowed: auto, or 1 to 1000"),
        ("transcribe in --extract loose.json --out t.csv", "loose.json"),
        ("transcribe in --extract none.json --out t.csv", "none.json"),
        ("transcribe in --extract broken.json --out t.csv", "broken.json"),
        ("transcribe in --extract absent --out t.csv", "call-summary"),
        ("transcribe --manifest columns.csv --out t.csv", "line 1: columns `id`"),
        ("transcribe --manifest twice.csv --out t.csv", "line 4: id `a` is that of line 2 already"),
        ("transcribe --manifest ragged.csv --out t.csv", "line 3"),
        ("transcribe --manifest lines.jsonl --out t.csv", "line 2"),
        ("transcribe --manifest absent.csv --out t.csv", "absent.csv"),
        ("extract in --out t.csv", "--extract is missing"),
        ("transcribe --manifest good.csv --out good.csv", "`good.csv` is the manifest"),
        ("transcribe in/1.wav good.csv --out ./good.csv", "is an input"),
        ("transcribe in --out in/1.wav", "`in/1.wav` is a file, and results would be a folder"),
        ("transcribe in --out folder.csv", "`folder.csv` is a folder, and results would be a file"),
        ("transcribe in --out mine.csv", "`mine.errors.csv`, and what is there is no such list"),
        ("extract a.txt --extract survey --instructions how.jsonl --out how.jsonl", "is the instructions"),
        ("extract a.txt --extract survey --out .", "in the folder of results"),
    ] {
        let ran = desk.says(words).await;
        assert_eq!(ran.code, 2, "{words}: {}", ran.said);
        assert!(ran.said.contains(says), "{words}: {says}: {}", ran.said);
        assert_eq!(fs::read_dir(desk.dir.path()).unwrap().count(), before, "{words}: something was left");
    }
    assert_eq!(desk.paid().requests.len(), 0);
    assert_eq!(fs::read_to_string(desk.path("mine.errors.csv")).unwrap(), "who,what\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_without_words_has_no_facts_and_is_no_failure() {
    let desk = Desk::new().await;
    desk.made("in/1.wav", 1);
    wav(&desk.path("in/silence.wav"), 8_000, 1, &[0; 24_000]);
    let args = "transcribe in --min-seconds 1 --extract call-summary --out t.csv";
    for words in [args.to_owned(), format!("{args} --resume")] {
        let ran = desk.says(&words).await;
        assert_eq!((ran.code, desk.table("t.csv").len()), (0, 1), "{}", ran.said);
        let errors = desk.table("t.errors.csv");
        let told = ["id", "state", "code"].map(|name| errors[0][name].as_str());
        assert_eq!((errors.len(), told), (1, ["in/silence.wav", "skipped", "no_words"]));
        let cost =
            |rows: &[super::Row]| rows.iter().map(|row| row["cost_usd"].parse::<Usd>().unwrap().pico()).sum::<i128>();
        let (rows, booked) = (desk.table("t.csv"), desk.booked().await.0);
        assert_eq!(Usd::from_pico(cost(&rows) + cost(&errors)), booked, "both tables together are the bill");
    }
    assert_eq!(desk.paid().requests["transcriptions"], 2);
}
