//! Every kind of fault in virtual time.
use super::*;
use crate::{chaos::Script, chaos::stats::Counters};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn lane_of(script: &str, connection: u64) -> (Lane, Arc<Counters>) {
    let counters = Arc::<Counters>::default();
    let book = Book::new(Script::from_toml(script).unwrap(), counters.clone());
    (Lane::new(book, connection, Direction::ToClient), counters)
}

/// What a receiver sees, and when, ms.
type Seen = Vec<(u64, Action)>;

/// Feeds a lane at these times and does what it says; `None` is the end of the stream.
fn run_on(lane: &mut Lane, from: u64, inputs: &[(u64, Option<Vec<u8>>)]) -> Seen {
    let (mut seen, mut inputs, mut now) = (Vec::new(), inputs.iter().peekable(), ms(from));
    loop {
        while let Some((_, input)) = inputs.next_if(|(at, _)| ms(*at) <= now) {
            match input {
                Some(bytes) => lane.take(now, Bytes::from(bytes.clone())),
                None => lane.end(),
            }
        }
        while let Some(action) = lane.poll(now) {
            if let Action::Write(bytes) = &action {
                assert!(!bytes.is_empty());
                lane.wrote(now, bytes.len());
            }
            seen.push((u64::try_from(now.as_millis()).unwrap(), action.clone()));
            if matches!(action, Action::Close | Action::Reset) {
                return seen;
            }
        }
        let next = inputs.peek().map(|(at, _)| ms(*at)).into_iter().chain(lane.deadline(now)).min();
        let Some(next) = next else { return seen };
        assert!(next > now, "a deadline is ahead");
        now = next;
    }
}

fn run(script: &str, inputs: &[(u64, Option<Vec<u8>>)]) -> (Seen, Arc<Counters>) {
    let (mut lane, counters) = lane_of(script, 1);
    (run_on(&mut lane, 0, inputs), counters)
}

fn count(counters: &Counters, kind: &str) -> u64 {
    counters.lock().count(kind)
}

/// The bytes that were written, as pieces with their times.
fn pieces(seen: &Seen) -> Vec<(u64, Vec<u8>)> {
    let write = |(at, action): &(u64, Action)| match action {
        Action::Write(bytes) => Some((*at, bytes.to_vec())),
        _ => None,
    };
    seen.iter().filter_map(write).collect()
}

fn bytes(seen: &Seen) -> Vec<u8> {
    pieces(seen).into_iter().flat_map(|(_, bytes)| bytes).collect()
}

/// Bytes that tell where they are.
fn stream(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect()
}

/// An answer with 101, and frames without mask, each with so many bytes.
fn web_socket(payloads: &[u8]) -> Vec<u8> {
    let mut out = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    for len in payloads {
        out.extend([0x82, *len]);
        out.extend(vec![*len; usize::from(*len)]);
    }
    out
}
const HEAD: usize = 36;

#[test]
fn without_faults_bytes_pass_at_once_and_as_they_came() {
    let (seen, _) = run("", &[(0, Some(stream(10))), (7, Some(stream(70_000))), (9, None)]);
    let want =
        vec![(0, Action::Write(stream(10).into())), (7, Action::Write(stream(70_000).into())), (9, Action::Shut)];
    assert_eq!(seen, want);
}

#[test]
fn frames_are_not_cut_where_no_fault_is() {
    let all = web_socket(&[10, 20, 30]);
    let (seen, _) = run("[[fault]]\nkind = \"close\"\nframe = 9", &[(1, Some(all.clone()))]);
    assert_eq!(seen, [(1, Action::Write(all.into()))]);
}

#[test]
fn what_cannot_leave_is_bounded() {
    let (mut lane, _) = lane_of("", 1);
    assert_eq!(lane.room(ms(0)), BUFFER);
    lane.take(ms(0), Bytes::from(stream(BUFFER - 1)));
    assert_eq!(lane.room(ms(0)), 1);
    lane.wrote(ms(0), 100);
    assert_eq!((lane.room(ms(0)), lane.finished()), (101, false));
    lane.end();
    assert_eq!(lane.room(ms(0)), 0, "nothing comes after the end");
}

#[test]
fn a_delay_is_as_long_as_told_with_jitter_and_keeps_the_order() {
    let script = "seed = 5\n[[fault]]\nkind = \"delay\"\nms = 200\njitter_ms = 200\nfor_ms = 2_000";
    let inputs: Vec<_> = (0..100).map(|n| (n * 20, Some(vec![u8::try_from(n).unwrap(); 300]))).collect();
    let (seen, counters) = run(script, &inputs);
    let sent: Vec<u8> = inputs.iter().flat_map(|(_, bytes)| bytes.clone().unwrap()).collect();
    assert_eq!(bytes(&seen), sent, "nothing lost, in order");
    let lags: Vec<u64> = pieces(&seen).iter().map(|(at, bytes)| at - u64::from(bytes[0]) * 20).collect();
    assert!(lags.iter().all(|lag| (200..=400).contains(lag)), "{lags:?}");
    assert!(lags.iter().max().unwrap() - lags.iter().min().unwrap() > 100, "there is jitter: {lags:?}");
    assert_eq!(count(&counters, "delay"), 1);
    let (seen, _) = run(script, &[(1_999, Some(stream(2))), (2_000, Some(stream(3)))]);
    let at: Vec<u64> = pieces(&seen).iter().map(|(at, _)| *at).collect();
    assert!(at[0] >= 2_199 && at[1] >= at[0], "later bytes do not overtake: {at:?}");
}

#[test]
fn jitter_and_cuts_do_not_depend_on_how_bytes_come_in() {
    let script = "seed = 5\n[[fault]]\nkind = \"delay\"\nms = 20\njitter_ms = 90\n[[fault]]\nkind = \"slice\"\nmax = 40\n\
                  [[fault]]\nkind = \"flip\"\nper_byte = 0.01";
    let times = |piece: usize| {
        let mut inputs: Vec<_> = stream(3_000).chunks(piece).map(|bytes| (0, Some(bytes.to_vec()))).collect();
        inputs.push((0, None));
        let seen = run(script, &inputs).0;
        pieces(&seen).into_iter().flat_map(|(at, bytes)| bytes.into_iter().map(move |b| (at, b))).collect::<Vec<_>>()
    };
    assert_eq!(times(3_000), times(7));
    assert_eq!(times(3_000), times(256));
    let other = script.replace("seed = 5", "seed = 6");
    assert_ne!(
        pieces(&run(script, &[(0, Some(stream(3_000)))]).0),
        pieces(&run(&other, &[(0, Some(stream(3_000)))]).0)
    );
}

#[test]
fn a_rate_is_kept_and_ends() {
    let script = "[[fault]]\nkind = \"rate\"\nbytes_per_s = 8_000\nfor_ms = 1_000";
    let (seen, counters) = run(script, &[(0, Some(stream(20_000)))]);
    let within: usize = pieces(&seen).iter().filter(|(at, _)| *at < 1_000).map(|(_, bytes)| bytes.len()).sum();
    assert!((7_500..=8_200).contains(&within), "{within} bytes in the first second");
    assert_eq!((bytes(&seen), seen.last().unwrap().0), (stream(20_000), 1_000), "and then all the rest");
    assert_eq!(count(&counters, "rate"), 1);
    let slow = run("[[fault]]\nkind = \"rate\"\nbytes_per_s = 10", &[(0, Some(stream(5)))]).0;
    assert_eq!(
        pieces(&slow).iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [0, 100, 200, 300, 400],
        "less than a write"
    );
}

#[test]
fn a_drip_is_so_much_at_a_time() {
    let script = "[[fault]]\nkind = \"drip\"\nbytes = 3\nevery_ms = 50";
    let (seen, counters) = run(script, &[(10, Some(stream(2))), (11, Some(stream(6))), (12, None)]);
    let got: Vec<_> = pieces(&seen).iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(got, [(10, 2), (11, 1), (61, 3), (111, 2)]);
    assert_eq!((seen.last(), count(&counters, "drip")), (Some(&(111, Action::Shut)), 1), "the end comes last");
}

#[test]
fn slices_and_glue() {
    let (seen, counters) = run("[[fault]]\nkind = \"slice\"", &[(3, Some(stream(50)))]);
    assert_eq!((pieces(&seen).len(), bytes(&seen), count(&counters, "slice")), (50, stream(50), 1));
    let (seen, _) = run("[[fault]]\nkind = \"slice\"\nmin = 2\nmax = 9", &[(3, Some(stream(5_000)))]);
    let lens: Vec<usize> = pieces(&seen).iter().map(|(_, bytes)| bytes.len()).collect();
    assert!(lens[..lens.len() - 1].iter().all(|len| (2..=9).contains(len)), "{lens:?}");
    assert!((2..=9).all(|len| lens.contains(&len)), "at random");
    let script = "[[fault]]\nkind = \"glue\"\nbytes = 10\nms = 100";
    let one = |n: u64| (n, Some(vec![u8::try_from(n).unwrap(); 4]));
    let (seen, counters) = run(script, &[one(0), one(20), one(40), one(50), one(60), one(200), (210, None)]);
    let got: Vec<_> = pieces(&seen).iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(got, [(40, 12), (150, 8), (210, 4)], "enough; long enough; the end");
    assert_eq!(count(&counters, "glue"), 1);
    let (seen, _) = run(script, &[one(0), one(99), one(101)]);
    let got: Vec<_> = pieces(&seen).iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(got, [(100, 8), (201, 4)], "the first has waited long enough");
}

#[test]
fn glue_waits_for_what_a_delay_holds_back() {
    let script = "[[fault]]\nkind = \"glue\"\nbytes = 8\nms = 1_000\n[[fault]]\nkind = \"delay\"\nms = 300";
    let (seen, _) = run(script, &[(0, Some(stream(4))), (10, Some(stream(4)))]);
    assert_eq!(pieces(&seen).iter().map(|(at, bytes)| (*at, bytes.len())).collect::<Vec<_>>(), [(310, 8)]);
}

#[test]
fn a_blackhole_heals_and_everything_passes() {
    let script = "[[fault]]\nkind = \"blackhole\"\nat_ms = 100\nfor_ms = 10_000";
    let inputs = [(50, Some(stream(3))), (150, Some(stream(4))), (9_000, Some(stream(5))), (9_500, None)];
    let (seen, counters) = run(script, &inputs);
    let at: Vec<_> = seen.iter().map(|(at, _)| *at).collect();
    assert_eq!(at, [50, 10_100, 10_100, 10_100], "the end of the stream too");
    assert_eq!((bytes(&seen).len(), count(&counters, "blackhole")), (12, 1));
    let (seen, _) = run("[[fault]]\nkind = \"blackhole\"\nafter_bytes = 2", &inputs);
    assert_eq!(seen, [(50, Action::Write(stream(2).into()))], "for ever");
}

#[test]
fn a_cut_is_healed_by_hand() {
    let (mut lane, counters) = lane_of("", 1);
    lane.cut(true);
    lane.cut(true);
    lane.take(ms(0), Bytes::from(stream(9)));
    lane.gone();
    assert_eq!((lane.poll(ms(90_000)), lane.deadline(ms(90_000)), lane.held(ms(90_000))), (None, None, true));
    lane.cut(false);
    assert_eq!(run_on(&mut lane, 90_001, &[]), [(90_001, Action::Write(stream(9).into())), (90_001, Action::Reset)]);
    assert_eq!(
        (count(&counters, "blackhole"), count(&counters, "reset")),
        (1, 0),
        "a peer's reset is no fault of ours"
    );
}

#[test]
fn the_end_comes_after_so_many_bytes_or_so_much_time() {
    for (kind, action) in [("reset", Action::Reset), ("close", Action::Close), ("half_close", Action::Shut)] {
        let script = format!("[[fault]]\nkind = \"{kind}\"\nafter_bytes = 7");
        let (seen, counters) = run(&script, &[(0, Some(stream(5))), (4, Some(stream(5))), (5, Some(stream(5)))]);
        let last = (4, Action::Write(stream(2).into()));
        assert_eq!(
            seen,
            [(0, Action::Write(stream(5).into())), last, (4, action.clone())],
            "{kind}: nothing more passes"
        );
        assert_eq!(count(&counters, kind), 1);
        let script = format!("[[fault]]\nkind = \"{kind}\"\nat_ms = 20\nafter_ms = 5");
        assert_eq!(run(&script, &[]).0, [(25, action.clone())], "{kind}");
        let script = format!("[[fault]]\nkind = \"{kind}\"\nafter_bytes = 0\n[[fault]]\nkind = \"delay\"\nms = 9");
        assert_eq!(run(&script, &[]).0, [(0, action)], "{kind}: before the first byte");
    }
}

#[test]
fn the_end_comes_at_a_frame() {
    let all = web_socket(&[10, 20, 30]);
    for (part, passes) in [("before", HEAD + 12), ("middle", HEAD + 12 + 2 + 10)] {
        let script = format!("[[fault]]\nkind = \"reset\"\nframe = 2\npart = \"{part}\"");
        for piece in [1, 5, 1_000] {
            let inputs: Vec<_> = all.chunks(piece).map(|bytes| (1, Some(bytes.to_vec()))).collect();
            let (seen, counters) = run(&script, &inputs);
            assert_eq!(bytes(&seen), all[..passes], "{part}, in pieces of {piece}");
            assert_eq!((seen.last(), count(&counters, "reset")), (Some(&(1, Action::Reset)), 1));
        }
    }
    let late = "[[fault]]\nkind = \"close\"\nframe = 1\nafter_ms = 30";
    assert_eq!(
        run(late, &[(1, Some(all.clone()))]).0,
        [(1, all[..HEAD].to_vec()), (1, all[HEAD..].to_vec())]
            .map(|(at, bytes)| (at, Action::Write(bytes.into())))
            .into_iter()
            .chain([(31, Action::Close)])
            .collect::<Vec<_>>()
    );
}

#[test]
fn the_end_is_as_late_as_the_bytes_before_it() {
    let script = "[[fault]]\nkind = \"delay\"\nms = 300\n[[fault]]\nkind = \"reset\"\nafter_bytes = 2";
    assert_eq!(run(script, &[(5, Some(stream(9)))]).0, [(305, Action::Write(stream(2).into())), (305, Action::Reset)]);
}

#[test]
fn bits_are_turned_round() {
    let flipped = |script: &str, input: Vec<u8>| {
        let (seen, counters) = run(script, &[(0, Some(input.clone()))]);
        let got = bytes(&seen);
        assert_eq!(got.len(), input.len());
        let wrong: Vec<_> = (0..got.len()).filter(|n| got[*n] != input[*n]).map(|n| (n, got[n] ^ input[n])).collect();
        assert_eq!(count(&counters, "flip"), wrong.len() as u64);
        wrong
    };
    assert_eq!(flipped("[[fault]]\nkind = \"flip\"\nafter_bytes = 6\nbit = 3", stream(20)), [(6, 8)]);
    assert_eq!(flipped("[[fault]]\nkind = \"flip\"\nbit = 0", stream(20)), [(0, 1)]);
    assert_eq!(flipped("[[fault]]\nkind = \"flip\"\nframe = 2\nbit = 6", web_socket(&[8, 4])), [(HEAD + 10, 64)]);
    let middle = "[[fault]]\nkind = \"flip\"\nframe = \"each\"\npart = \"middle\"\nbit = 0\ntimes = 2";
    assert_eq!(flipped(middle, web_socket(&[8, 4, 2])), [(HEAD + 6, 1), (HEAD + 14, 1)]);
    let any = flipped("seed = 2\n[[fault]]\nkind = \"flip\"\nafter_bytes = 6", stream(20));
    assert!(any.len() == 1 && any[0].0 == 6 && any[0].1.count_ones() == 1, "{any:?}");
    let many = flipped("[[fault]]\nkind = \"flip\"\nper_byte = 0.01", stream(20_000));
    assert!((140..=260).contains(&many.len()), "{}", many.len());
}

#[test]
fn a_fault_strikes_where_and_as_often_as_it_is_told() {
    let script = "[[fault]]\nkind = \"reset\"\nconnection = 2\n[[fault]]\nkind = \"close\"\ndirection = \"to_server\"";
    for (connection, direction, want) in [
        (1, Direction::ToClient, None),
        (1, Direction::ToServer, Some(Action::Close)),
        (2, Direction::ToClient, Some(Action::Reset)),
    ] {
        let book = Book::new(Script::from_toml(script).unwrap(), Arc::default());
        assert_eq!(Lane::new(book, connection, direction).poll(ms(0)), want, "{connection} {direction:?}");
    }
    let script = "seed = 9\n[[fault]]\nkind = \"reset\"\nchance = 0.3\ntimes = 30";
    let struck = || {
        let book = Book::new(Script::from_toml(script).unwrap(), Arc::default());
        let lane = |n| Lane::new(book.clone(), n, Direction::ToServer).poll(ms(0)).is_some();
        (1..=200).map(lane).collect::<Vec<_>>()
    };
    assert_eq!(struck(), struck());
    let (all, early) = (struck(), struck().into_iter().take(50).filter(|struck| *struck).count());
    assert_eq!(all.iter().filter(|struck| **struck).count(), 30, "at most so often");
    assert!((7..=24).contains(&early), "three of ten: {early} of 50");
}

#[test]
fn another_script_ends_what_is_at_work() {
    let (mut lane, counters) = lane_of("[[fault]]\nkind = \"blackhole\"\n[[fault]]\nkind = \"reset\"\nat_ms = 500", 1);
    lane.take(ms(1), Bytes::from(stream(10)));
    assert_eq!(lane.poll(ms(400)), None);
    let text = "[[fault]]\nkind = \"close\"\nafter_bytes = 5\n[[fault]]\nkind = \"rate\"\nat_ms = 100\nbytes_per_s = 100\n\
                [[fault]]\nkind = \"half_close\"\nafter_bytes = 12";
    lane.adopt(ms(400), &Book::new(Script::from_toml(text).unwrap(), counters.clone()));
    let seen = run_on(&mut lane, 401, &[(450, Some(stream(9)))]);
    assert_eq!(bytes(&seen).len(), 12, "no reset, no close in the past");
    assert_eq!(seen.last().unwrap().1, Action::Shut);
    assert!(seen.last().unwrap().0 >= 500, "the rate's moment has passed: it is at work");
    assert_eq!(["close", "reset", "rate", "half_close"].map(|kind| count(&counters, kind)), [0, 0, 1, 1]);
}

proptest::proptest! {
    #[test]
    fn nothing_is_lost_whatever_holds_it_up(
        seed in 0u64..1_000,
        sizes in proptest::collection::vec(1usize..900, 1..20),
        jitter in 0u64..300,
        slice in 1usize..50,
    ) {
        let script = format!(
            "seed = {seed}\n[[fault]]\nkind = \"delay\"\njitter_ms = {jitter}\n[[fault]]\nkind = \"slice\"\nmax = {slice}\n\
             [[fault]]\nkind = \"blackhole\"\nafter_bytes = 700\nfor_ms = 50\n[[fault]]\nkind = \"rate\"\n\
             bytes_per_s = 9_000\nfor_ms = 400\n[[fault]]\nkind = \"glue\"\nat_ms = 300\nbytes = 500\nms = 40\nfor_ms = 200"
        );
        let mut inputs: Vec<_> = (0u64..).zip(&sizes).map(|(n, size)| (n * 20, Some(stream(*size)))).collect();
        inputs.push((500, None));
        let (seen, _) = run(&script, &inputs);
        let sent: Vec<u8> = sizes.iter().flat_map(|size| stream(*size)).collect();
        proptest::prop_assert_eq!(bytes(&seen), sent);
        proptest::prop_assert_eq!(&seen.last().unwrap().1, &Action::Shut);
    }
}
