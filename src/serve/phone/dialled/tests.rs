use super::*;

const RING: Duration = Duration::from_secs(20);
const REFERENCE: &str = "0123456789abcdef0123456789abcdef";
const S: fn(u64) -> Duration = Duration::from_secs;

fn tenant() -> String {
    Principal::operator().tenant_id().to_owned()
}

fn order(id: &str, reference: &str) -> Order<u8> {
    Order {
        id: id.to_owned(),
        reference: Slot::of(reference),
        account: "twilio".to_owned(),
        agent: "sales".to_owned(),
        to: "+15550100".to_owned(),
        from: "+15550199".to_owned(),
        params: [("plan".to_owned(), "gold".to_owned())].into(),
        ring: RING,
        who: Principal::operator(),
        call: format!("call_of_{id}"),
        reserved: Some(7),
        unix: 1_000,
    }
}

fn placed() -> (Book<u8>, Instant) {
    let (mut book, now) = (Book::default(), Instant::now());
    assert!(book.place(order("dial_1", REFERENCE), Some(Slot::of("token")), now));
    (book, now)
}

fn news(call: &str, progress: Progress) -> Status {
    Status { call: call.to_owned(), asked_as: None, progress, duration_s: None, dial: Some(REFERENCE.to_owned()) }
}

fn state(book: &Book<u8>, now: Instant) -> (String, Value) {
    let shown = book.shown("dial_1", &tenant(), now).unwrap();
    (shown["state"].as_str().unwrap().to_owned(), shown)
}

#[tokio::test]
async fn a_call_goes_forward_and_ends_once() {
    let (mut book, now) = placed();
    assert_eq!(state(&book, now).0, "queued");
    assert_eq!(book.begun("dial_1", "CA1"), Loose::default());
    for (progress, want) in [
        (Progress::Queued, "queued"),
        (Progress::Ringing, "ringing"),
        (Progress::Queued, "ringing"),
        (Progress::Answered, "answered"),
        (Progress::Ringing, "answered"),
        (Progress::Machine(Machine::Human), "answered"),
        (Progress::Machine(Machine::Machine), "machine"),
        (Progress::Machine(Machine::Beep), "machine"),
    ] {
        assert_eq!(book.hear("twilio", &news("CA1", progress.clone()), now + S(5)), Loose::default());
        assert_eq!(state(&book, now).0, want, "{progress:?}");
    }
    let joined = book.joins("dial_1", now + S(7)).unwrap();
    assert_eq!((joined.call.as_str(), joined.reserved, joined.machine), ("call_of_dial_1", 7, Some(Machine::Beep)));
    assert!(book.joins("dial_1", now + S(7)).is_none(), "one stream");
    let (shown, all) = state(&book, now + S(8));
    assert_eq!(
        (shown.as_str(), all["voice_call"].as_str(), all["duration_s"].as_u64()),
        ("streaming", Some("call_of_dial_1"), Some(3))
    );
    assert_eq!(book.left("dial_1", Ended::new("completed", By::Callee), now + S(15)).as_deref(), Some("CA1"));
    let late = Status { duration_s: Some(11), ..news("CA1", Progress::Ended(Ending::Completed)) };
    assert_eq!(book.hear("twilio", &late, now + S(16)), Loose::default());
    book.hear("twilio", &news("CA1", Progress::Ended(Ending::Failed)), now + S(17));
    let all = state(&book, now + S(99)).1;
    assert_eq!(
        (all["state"].as_str(), all["reason"].as_str(), all["ended_by"].as_str(), all["duration_s"].as_u64()),
        (Some("ended"), Some("completed"), Some("callee"), Some(11)),
        "the provider's own length counts"
    );
    assert!(book.shown("dial_1", "another tenant", now).is_none());
}

#[tokio::test]
async fn what_has_answered_is_told_once_to_a_call_that_began_without_knowing() {
    let (mut book, now) = placed();
    book.hear("twilio", &news("CA1", Progress::Machine(Machine::Unknown)), now);
    book.joins("dial_1", now).unwrap();
    let mut found = |who| book.hear("twilio", &news("CA1", Progress::Machine(who)), now).found;
    let told = |who| Some(("call_of_dial_1".to_owned(), tenant(), who));
    assert_eq!(found(Machine::Unknown), None, "it was known");
    assert_eq!(found(Machine::Machine), told(Machine::Machine));
    assert_eq!(found(Machine::Machine), None, "once");
    assert_eq!(found(Machine::Beep), told(Machine::Beep));
    assert_eq!(found(Machine::Beep), None);
    book.left("dial_1", Ended::new("completed", By::Callee), now);
    assert_eq!(book.hear("twilio", &news("CA1", Progress::Machine(Machine::Fax)), now).found, None, "it is over");
}

#[tokio::test]
async fn each_ending_has_its_reason_and_its_token_is_withdrawn() {
    for (ending, reason, by) in [
        (Ending::Busy, "busy", "callee"),
        (Ending::NoAnswer, "no_answer", "callee"),
        (Ending::Rejected, "rejected", "callee"),
        (Ending::Canceled, "canceled", "provider"),
        (Ending::Failed, "failed", "provider"),
    ] {
        let (mut book, now) = placed();
        let loose = book.hear("twilio", &news("CA1", Progress::Ended(ending)), now + S(3));
        assert_eq!(loose, Loose { withdraw: Some(Slot::of("token")), ..Loose::default() });
        let all = state(&book, now).1;
        assert_eq!((all["reason"].as_str(), all["ended_by"].as_str()), (Some(reason), Some(by)));
        assert_eq!(all["duration_s"], Value::Null, "nobody has answered");
        assert!(book.joins("dial_1", now + S(4)).is_none(), "a stream that comes after the end finds nothing");
        assert!(book.waits("dial_1").is_none());
    }
}

#[tokio::test]
async fn a_stream_is_waited_for_and_not_for_ever() {
    let (mut book, now) = placed();
    book.begun("dial_1", "CA1");
    assert_eq!(book.waits("dial_1").unwrap().0, now + RING + MARGIN);
    assert!(book.expire("dial_1", now + RING).is_none());
    let loose = book.expire("dial_1", now + RING + MARGIN).unwrap();
    assert_eq!((loose.hang_up.as_deref(), loose.withdraw), (Some("CA1"), Some(Slot::of("token"))));
    assert_eq!(state(&book, now).1["reason"], "no_answer");

    let (mut book, now) = placed();
    book.hear("twilio", &news("CA1", Progress::Answered), now + S(40));
    assert_eq!(book.waits("dial_1").unwrap().0, now + S(40) + JOINS_WITHIN);
    book.expire("dial_1", now + S(40) + JOINS_WITHIN).unwrap();
    assert_eq!(state(&book, now).1["reason"], "no_stream");
}

#[tokio::test]
async fn what_was_given_up_and_rings_all_the_same_is_hung_up() {
    let (mut book, now) = placed();
    let loose = book.hang_up("dial_1", &tenant(), now).unwrap();
    assert_eq!((loose.hang_up, loose.withdraw), (None, Some(Slot::of("token"))), "the provider has not said its id");
    assert_eq!(book.begun("dial_1", "CA1").hang_up.as_deref(), Some("CA1"));
    let loose = book.hear("twilio", &news("CA1", Progress::Ringing), now);
    assert_eq!(loose.hang_up.as_deref(), Some("CA1"));
    assert_eq!(book.hear("twilio", &news("CA1", Progress::Ended(Ending::Canceled)), now), Loose::default());
    let all = state(&book, now).1;
    assert_eq!((all["reason"].as_str(), all["ended_by"].as_str()), (Some("canceled"), Some("tenant")));
    assert!(book.hang_up("dial_1", &tenant(), now).is_none(), "it is over");

    let (mut book, now) = placed();
    assert!(book.hang_up("dial_1", "another tenant", now).is_none());
    book.begun("dial_1", "CA1");
    book.joins("dial_1", now).unwrap();
    let loose = book.hang_up("dial_1", &tenant(), now).unwrap();
    assert_eq!((loose.hang_up.as_deref(), loose.ends), (Some("CA1"), Some(("call_of_dial_1".to_owned(), tenant()))));
    assert_eq!(state(&book, now).0, "streaming", "until the stream is over");
    book.left("dial_1", Ended::new("completed", By::Callee), now);
    assert_eq!(state(&book, now).1["ended_by"], "tenant", "whoever's socket was quicker");
}

#[tokio::test]
async fn a_provider_that_ends_a_call_whose_stream_stands_is_believed() {
    let (mut book, now) = placed();
    book.begun("dial_1", "CA1");
    book.joins("dial_1", now).unwrap();
    let loose = book.hear("twilio", &news("CA1", Progress::Ended(Ending::Completed)), now + S(9));
    assert_eq!(loose.ends, Some(("call_of_dial_1".to_owned(), tenant())));
    assert_eq!(state(&book, now).0, "streaming");
    book.left("dial_1", Ended::new("completed", By::Tenant), now + S(10));
    assert_eq!(state(&book, now).1["ended_by"], "callee");
}

#[tokio::test]
async fn a_reference_is_good_for_its_account_its_call_and_its_time() {
    let asking =
        |call: &str| Incoming { call: call.to_owned(), dial: Some(REFERENCE.to_owned()), ..Incoming::default() };
    let (mut book, now) = placed();
    assert!(book.asks("other", &asking("CA1"), now).is_none());
    let guessed = Incoming { dial: Some("f".repeat(32)), ..asking("CA1") };
    assert!(book.asks("twilio", &guessed, now).is_none());
    let asked = Incoming { machine: Some(Machine::Machine), ..asking("CA1") };
    let found = book.asks("twilio", &asked, now).unwrap();
    assert_eq!((found.id.as_str(), found.agent.as_str(), found.withdraw), ("dial_1", "sales", Some(Slot::of("token"))));
    assert_eq!((found.call.to.as_deref(), found.call.custom["plan"].as_str()), (Some("+15550100"), "gold"));
    assert_eq!(found.call.machine, Some(Machine::Machine));
    book.invited("dial_1", Slot::of("second"));
    let again = book.asks("twilio", &asking("CA1"), now).unwrap();
    assert_eq!(again.withdraw, Some(Slot::of("second")), "a provider that asks again: one token at a time");
    assert!(book.asks("twilio", &asking("CA2"), now).is_none(), "another call");
    book.joins("dial_1", now).unwrap();
    assert!(book.asks("twilio", &asking("CA1"), now).is_none(), "its stream is there");

    let (mut book, now) = placed();
    assert!(book.asks("twilio", &asking("CA1"), now + RING + MARGIN).is_none(), "too late");
}

#[tokio::test]
async fn calls_are_known_by_whichever_id_the_provider_says() {
    let (mut book, now) = placed();
    book.begun("dial_1", "request-1");
    let bare = |call: &str, asked_as: Option<&str>, progress| Status {
        dial: None,
        asked_as: asked_as.map(str::to_owned),
        ..news(call, progress)
    };
    book.hear("twilio", &bare("leg-1", Some("request-1"), Progress::Ringing), now);
    assert_eq!(state(&book, now).1["call"], "leg-1");
    book.hear("twilio", &bare("leg-1", None, Progress::Answered), now);
    book.hear("other", &bare("leg-1", None, Progress::Ended(Ending::Failed)), now);
    book.hear("twilio", &bare("leg-2", None, Progress::Ended(Ending::Failed)), now);
    assert_eq!(state(&book, now).0, "answered", "another account's, and another call's");
    // The stream's own leg tells with the same reference.
    book.hear("twilio", &news("stream-leg", Progress::StreamStarted), now);
    assert_eq!(state(&book, now).1["call"], "leg-1");
}

#[tokio::test]
async fn only_what_is_over_makes_room() {
    let (mut book, now) = (Book::default(), Instant::now());
    for n in 0..MOST {
        assert!(book.place(order(&format!("dial_{n}"), &n.to_string()), None, now));
    }
    assert!(!book.place(order("dial_more", "more"), None, now));
    book.hang_up("dial_1", &tenant(), now).unwrap();
    assert!(!book.place(order("dial_more", "more"), None, now + KEPT - S(1)));
    assert!(book.place(order("dial_more", "more"), None, now + KEPT));
    assert!(book.shown("dial_1", &tenant(), now).is_none());
    book.forget("dial_more");
    assert!(book.shown("dial_more", &tenant(), now).is_none());
}
