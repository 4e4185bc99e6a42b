use std::{collections::BTreeMap, io, path::PathBuf, sync::atomic::AtomicUsize, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::{self, Instant};

use super::*;
use crate::{
    admit::price::Usd,
    batch::{
        engine::{Answer, Failure, Upload},
        source::{self, FetchError, Listed},
        store::{Order, Params, Part, Row, State, Task, Usage},
        width::Width,
    },
};

const PRICE: Usd = Usd::from_pico(1_000);

/// Says what comes of the n-th request for a file, and when.
type Tell = dyn Fn(&str, usize) -> (u64, Result<Answer, Failure>) + Send + Sync;

/// A service that does as it is told.
struct Told {
    tell: Box<Tell>,
    asked: Mutex<Vec<(String, String, String)>>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Told {
    fn new(tell: impl Fn(&str, usize) -> (u64, Result<Answer, Failure>) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { tell: Box::new(tell), asked: Mutex::default() })
    }

    /// Stem, upload name and key of each request.
    fn asked(&self) -> Vec<(String, String, String)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Engine for Told {
    fn transcribe<'a>(
        &'a self,
        upload: &'a Upload,
        _: &'a Wish,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let stem = upload.path.file_stem().unwrap().to_str().unwrap().to_owned();
            let nth = {
                let mut asked = self.asked.lock().unwrap();
                asked.push((stem.clone(), upload.name.clone(), key.to_owned()));
                asked.iter().filter(|(of, ..)| *of == stem).count()
            };
            let (secs, answer) = (self.tell)(&stem, nth);
            time::sleep(Duration::from_secs(secs)).await;
            answer
        })
    }
}

fn good() -> Result<Answer, Failure> {
    let (body, waited) = (r#"{"text": "hello"}"#.into(), Duration::ZERO);
    Ok(Answer { body, cost: Some(PRICE), waited, repeated: false, route: None })
}

fn broken() -> Result<Answer, Failure> {
    Err(Failure::Again { message: "HTTP 500: it hurts".to_owned() })
}

fn away() -> Result<Answer, Failure> {
    Err(Failure::Away { message: "the relay is not reached: refused".to_owned() })
}

fn busy(secs: u64) -> Result<Answer, Failure> {
    Err(Failure::Wait { wait: Duration::from_secs(secs), message: "too fast".to_owned() })
}

/// What a server of recordings does.
#[derive(Debug)]
enum Serves {
    /// It sends nothing, ever.
    Nothing,
    /// No URL; only files are there.
    Files,
    /// What it sends finds no room.
    TooMuch,
    /// It wants to be asked later, once.
    Later(Duration),
    /// It takes a second for each; how many at once there were.
    Slowly(AtomicUsize, AtomicUsize),
}

/// URLs of it are files of the folder.
#[derive(Debug)]
struct Server {
    folder: PathBuf,
    real: Sources,
    serves: Arc<Serves>,
    asked: AtomicUsize,
}

impl Source for Server {
    fn open<'a>(&'a self, place: &'a str) -> source::fetch::Opening<'a> {
        let nth = self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match &*self.serves {
                Serves::Nothing => return std::future::pending().await,
                Serves::Files if place.contains("://") => return Err(FetchError::Denied),
                Serves::Files => {}
                Serves::TooMuch => return Err(FetchError::Copy(io::ErrorKind::StorageFull.into())),
                Serves::Later(after) if nth == 0 => {
                    let status = axum::http::StatusCode::TOO_MANY_REQUESTS;
                    return Err(FetchError::Status { status, after: Some(*after) });
                }
                Serves::Later(_) => {}
                Serves::Slowly(now, most) => {
                    most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    time::sleep(Duration::from_secs(1)).await;
                    now.fetch_sub(1, Ordering::Relaxed);
                }
            }
            let file = self.folder.join(place.rsplit('/').next().unwrap());
            self.real.open(file.to_str().unwrap()).await
        })
    }
}

/// A folder with recordings and a job.
struct Desk {
    dir: tempfile::TempDir,
    params: Params,
    longest: Duration,
    serves: Option<Arc<Serves>>,
    width: Width,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pieces")).unwrap();
        let longest = Duration::from_secs(60);
        Self { dir, params: Params::default(), longest, serves: None, width: Width::fixed(4) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn job(&self) -> PathBuf {
        self.path("job")
    }

    /// A recording that no other name has.
    fn made(&self, name: &str, secs: u32) {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 8_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = hound::WavWriter::create(self.path(name), spec).unwrap();
        let mut seed = name.bytes().fold(7_u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(u32::from(byte)));
        for _ in 0..8_000 * secs {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            wav.write_sample(i16::from(seed.to_be_bytes()[0])).unwrap();
        }
        wav.finalize().unwrap();
    }

    /// A new job of these recordings, a second each.
    fn of(&self, names: impl IntoIterator<Item = String>) -> Store {
        let store = Store::create(&self.job(), &self.params, self.dir.path()).unwrap();
        let listed = names.into_iter().map(|name| {
            let local = self.path(name.rsplit('/').next().unwrap());
            if !local.exists() {
                self.made(local.file_name().unwrap().to_str().unwrap(), 1);
            }
            let source = if name.contains("://") { name.clone() } else { local.to_str().unwrap().to_owned() };
            Listed { id: name, source, ..Listed::default() }
        });
        store.add(listed.collect::<Vec<_>>()).unwrap();
        store
    }

    fn cut(&self, name: &str) -> cut::Pieces {
        let limits = cut::Limits { longest: self.longest, shortest: Duration::ZERO, ..cut::Limits::default() };
        match cut::plan(self.path(name), &limits, &CancellationToken::new()).unwrap() {
            Plan::Pieces(pieces) => pieces,
            other => panic!("{other:?}"),
        }
    }

    fn again(&self) -> Store {
        let store = Store::resume(&self.job(), &self.params).unwrap();
        store.retry_failed().unwrap();
        store
    }

    fn begin(&self, store: Store, engine: Arc<Told>) -> Arc<Run> {
        let fetched = source::Limits { max_bytes: 1 << 20, folder: self.path("pieces") };
        let real = || Sources::new(fetched.clone()).unwrap();
        let run = Run::new(Plans {
            store: Arc::new(store),
            sources: real(),
            engine,
            relay: Relay::new("http://127.0.0.1:1", None, Vec::new(), Duration::from_secs(1)).unwrap(),
            gate: Gate::new(self.width.clone()),
            wish: Wish { model: "m".to_owned(), language: None, prompt: None, times: false },
            limits: cut::Limits { longest: self.longest, shortest: Duration::ZERO, ..cut::Limits::default() },
            extract: None,
            folder: self.path("pieces"),
            texts: false,
            rounds: None,
        });
        let Some(serves) = self.serves.clone() else { return run };
        let mut run = Arc::into_inner(run).unwrap();
        let folder = self.dir.path().to_owned();
        run.sources = Box::new(Server { folder, real: real(), serves, asked: AtomicUsize::new(0) });
        Arc::new(run)
    }

    async fn run(&self, store: Store, engine: Arc<Told>) -> Arc<Run> {
        let run = self.begin(store, engine);
        run.run().await;
        run
    }
}

fn names(prefix: &str, many: u32) -> Vec<String> {
    (0..many).map(|n| format!("{prefix}{n:03}.wav")).collect()
}

/// How many are done, have failed and are left.
fn counts(run: &Run) -> [u64; 3] {
    let sums = run.store().sums();
    [sums.done.items, sums.failed.items, sums.waiting.items + sums.working.items]
}

fn rows(run: &Run, state: State) -> Vec<Row> {
    run.store().rows(&[state], Order::Listed).map(Result::unwrap).collect()
}

fn is_out(run: &Run) -> bool {
    matches!(run.stopped(), Some(Stopped::Refused { code, .. }) if code == "service_unavailable")
}

#[tokio::test(start_paused = true)]
async fn files_that_the_service_cannot_bear_are_errors_and_the_others_are_done() {
    let desk = Desk::new();
    let files = [names("bad", 3), names("good", 30)].concat();
    let engine = || Told::new(|file, _| (0, if file.starts_with("bad") { broken() } else { good() }));
    let run = desk.run(desk.of(files), engine()).await;
    assert_eq!((counts(&run), run.stopped()), ([30, 3, 0], None));
    let failed = rows(&run, State::Failed);
    assert!(failed.iter().all(|row| row.code.as_deref() == Some("no_answer") && row.attempts >= 6), "{failed:?}");
    assert!(failed.iter().all(|row| row.message.as_deref() == Some("HTTP 500: it hurts")), "{failed:?}");
    drop(run);
    // Nothing else is left.
    let run = desk.run(desk.again(), engine()).await;
    assert_eq!((counts(&run), run.stopped()), ([30, 3, 0], None));
}

#[tokio::test(start_paused = true)]
async fn a_few_files_that_are_all_there_is_fail_as_files_also_where_they_hang() {
    for (many, secs) in [(1, 0), (2, 0), (2, 1_200), (12, 0)] {
        let desk = Desk::new();
        let run = desk.run(desk.of(names("bad", many)), Told::new(move |_, _| (secs, broken()))).await;
        assert_eq!((counts(&run), run.stopped()), ([0, u64::from(many), 0], None), "{many} {secs}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_that_have_failed_before_fail_again_and_are_no_outage() {
    let desk = Desk::new();
    let bad = |file: &str| file.starts_with("bad");
    let files = names("bad", 25).into_iter().zip(names("good", 25)).flat_map(|(bad, good)| [bad, good]);
    let engine = Told::new(move |file, _| if bad(file) { (0, broken()) } else { (1, good()) });
    let run = desk.run(desk.of(files), engine).await;
    assert_eq!((counts(&run), run.stopped()), ([25, 25, 0], None));
    drop(run);
    let run = desk.run(desk.again(), Told::new(|_, _| (0, broken()))).await;
    assert_eq!((counts(&run), run.stopped()), ([25, 25, 0], None));
}

#[tokio::test(start_paused = true)]
async fn an_outage_fails_no_file_and_ends_the_run_after_a_while_or_is_waited_for() {
    let (began, files) = (Instant::now(), names("a", 120));
    let out = move |from: u64, to: u64| {
        Told::new(move |_, _| match began.elapsed().as_secs() {
            now if (from..to).contains(&now) => (0, broken()),
            _ => (1, good()),
        })
    };
    let desk = Desk::new();
    let run = desk.run(desk.of(files.clone()), out(3, 200)).await;
    assert_eq!((counts(&run), run.stopped()), ([120, 0, 0], None));
    let desk = Desk::new();
    let from = began.elapsed().as_secs() + 3;
    let run = desk.run(desk.of(files.clone()), out(from, u64::MAX)).await;
    let [done, failed, left] = counts(&run);
    assert!(is_out(&run) && failed == 0 && done > 4 && left > 100, "{done} {failed} {left}");
    assert!((300..320).contains(&(began.elapsed().as_secs() - from)), "{:?}", began.elapsed());
    drop(run);
    // One that never was well is not waited for, and what nobody answers is nobody's fault.
    let (desk, began) = (Desk::new(), Instant::now());
    let run = desk.run(desk.of(files), Told::new(|_, _| (0, broken()))).await;
    assert!(is_out(&run) && counts(&run) == [0, 0, 120] && began.elapsed() < Duration::from_secs(120));
    for many in [1, 9] {
        let desk = Desk::new();
        let run = desk.run(desk.of(names("a", many)), Told::new(|_, _| (0, away()))).await;
        assert!(is_out(&run) && counts(&run) == [0, 0, u64::from(many)], "{:?} {:?}", counts(&run), run.stopped());
        assert!(rows(&run, State::Waiting).iter().all(|row| row.attempts == 0), "nothing was sent");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_quiet_time_and_a_long_wait_are_no_end() {
    let mut desk = Desk::new();
    desk.width = Width::fixed(1);
    let engine = Told::new(|file, nth| match (file, nth) {
        ("a000", _) => (1, good()),
        ("a001", 1) => (500, busy(2)),
        ("a001", 2) => (400, broken()),
        ("a002", 1) => (0, busy(599)),
        ("a002", 2) => (0, busy(2)),
        _ => (0, good()),
    });
    let run = desk.run(desk.of(names("a", 3)), engine).await;
    assert_eq!((counts(&run), run.stopped()), ([3, 0, 0], None));
    let attempts: Vec<u64> = rows(&run, State::Done).iter().map(|row| row.attempts).collect();
    assert_eq!(attempts, [1, 2, 1], "what was refused was not sent");
    // What refuses for ever is an end.
    let desk = Desk::new();
    let run = desk.run(desk.of(names("a", 3)), Told::new(|_, _| (0, busy(2)))).await;
    assert!(is_out(&run) && counts(&run) == [0, 0, 3]);
}

#[tokio::test(start_paused = true)]
async fn stopped_it_waits_for_what_was_sent_and_for_nothing_else() {
    let desk = Desk::new();
    let run = desk.begin(desk.of(names("a", 30)), Told::new(|_, _| (1_100, good())));
    let stopper = run.clone();
    let began = Instant::now();
    tokio::join!(run.run(), async move {
        time::sleep(Duration::from_secs(10)).await;
        stopper.stop(Stopped::Asked);
    });
    assert_eq!((counts(&run), began.elapsed().as_secs()), ([4, 0, 26], 1_100));
    // Nothing was sent of what is fetched.
    let mut desk = Desk::new();
    desk.serves = Some(Arc::new(Serves::Nothing));
    let run = desk.begin(desk.of(["http://h/1.wav".to_owned()]), Told::new(|_, _| (0, good())));
    let stopper = run.clone();
    let began = Instant::now();
    let both = async {
        tokio::join!(run.run(), async move {
            time::sleep(Duration::from_secs(10)).await;
            stopper.stop(Stopped::Asked);
        });
    };
    time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!((counts(&run), began.elapsed().as_secs()), ([0, 0, 1], 10));
    assert_eq!(rows(&run, State::Waiting)[0].attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn facts_of_a_text_that_is_there_need_no_recording_but_a_new_one_is_heard() {
    let mut desk = Desk::new();
    desk.params.extract = BTreeMap::from([("schema".to_owned(), "{}".to_owned())]);
    let store = desk.of(["gone.wav", "same.wav", "new.wav", "http://h/far.wav"].map(str::to_owned));
    let items = store.claim(9, 1).unwrap();
    for (item, name) in items.iter().zip(["gone.wav", "same.wav", "new.wav", "far.wav"]) {
        let hash = cut::fingerprint(desk.path(name), &CancellationToken::new()).unwrap();
        store.describe(item.n, &Content { hash, bytes: 1, duration_ms: 1_000 }).unwrap();
        store.put_transcript(item.n, &Transcript { text: "old".to_owned(), ..Transcript::default() }).unwrap();
        let (code, message) = ("refused".to_owned(), "the model refuses".to_owned());
        store.end(item.n, &End::Failed { code, message }, 2).unwrap();
    }
    drop(store);
    std::fs::remove_file(desk.path("gone.wav")).unwrap();
    desk.made("other.wav", 2);
    std::fs::rename(desk.path("other.wav"), desk.path("new.wav")).unwrap();
    let engine = Told::new(|_, _| (0, good()));
    // Files are still opened where they lie.
    desk.serves = Some(Arc::new(Serves::Files));
    let run = desk.run(desk.again(), engine.clone()).await;
    assert_eq!((counts(&run), run.stopped()), ([4, 0, 0], None), "{:?}", rows(&run, State::Failed));
    let heard: Vec<String> = engine.asked().into_iter().map(|(file, ..)| file).collect();
    assert_eq!(heard, ["new"]);
    let texts: Vec<String> = rows(&run, State::Done).into_iter().map(|row| row.transcript.unwrap().text).collect();
    assert_eq!(texts, ["old", "old", "hello", "old"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_no_files_fault() {
    let mut desk = Desk::new();
    desk.serves = Some(Arc::new(Serves::TooMuch));
    let run = desk.run(desk.of((0..9).map(|n| format!("http://h/{n}.wav"))), Told::new(|_, _| (0, good()))).await;
    assert_eq!(counts(&run), [0, 0, 9]);
    let Some(Stopped::Job(why)) = run.stopped() else { panic!("{:?}", run.stopped()) };
    assert!(why.contains("pieces") && why.contains("the disk is full") && why.contains("--resume"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_to_be_asked_later_is_and_not_too_many_are_fetched_at_once() {
    let mut desk = Desk::new();
    desk.serves = Some(Arc::new(Serves::Later(Duration::from_secs(40))));
    let began = Instant::now();
    let run = desk.run(desk.of(["http://h/1.wav".to_owned()]), Told::new(|_, _| (0, good()))).await;
    assert_eq!((counts(&run), began.elapsed().as_secs()), ([1, 0, 0], 40));
    let mut desk = Desk::new();
    let slowly = Arc::new(Serves::Slowly(AtomicUsize::new(0), AtomicUsize::new(0)));
    (desk.serves, desk.width) = (Some(slowly.clone()), Width::fixed(64));
    let run = desk.run(desk.of((0..40).map(|n| format!("http://h/{n}.wav"))), Told::new(|_, _| (0, good()))).await;
    let Serves::Slowly(_, most) = &*slowly else { panic!() };
    assert_eq!((counts(&run), most.load(Ordering::Relaxed)), ([40, 0, 0], 8));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_has_paid_for_is_not_booked_and_what_we_have_is() {
    let kept = || good().map(|answer| Answer { repeated: true, ..answer });
    // `b` was sent before, and nobody knows whether it was heard.
    let engine = Told::new(move |file, nth| match (file, nth) {
        ("b", 1) => (0, broken()),
        _ => (0, kept()),
    });
    let desk = Desk::new();
    let run = desk.run(desk.of(["a.wav", "b.wav"].map(str::to_owned)), engine.clone()).await;
    let costs: Vec<Usd> = rows(&run, State::Done).iter().map(|row| row.usage.price().unwrap()).collect();
    assert_eq!(costs, [Usd::default(), PRICE]);
    let names: Vec<String> = engine.asked().into_iter().map(|(_, name, _)| name).collect();
    assert!(names.iter().all(|name| name == "audio.wav"), "the same question is the same request: {names:?}");
}

#[tokio::test(start_paused = true)]
async fn pieces_that_were_heard_are_passed_over() {
    let mut desk = Desk::new();
    desk.longest = Duration::from_secs(10);
    desk.made("long.wav", 60);
    // One of its pieces is refused at first.
    let asked = AtomicUsize::new(0);
    let engine = Told::new(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
        2 => (0, Err(Failure::Item { code: "invalid_value".to_owned(), message: "no".to_owned() })),
        _ => (5, good()),
    });
    let run = desk.run(desk.of(["long.wav".to_owned()]), engine).await;
    assert_eq!(counts(&run), [0, 1, 0]);
    let heard = run.store().answered_pieces(1).unwrap().len();
    assert!(heard >= 2, "{heard}");
    drop(run);
    let engine = Told::new(|_, _| (0, good()));
    let run = desk.run(desk.again(), engine.clone()).await;
    assert_eq!(counts(&run), [1, 0, 0]);
    let mut pieces = desk.cut("long.wav");
    let mut all = Vec::new();
    while let Some(piece) = pieces.skip().unwrap() {
        all.push(piece);
    }
    assert_eq!(engine.asked().len() + heard, all.len());
    drop(run);
    // All of them were, but not put together: no place is needed for any, and no leave.
    std::fs::remove_file(desk.job()).unwrap();
    let store = desk.of(["long.wav".to_owned()]);
    let n = store.claim(1, 1).unwrap()[0].n;
    for piece in &all {
        let (number, seal) = (u32::try_from(piece.index).unwrap(), super::pieces::seal(piece));
        let part = Part { task: Task::Piece, number, seal };
        store.begin(n, &part, 2).unwrap();
        store.answered(n, &part, r#"{"transcript": {"text": "hello"}, "model": "m"}"#, &Usage::default(), 3).unwrap();
    }
    store.end(n, &End::Released, 4).unwrap();
    std::fs::remove_dir(desk.path("pieces")).unwrap();
    let run = desk.run(store, Told::new(|_, _| (0, broken()))).await;
    assert_eq!(counts(&run), [1, 0, 0], "{:?}", rows(&run, State::Failed));
}

#[tokio::test(start_paused = true)]
async fn pieces_that_were_cut_otherwise_are_heard_again() {
    let mut desk = Desk::new();
    desk.longest = Duration::from_secs(10);
    desk.made("long.wav", 60);
    let store = desk.of(["long.wav".to_owned()]);
    let n = store.claim(1, 1).unwrap()[0].n;
    let mut pieces = desk.cut("long.wav");
    let first = Part { task: Task::Piece, number: 0, seal: super::pieces::seal(&pieces.skip().unwrap().unwrap()) };
    let second = Part { task: Task::Piece, number: 1, seal: "1+2".to_owned() };
    for part in [first, second] {
        store.begin(n, &part, 2).unwrap();
        store.answered(n, &part, r#"{"transcript": {"text": "hello"}, "model": "m"}"#, &Usage::default(), 3).unwrap();
    }
    store.end(n, &End::Released, 4).unwrap();
    let engine = Told::new(|_, _| (0, good()));
    let run = desk.run(store, engine.clone()).await;
    let mut more = 1;
    while pieces.skip().unwrap().is_some() {
        more += 1;
    }
    assert_eq!((counts(&run), engine.asked().len()), ([1, 0, 0], more - 1), "all but the first");
}
