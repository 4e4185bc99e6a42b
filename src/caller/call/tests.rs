//! Calls against a scripted door over loopback.
use serde_json::json;

use super::*;
use crate::{
    audio::Format,
    caller::{
        Options, connect,
        testbed::{self, Fake, READY, resumable, resumed},
    },
    client::wire::{ReplyStatus, Role},
};

#[tokio::test]
async fn a_call_becomes_ready_and_is_hung_up() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        assert_eq!(door.read_text().await, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let call = connect(&fake.url, &Options::default()).await.unwrap();
    assert_eq!(call.ready().call, "call_1");
    assert_eq!(call.ready().audio.output, Format::MULAW);
    assert_eq!(call.ready().resume, None);
    let end = call.hang_up(Duration::from_secs(5)).await;
    assert!(end.is_normal(), "{end}");
    fake.finished().await;
}

#[tokio::test]
async fn every_message_has_the_shape_of_the_contract() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        for want in [
            json!({"type": "commit"}),
            json!({"type": "discard"}),
            json!({"type": "interrupt"}),
            json!({"type": "interrupt", "reply": "r1", "played_ms": 420}),
            json!({"type": "played", "reply": "r1", "ms": 40}),
            json!({"type": "text", "text": "hi"}),
            json!({"type": "tool_result", "call_id": "c", "output": "4"}),
            json!({"type": "ping", "t": [1, "x"]}),
            json!({"type": "whatever"}),
        ] {
            assert_eq!(door.read_text().await, want);
        }
        assert_eq!(door.read_binary().await, [1, 2, 3]);
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    call.commit().unwrap();
    call.discard().unwrap();
    call.interrupt(None, None).unwrap();
    call.interrupt(Some("r1"), Some(420)).unwrap();
    call.played("r1", 40).unwrap();
    call.text("hi").unwrap();
    call.tool_result("c", "4").unwrap();
    call.ping(json!([1, "x"])).unwrap();
    call.send_raw(r#"{"type":"whatever"}"#).unwrap();
    call.audio(Bytes::from_static(&[1, 2, 3])).unwrap();
    assert!(matches!(call.next().await, Some(Event::Ended(end)) if end.is_normal()));
    assert_eq!(call.next().await, None);
    assert_eq!(call.commit(), Err(SendError::Over));
    fake.finished().await;
}

#[tokio::test]
async fn audio_belongs_to_the_reply_that_started_last() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        door.binary(b"0").await;
        door.text(r#"{"type":"reply_started","reply":"r1"}"#).await;
        door.binary(b"1").await;
        door.text(r#"{"type":"reply_started","reply":"r2"}"#).await;
        door.binary(b"2").await;
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    let mut got = Vec::new();
    while let Some(event) = call.next().await {
        if let Event::Audio { reply, data } = event {
            got.push((reply.as_deref().map(str::to_owned), data));
        }
    }
    let want = [(None, "0"), (Some("r1"), "1"), (Some("r2"), "2")];
    let want = want.map(|(reply, data)| (reply.map(str::to_owned), Bytes::from_static(data.as_bytes())));
    assert_eq!(got, want);
    fake.finished().await;
}

#[tokio::test]
async fn messages_of_tomorrow_are_kept_as_they_came() {
    let known = r#"{"type":"transcript","role":"user","item":"i","text":"hello","final":true,"new_field":1}"#;
    let fake = Fake::start(async move |mut door| {
        door.text(READY).await;
        door.text(r#"{"type":"hologram","x":1}"#).await;
        door.text("not json").await;
        door.text(known).await;
        door.text(r#"{"type":"notice","code":"audio_gap","message":"m","from_ms":1,"to_ms":2}"#).await;
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    assert_eq!(call.next().await, Some(Event::Unknown(r#"{"type":"hologram","x":1}"#.into())));
    assert_eq!(call.next().await, Some(Event::Unknown("not json".into())));
    let Some(Event::Message(message)) = call.next().await else { panic!("the transcript is known") };
    let ServerMsg::Transcript { role: Role::User, text, last: true, .. } = *message else { panic!("{message:?}") };
    assert_eq!(text.as_deref(), Some("hello"));
    let Some(Event::Message(message)) = call.next().await else { panic!("the notice is known") };
    let ServerMsg::Notice { code, more, .. } = *message else { panic!("{message:?}") };
    assert_eq!((code.as_str(), more.get("to_ms")), ("audio_gap", Some(&json!(2))));
    assert!(testbed::end_of(&mut call).await.is_normal());
    fake.finished().await;
}

#[tokio::test]
async fn an_end_knows_the_error_before_it() {
    const ERROR: &str = r#"{"type":"error","error":{"code":"slow_consumer","message":"read faster","retryable":true,"retry_after_ms":50,"request_id":"q"}}"#;
    for (code, says) in [(4508, true), (1000, false)] {
        let fake = Fake::start(async move |mut door| {
            door.text(READY).await;
            door.text(ERROR).await;
            door.binary(b"late audio").await;
            door.close(code, "why").await;
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        let end = testbed::end_of(&mut call).await;
        assert_eq!((end.code, end.error.as_ref().map(|e| e.code.as_str())), (code, says.then_some("slow_consumer")));
        fake.finished().await;
    }
}

#[tokio::test]
async fn a_dropped_connection_is_1006_and_blames_no_old_error() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        door.text(r#"{"type":"error","error":{"code":"wrong_mode","message":"m","retryable":false,"request_id":"q"}}"#)
            .await;
        drop(door);
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    let end = testbed::end_of(&mut call).await;
    assert_eq!((end.code, end.error), (1006, None));
    fake.finished().await;
}

#[tokio::test]
async fn a_frame_over_the_cap_ends_the_call_instead_of_filling_memory() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        door.binary(&vec![0; 1024 * 1024 + 1]).await;
        door.gone().await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    let end = testbed::end_of(&mut call).await;
    assert!(end.code == 1006 && end.reason.contains("too long"), "{end}");
    drop(call);
    fake.finished().await;
}

#[tokio::test]
async fn a_server_that_does_not_read_fills_a_bounded_buffer() {
    let (open, wait) = tokio::sync::oneshot::channel::<()>();
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        let _closed = wait.await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    let chunk = Bytes::from(vec![0; 256 * 1024]);
    // 12 MiB of ours and what the system's own buffers take: a few megabytes on loopback.
    let full = (0..1_000).find_map(|n| call.audio(chunk.clone()).err().map(|error| (n, error)));
    let (n, error) = full.expect("250 MiB fit into no buffer");
    assert_eq!(error, SendError::Backlog, "after {n} messages");
    drop(open);
    fake.finished().await;
}

#[tokio::test]
async fn more_than_the_socket_holds_waits_and_arrives_whole() {
    let (begin, wait) = tokio::sync::oneshot::channel::<()>();
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        wait.await.unwrap();
        for n in 0..30 {
            assert_eq!(door.read_binary().await, vec![n; 256 * 1024], "{n}");
        }
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    for n in 0..30 {
        call.audio(Bytes::from(vec![n; 256 * 1024])).unwrap();
    }
    begin.send(()).unwrap();
    assert!(testbed::end_of(&mut call).await.is_normal());
    fake.finished().await;
}

#[tokio::test]
async fn no_ready_is_no_call() {
    const ERROR: &str = r#"{"type":"error","error":{"code":"upstream_unavailable","message":"no service","retryable":true,"request_id":"q"}}"#;
    let options = Options { ready_timeout: Duration::from_millis(50), ..Options::default() };
    for (texts, code, want) in [
        (vec![ERROR], Some(4503), "ended before it was ready: close code 4503, upstream_unavailable: no service"),
        (vec![r#"{"type":"pong","t":1}"#], None, "first message is not `ready` but {\"type\":\"pong\""),
        (vec![], None, "waiting for `ready` took longer than 0.05 s"),
    ] {
        let fake = Fake::start(async move |mut door| {
            for text in texts {
                door.text(text).await;
            }
            if let Some(code) = code {
                door.close(code, "").await;
            }
            door.gone().await;
        })
        .await;
        let error = connect(&fake.url, &options).await.unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
        fake.finished().await;
    }
}

#[tokio::test]
async fn a_message_that_the_server_would_refuse_is_not_sent() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        assert_eq!(door.read_text().await, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    let refused = call.audio(Bytes::from(vec![0; 262_145]));
    assert_eq!(refused, Err(SendError::TooLarge { bytes: 262_145, limit: 262_144 }));
    assert!(call.hang_up(Duration::from_secs(5)).await.is_normal());
    fake.finished().await;
}

#[tokio::test]
async fn pings_are_answered_while_only_listening() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        door.ping(b"are you there").await;
        assert_eq!(door.read_pong().await, b"are you there");
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    assert!(testbed::end_of(&mut call).await.is_normal());
    fake.finished().await;
}

#[tokio::test]
async fn the_request_holds_what_was_asked_for() {
    let fake = Fake::start(async |mut door| {
        door.text(READY).await;
        door.text(
            r#"{"type":"reply_ended","reply":"r","status":"completed","audio_ms":20,"heard_ms":20,"latency":{}}"#,
        )
        .await;
        door.close(1000, &door.request.clone()).await;
    })
    .await;
    let options = Options { agent: Some("a b".into()), token: Some("sesame".into()), ..Options::default() };
    let mut call = connect(&fake.url, &options).await.unwrap();
    let Some(Event::Message(message)) = call.next().await else { panic!("reply_ended is known") };
    assert!(matches!(*message, ServerMsg::ReplyEnded { status: ReplyStatus::Completed, heard_ms: 20, .. }));
    let end = testbed::end_of(&mut call).await;
    assert_eq!(end.reason, "/v1/voice?agent=a%20b Bearer sesame voxrelay.v1");
    fake.finished().await;
}

/// The next event, which must be this kind of message or sound.
async fn heard(call: &mut Call) -> String {
    match call.next().await.unwrap() {
        Event::Audio { data, .. } => String::from_utf8(data.to_vec()).unwrap(),
        Event::Message(message) => match *message {
            ServerMsg::Pong { t } => t.to_string(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

async fn dropped(call: &mut Call) -> CallEnd {
    match call.next().await.unwrap() {
        Event::Dropped(end) => end,
        other => panic!("{other:?}"),
    }
}

async fn back(call: &mut Call) -> Duration {
    match call.next().await.unwrap() {
        Event::Resumed { after } => after,
        other => panic!("{other:?}"),
    }
}

async fn ended(call: &mut Call) -> CallEnd {
    match call.next().await.unwrap() {
        Event::Ended(end) => end,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_drop_is_survived_and_each_message_comes_once() {
    let fake = Fake::house(async |mut doors| {
        let mut door = doors.open().await;
        door.text(&resumable("t1")).await;
        door.binary(b"a").await;
        door.text(r#"{"type":"pong","t":"b"}"#).await;
        assert_eq!(door.read_binary().await, b"1");
        assert_eq!(door.read_text().await, json!({"type": "ping", "t": 2}));
        drop(door); // the third was on its way

        let mut door = doors.open().await;
        // What was agreed is not asked for again.
        assert_eq!(door.request, "/v1/voice?resume=t1&got=2 Bearer sesame voxrelay.v1");
        door.text(&resumed("t2", 2)).await;
        door.binary(b"c").await;
        assert_eq!(door.read_binary().await, b"3");
        assert_eq!(door.read_text().await, json!({"type": "commit"}));
        assert_eq!(door.read_binary().await, b"5");
        door.text(r#"{"type":"pong","t":"d"}"#).await;
        assert_eq!(door.read_binary().await, b"6");
        door.close(1001, "").await; // it goes away

        let mut door = doors.open().await;
        assert!(door.request.starts_with("/v1/voice?resume=t2&got=4 "), "{}", door.request);
        door.text(&resumed("t3", 6)).await;
        assert_eq!(door.read_text().await, json!({"type": "close"}));
        door.close(1000, "").await;
    })
    .await;
    let options = Options { agent: Some("other".into()), token: Some("sesame".into()), ..Options::default() };
    let mut call = connect(&fake.url, &options).await.unwrap();
    call.audio(Bytes::from_static(b"1")).unwrap();
    call.ping(json!(2)).unwrap();
    assert_eq!((heard(&mut call).await, heard(&mut call).await), ("a".into(), "\"b\"".into()));
    call.audio(Bytes::from_static(b"3")).unwrap();
    assert_eq!(dropped(&mut call).await.code, 1006);
    // Said while nobody is there.
    call.commit().unwrap();
    call.audio(Bytes::from_static(b"5")).unwrap();
    let away = back(&mut call).await;
    assert!(away < Duration::from_secs(5), "{away:?}");
    assert_eq!((heard(&mut call).await, heard(&mut call).await), ("c".into(), "\"d\"".into()));
    call.audio(Bytes::from_static(b"6")).unwrap();
    assert_eq!(dropped(&mut call).await.code, 1001);
    back(&mut call).await;
    assert!(call.hang_up(Duration::from_secs(5)).await.is_normal());
    fake.finished().await;
}

#[tokio::test]
async fn a_server_that_is_busy_is_waited_for_and_one_that_has_no_call_is_believed() {
    const GONE: &str = r#"{"type":"error","error":{"code":"resume_refused","message":"this call cannot be resumed","retryable":false,"request_id":"q"}}"#;
    let fake = Fake::house(async |mut doors| {
        let mut door = doors.open().await;
        door.text(&resumable("t1")).await;
        drop(door);
        let asked = doors.refuse("HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(asked, "GET /v1/voice?resume=t1&got=0 HTTP/1.1");
        let told = Instant::now();
        let mut door = doors.open().await;
        assert!(told.elapsed() >= Duration::from_millis(990), "{:?}", told.elapsed());
        door.text(&resumed("t2", 0)).await;
        drop(door);
        let mut door = doors.open().await;
        door.text(GONE).await;
        door.close(4410, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    dropped(&mut call).await;
    assert!(back(&mut call).await >= Duration::from_secs(1));
    dropped(&mut call).await;
    let end = ended(&mut call).await;
    assert_eq!(end.to_string(), "close code 4410, resume_refused: this call cannot be resumed");
    assert_eq!((call.next().await, call.commit()), (None, Err(SendError::Over)));
    fake.finished().await;
}

#[tokio::test]
async fn what_cannot_be_resumed_says_why() {
    const REFUSED: &str = "HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n";
    for (answer, want) in [
        (Some(REFUSED), "did not come back: the server refused the call: HTTP 401"),
        (None, "did not come back: the server's first message is not `resumed` but the `ready` of a new call"),
    ] {
        let fake = Fake::house(async move |mut doors| {
            let mut door = doors.open().await;
            door.text(&resumable("t1")).await;
            drop(door);
            match answer {
                Some(answer) => drop(doors.refuse(answer).await),
                None => {
                    let mut door = doors.open().await;
                    door.text(&resumable("t2")).await;
                    door.gone().await;
                }
            }
        })
        .await;
        let mut call = connect(&fake.url, &Options::default()).await.unwrap();
        dropped(&mut call).await;
        let end = ended(&mut call).await;
        assert!(end.code == 1006 && end.to_string().contains(want), "{end}");
        fake.finished().await;
    }
}

#[tokio::test]
async fn a_drop_is_the_end_where_resume_is_not_wanted() {
    let fake = Fake::start(async |mut door| {
        door.text(&resumable("t1")).await;
    })
    .await;
    let mut call = connect(&fake.url, &Options { resume: false, ..Options::default() }).await.unwrap();
    let end = ended(&mut call).await;
    assert_eq!((end.code, end.not_resumed), (1006, None));
    fake.finished().await;
}

#[tokio::test]
async fn a_call_that_is_away_is_hung_up_without_another_try() {
    let fake = Fake::house(async |mut doors| {
        let mut door = doors.open().await;
        door.text(&resumable("t1")).await;
        drop(door);
        doors.refuse("HTTP/1.1 503 Busy\r\nretry-after: 20\r\ncontent-length: 0\r\n\r\n").await;
        // Nobody comes any more: the next to do so is the test.
        let asked = doors.refuse("HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(asked, "over");
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    dropped(&mut call).await;
    // Up to the wait that the server has asked for.
    assert!(tokio::time::timeout(Duration::from_millis(300), call.next()).await.is_err());
    let began = Instant::now();
    let end = call.hang_up(Duration::from_secs(5)).await;
    assert!(end.is_normal() && began.elapsed() < Duration::from_secs(1), "{end} after {:?}", began.elapsed());
    let mut last = tokio::net::TcpStream::connect(fake.url.trim_start_matches("ws://")).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut last, b"over\r\n\r\n").await.unwrap();
    fake.finished().await;
}

#[tokio::test]
async fn a_renewed_token_is_what_the_call_comes_back_with() {
    let fake = Fake::house(async |mut doors| {
        let mut door = doors.open().await;
        door.text(&resumable("t1")).await;
        assert_eq!(door.read_text().await, json!({"type": "token", "token": "new"}));
        door.close(4401, "").await;
        let mut door = doors.open().await;
        assert_eq!(door.request, "/v1/voice?resume=t1&got=0 Bearer new voxrelay.v1");
        door.text(&resumed("t2", 1)).await;
        door.close(1000, "").await;
    })
    .await;
    let options = Options { token: Some("old".into()), ..Options::default() };
    let mut call = connect(&fake.url, &options).await.unwrap();
    call.send(&ClientMsg::Token { token: "new".into() }).unwrap();
    assert_eq!(dropped(&mut call).await.code, 4401);
    back(&mut call).await;
    assert!(ended(&mut call).await.is_normal());
    assert!(!format!("{call:?}").contains("new"));
    fake.finished().await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_silent_is_left_and_pings_are_no_silence() {
    let (silent, resumed_at) = tokio::sync::oneshot::channel::<Duration>();
    let fake = Fake::house(async |mut doors| {
        let mut door = doors.open().await;
        door.text(&resumable("t1")).await;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(15)).await;
            door.ping(b"").await;
            assert_eq!(door.read_pong().await, b"");
        }
        let began = Instant::now();
        let mut next = doors.open().await; // the first is still open
        silent.send(began.elapsed()).unwrap();
        next.text(&resumed("t2", 0)).await;
        next.close(1000, "").await;
        drop(door);
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    assert_eq!(dropped(&mut call).await.reason, "nothing came for 35 s");
    back(&mut call).await;
    assert!(ended(&mut call).await.is_normal());
    let silence = resumed_at.await.unwrap();
    assert!((35..37).contains(&silence.as_secs()), "{silence:?}");
    fake.finished().await;
}

#[tokio::test(start_paused = true)]
async fn what_came_is_acknowledged_by_itself() {
    let fake = Fake::start(async |mut door| {
        door.text(&resumable("t1")).await;
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            door.binary(b"x").await;
        }
        let first = door.read_text().await;
        let got = first["got"].as_u64().unwrap();
        assert!(first["type"] == "ack" && (45..60).contains(&got), "{first}");
        // The last of them too, with nothing more coming.
        assert_eq!(door.read_text().await, json!({"type": "ack", "got": 100}));
        door.close(1000, "").await;
    })
    .await;
    let mut call = connect(&fake.url, &Options::default()).await.unwrap();
    assert!(testbed::end_of(&mut call).await.is_normal());
    fake.finished().await;
}
