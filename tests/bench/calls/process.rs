//! Child processes of the benchmark: started with as many descriptors as allowed, spoken to in lines, measured in /proc.
use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    ops::Sub,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// Clock ticks a second in /proc; Linux shows 100 on every machine of today.
const TICKS: f64 = 100.0;

/// For `sh`: raises the limit and becomes the program.
const WITH_ALL_FILES: &str = r#"ulimit -n "$(ulimit -Hn)"; exec "$0" "$@""#;

/// Threads that the relay and HAProxy are given.
pub(crate) fn threads() -> usize {
    std::env::var("BENCH_THREADS").map_or(2, |n| n.parse().expect("BENCH_THREADS is a number"))
}

/// Starts this program with its arguments and one more again, with the highest limit of open files that it may have, and
/// ends as that does.
pub(crate) fn again_with_all_files(more: &str) {
    let status = Command::new("sh")
        .args(["-c", WITH_ALL_FILES])
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args_os().skip(1))
        .arg(more)
        .status()
        .expect("sh is on every Unix");
    std::process::exit(status.code().unwrap_or(1));
}

/// A child; dropping it ends it.
pub(crate) struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `program` with the highest limit of open files that it may have.
    pub(crate) fn start<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Self {
        let quiet = std::env::var_os("BENCH_VERBOSE").is_none();
        let mut child = Command::new("sh")
            .args(["-c", WITH_ALL_FILES])
            .arg(program)
            .args(args)
            .env("TOKIO_WORKER_THREADS", threads().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if quiet { Stdio::null() } else { Stdio::inherit() })
            .spawn()
            .expect("sh is on every Unix");
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { orders: child.stdin.take(), child, answers }
    }

    /// Starts this benchmark again in another role.
    pub(crate) fn role(args: &[&str]) -> Self {
        Self::start(std::env::current_exe().unwrap(), args)
    }

    pub(crate) fn say(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let got = self.answers.read_line(&mut line).unwrap();
        assert_ne!(got, 0, "a child ended early; run with BENCH_VERBOSE=1 to see why");
        line.trim_end().to_owned()
    }

    /// The address at the end of the line that begins with `before`.
    pub(crate) fn listening(&mut self, before: &str) -> SocketAddr {
        loop {
            if let Some(addr) = self.line().strip_prefix(before) {
                return addr.parse().unwrap();
            }
        }
    }

    /// The figures of the next line.
    pub(crate) fn figures(&mut self) -> Figures {
        let line = self.line();
        let figures =
            line.split(' ').filter_map(|f| f.split_once('=')).map(|(k, v)| (k.to_owned(), v.parse().unwrap()));
        Figures(figures.collect())
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> Usage {
        let pid = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, stat) = stat.rsplit_once(')').unwrap();
        let stat: Vec<&str> = stat.split_whitespace().collect();
        // Fields 14 and 15 of proc(5); the first behind the name is number 3.
        let ticks = |field: usize| stat[field - 3].parse::<f64>().unwrap() / TICKS;
        let wakes = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            field(&status, "voluntary_ctxt_switches:")
        });
        Usage { at: Instant::now(), user: ticks(14), system: ticks(15), wakes: wakes.sum() }
    }

    /// Its memory now.
    pub(crate) fn memory(&self) -> Memory {
        let pid = self.child.id();
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        Memory { rss: field(&rollup, "Rss:"), anonymous: field(&rollup, "Anonymous:") }
    }

    /// Waits for its end, which must come by itself and in time, and be a good one.
    pub(crate) fn left(mut self, patience: Duration) -> Result<(), String> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            match self.child.try_wait().unwrap() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("a process ended with {status}")),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
        Err(format!("process {} is still there after {} s", self.child.id(), patience.as_secs()))
    }

    /// Ends it kindly, with time to say goodbye.
    pub(crate) fn end(mut self) {
        self.orders = None;
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end && self.child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Named numbers.
pub(crate) struct Figures(HashMap<String, u64>);

impl Figures {
    pub(crate) fn get(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no figure {name}"))
    }
}

/// CPU and wake-ups up to a moment, or between two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    at: Instant,
    /// Seconds.
    pub(crate) user: f64,
    /// Seconds.
    pub(crate) system: f64,
    /// Times that a thread waited.
    pub(crate) wakes: u64,
}

impl Usage {
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Usage {
    type Output = (Self, Duration);

    fn sub(self, earlier: Self) -> Self::Output {
        let usage = Self {
            at: self.at,
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            wakes: self.wakes.saturating_sub(earlier.wakes),
        };
        (usage, self.at - earlier.at)
    }
}

/// KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Of it, its own and not pages of the program's file.
    pub(crate) anonymous: u64,
}
