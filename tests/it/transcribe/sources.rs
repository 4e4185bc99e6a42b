//! Where recordings come from: folders, patterns, lists, manifests, URLs.
use std::{fs, io::Write as _, process::Stdio};

use axum::{Router, routing::get};
use tokio::{net::TcpListener, task::JoinSet};

use super::{Desk, end};

fn ids(desk: &Desk, table: &str) -> Vec<String> {
    desk.table(table).iter().map(|row| row["id"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_on_standard_input_have_lines_or_nuls() {
    let desk = Desk::new().await;
    desk.made("in/a b.wav", 1);
    desk.made("in/c.wav", 2);
    for (out, list) in [("lines.csv", "in/a b.wav\nin/c.wav\n"), ("nuls.csv", "in/a b.wav\0in/c.wav\0")] {
        let mut child = desk
            .command(&["transcribe", "-", "--min-seconds", "1", "--out", out])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
        let ran = end(child).await;
        assert_eq!(ran.code, 0, "{}", ran.said);
        assert_eq!(ids(&desk, out), ["in/a b.wav", "in/c.wav"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_one_source_among_others() {
    let desk = Desk::new().await;
    (1..4).for_each(|n| desk.made(&format!("in/{n}.wav"), n));
    desk.made("single.wav", 4);
    let args = ["transcribe", "single.wav", "-", "absent.wav", "--min-seconds", "1", "--out", "t.csv"];
    let mut command = desk.command(&args);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"in/1.wav\nin/3.wav\n").unwrap();
    let ran = end(child).await;
    assert_eq!(
        (ran.code, ids(&desk, "t.csv")),
        (1, ["in/1.wav", "in/3.wav", "single.wav"].map(str::to_owned).to_vec())
    );
    assert!(ran.said.contains("absent.wav: no such file"), "{}", ran.said);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_a_killed_run_has_left_are_no_recordings() {
    let desk = Desk::new().await;
    for name in ["1.wav", "t.csv.voxrelay-job-pieces/voxrelay-a.wav", "other.csv.voxrelay-job-pieces/voxrelay-b.wav"] {
        desk.made(name, 1);
    }
    let ran = desk.run(&["transcribe", ".", "--min-seconds", "1", "--out", "t.csv"]).await;
    assert_eq!((ran.code, ids(&desk, "t.csv")), (0, vec!["1.wav".to_owned()]), "{}", ran.said);
    assert!(desk.path("other.csv.voxrelay-job-pieces").exists(), "another job's");
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_are_read_by_the_command_itself() {
    let desk = Desk::new().await;
    for (n, name) in ["x/1.wav", "x/2.wav", "x/y/3.wav", "x/y/4.ogg.wav", "z/5.wav"].iter().enumerate() {
        desk.made(name, n as u64);
    }
    for (out, pattern, want) in [
        ("one.csv", "x/*.wav", &["x/1.wav", "x/2.wav"][..]),
        ("deep.csv", "x/**/*.wav", &["x/1.wav", "x/2.wav", "x/y/3.wav", "x/y/4.ogg.wav"]),
        ("both.csv", "{x,z}/[15].wav", &["x/1.wav", "z/5.wav"]),
    ] {
        let ran = desk.run(&["transcribe", pattern, "--min-seconds", "1", "--out", out]).await;
        assert_eq!((ran.code, ids(&desk, out)), (0, want.iter().map(|id| (*id).to_owned()).collect()), "{}", ran.said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifests_ids_order_and_columns_come_along() {
    let desk = Desk::new().await;
    desk.made("in/1.wav", 1);
    desk.made("in/2.wav", 2);
    fs::write(desk.path("m.csv"), "id,path,agent,score\nz,in/1.wav,\"Doe, J\",7\na,in/2.wav,Ann,\n").unwrap();
    let ran = desk.run(&["transcribe", "--manifest", "m.csv", "--min-seconds", "1", "--out", "t.csv"]).await;
    assert_eq!(ran.code, 0, "{}", ran.said);
    let rows = desk.table("t.csv");
    let told: Vec<[&str; 3]> =
        rows.iter().map(|row| [row["id"].as_str(), row["agent"].as_str(), row["score"].as_str()]).collect();
    assert_eq!(told, [["z", "Doe, J", "7"], ["a", "Ann", ""]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_fetched_from_where_they_are() {
    let desk = Desk::new().await;
    desk.made("in/1.wav", 1);
    let sound = fs::read(desk.path("in/1.wav")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/1.wav", get(move || async move { sound }));
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await });
    let urls = [format!("{base}/1.wav"), format!("{base}/absent.wav")];
    let ran = desk.run(&["transcribe", &urls[0], &urls[1], "--min-seconds", "1", "--out", "t.csv"]).await;
    assert_eq!((ran.code, ids(&desk, "t.csv")), (1, vec![urls[0].clone()]), "{}", ran.said);
    let errors = desk.errors("t.errors.csv");
    assert_eq!(errors[&urls[1]].0, "absent", "{errors:?}");
}
