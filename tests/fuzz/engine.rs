//! Runs targets: the corpus, mutations of it, and what is to be kept of a failure.
//!
//! Knows no coverage: its strength is a corpus of real messages, whose words and numbers it mixes (`fuzz/` has the guided way).
use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    env, fs,
    hash::{Hash as _, Hasher as _},
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::time::Instant;

use super::targets::{TARGETS, Target};

/// Longer inputs find nothing that shorter ones do not, only later.
const LONGEST: usize = 16 << 10;
/// Numbers at which arithmetic breaks.
const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "-1",
    "7",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "999999999999999",
    "9007199254740993",
    "18446744073709551615",
    "1e400",
    "0.1",
];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    found.unwrap_or_else(|| panic!("FUZZ_TARGET: found `{name}`; allowed: {}", names()))
}

/// The corpus, and as many seeded mutations of it as the table says.
pub(crate) fn check(name: &str) {
    let target = target(name);
    let mut kitchen = Kitchen::of(target.name, 20_261_128);
    for input in &kitchen.corpus {
        run_or_keep(target, input);
    }
    for _ in 0..target.runs {
        let input = kitchen.cook();
        run_or_keep(target, &input);
    }
}

/// As long as `FUZZ_SECONDS` (60) says: one target (`FUZZ_TARGET`), or all in turns. With `FUZZ_INPUT`: only this file.
pub(crate) fn run_long() {
    let seconds = env::var("FUZZ_SECONDS").map_or(60, |text| text.parse().expect("FUZZ_SECONDS is a whole number"));
    let chosen: Vec<&Target> = match env::var("FUZZ_TARGET") {
        Ok(name) => vec![target(&name)],
        Err(_) => TARGETS.iter().collect(),
    };
    if let Ok(file) = env::var("FUZZ_INPUT") {
        let input = fs::read(&file).unwrap_or_else(|error| panic!("FUZZ_INPUT {file}: {error}"));
        return chosen.iter().for_each(|target| (target.run)(&input));
    }
    let share = Duration::from_secs(seconds) / u32::try_from(chosen.len()).unwrap_or(u32::MAX);
    for target in chosen {
        let seed = env::var("FUZZ_SEED").map_or_else(|_| rand::random(), |text| text.parse().expect("a whole number"));
        let (mut kitchen, began, mut runs) = (Kitchen::of(target.name, seed), Instant::now(), 0_u64);
        while began.elapsed() < share {
            let input = kitchen.cook();
            run_or_keep(target, &input);
            runs += 1;
        }
        let speed = runs as f64 / began.elapsed().as_secs_f64();
        println!("{:<10} {runs:>9} runs, {speed:>9.0} a second (FUZZ_SEED={seed})", target.name);
    }
}

/// A failure is made small, written down, and told with the command that replays it.
fn run_or_keep(target: &Target, input: &[u8]) {
    let Err(panic) = run(target, input) else { return };
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let small = smaller(input, |piece| run(target, piece).is_err());
    panic::set_hook(hook);
    let mut hash = DefaultHasher::new();
    small.hash(&mut hash);
    let file = folder("found").join(format!("{}-{:016x}", target.name, hash.finish()));
    fs::create_dir_all(folder("found")).and_then(|()| fs::write(&file, &small)).expect("the failure can be written");
    eprintln!(
        "\nThe input is kept. To replay it:\nFUZZ_TARGET={} FUZZ_INPUT={} cargo test --test fuzz -- --ignored --nocapture\n",
        target.name,
        file.display()
    );
    panic::resume_unwind(panic);
}

fn run(target: &Target, input: &[u8]) -> std::thread::Result<()> {
    panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)))
}

/// The same failure with less input: pieces are left out as long as it fails.
fn smaller(input: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut small, mut piece, mut tries) = (input.to_vec(), input.len().div_ceil(2).max(1), 0);
    while tries < 2_000 {
        let (mut at, before) = (0, small.len());
        while at < small.len() && tries < 2_000 {
            let end = (at + piece).min(small.len());
            let without = [&small[..at], &small[end..]].concat();
            tries += 1;
            if fails(&without) {
                small = without;
            } else {
                at = end;
            }
        }
        if piece == 1 && small.len() == before {
            break;
        }
        piece = (piece / 2).max(1);
    }
    small
}

/// Makes inputs out of a corpus.
struct Kitchen {
    corpus: Vec<Vec<u8>>,
    /// Words of the corpus: what stands between quotes, and what else has no space in it.
    words: Vec<Vec<u8>>,
    /// Its lines, where it has more than one a file: scripts.
    lines: Vec<Vec<u8>>,
    dice: StdRng,
}

impl Kitchen {
    fn of(target: &str, seed: u64) -> Self {
        let folder = folder("corpus").join(target);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder that can be read").path()).collect();
        files.sort(); // or the mutations would differ from machine to machine
        let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("a file that can be read")).collect();
        assert!(!corpus.is_empty(), "{}: no corpus", folder.display());
        let mut words = BTreeSet::new();
        for input in &corpus {
            let pieces = input.split(|b| b" \n,:=&.".contains(b)).filter(|word| (1..64).contains(&word.len()));
            words.extend(pieces.map(<[u8]>::to_vec));
        }
        let lines = corpus.iter().filter(|input| input.contains(&b'\n')).flat_map(|input| input.split(|b| *b == b'\n'));
        let lines: BTreeSet<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
        let (words, lines) = (words.into_iter().collect(), lines.into_iter().collect());
        Self { corpus, words, lines, dice: StdRng::seed_from_u64(seed) }
    }

    /// A mutation: one to six changes of an input of the corpus, behind up to eight of its lines.
    fn cook(&mut self) -> Vec<u8> {
        let mut input = self.corpus.choose(&mut self.dice).cloned().unwrap_or_default();
        if !self.lines.is_empty() {
            for _ in 0..self.dice.random_range(0..=8) {
                self.change_lines(&mut input);
            }
            if self.dice.random() {
                input.truncate(LONGEST);
                return input;
            }
        }
        for _ in 0..self.dice.random_range(1..=6) {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    /// One line more, one less, or another one in its place.
    fn change_lines(&mut self, input: &mut Vec<u8>) {
        let ends = input.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let from = *starts.choose(&mut self.dice).unwrap_or(&0);
        let to = input[from..].iter().position(|b| *b == b'\n').map_or(input.len(), |end| from + end + 1);
        let line = self.lines.choose(&mut self.dice).into_iter().flatten().copied().chain([b'\n']);
        match self.dice.random_range(0..4) {
            0 => drop(input.drain(from..to)),
            1 => drop(input.splice(from..to, line)),
            _ => drop(input.splice(to..to, line)),
        }
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let dice = &mut self.dice;
        let at = dice.random_range(0..=input.len());
        let end = (at + dice.random_range(0..=16_usize.max(input.len() / 4))).min(input.len());
        match dice.random_range(0..11) {
            0 if at < input.len() => input[at] ^= 1 << dice.random_range(0..8),
            1 if at < input.len() => input[at] = dice.random(),
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec(); // twice
                input.splice(at..at, piece);
            }
            4 => {
                let byte = *[0, 0x7F, 0x80, 0xFF, b'"', b'\\', b'{', b'}', b'\n'].choose(dice).unwrap_or(&0);
                input.insert(at, byte);
            }
            5 => input.truncate(end),
            6 | 7 => {
                let numbers = numbers(input);
                if let Some((from, to)) = numbers.choose(dice) {
                    let other = NUMBERS.choose(dice).copied().unwrap_or("0");
                    input.splice(from..to, other.bytes());
                }
            }
            8 => {
                let other = self.corpus.choose(dice).cloned().unwrap_or_default();
                let from = dice.random_range(0..=other.len());
                let to = (from + dice.random_range(0..=64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                let word = self.words.choose(dice).cloned().unwrap_or_default();
                let old = word_at(input, at);
                input.splice(old, word);
            }
        }
    }
}

/// Where digits stand.
fn numbers(input: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut from = None;
    for (at, byte) in input.iter().chain([&b' ']).enumerate() {
        match (byte.is_ascii_digit(), from) {
            (true, None) => from = Some(at),
            (false, Some(begin)) => {
                found.push((begin, at));
                from = None;
            }
            _ => {}
        }
    }
    found
}

/// The word around a place.
fn word_at(input: &[u8], at: usize) -> std::ops::Range<usize> {
    let edge = |b: &u8| b" \n,:=&.".contains(b);
    let from = input[..at].iter().rposition(edge).map_or(0, |found| found + 1);
    let to = input[at..].iter().position(edge).map_or(input.len(), |found| at + found);
    if to - from < 64 { from..to } else { at..at }
}

#[test]
fn a_planted_fault_is_found_and_made_small() {
    let mut kitchen = Kitchen::of("thin", 1);
    let bad = |input: &[u8]| input.windows(20).any(|word| word == b"18446744073709551615");
    let found = (0..5_000).map(|_| kitchen.cook()).find(|input| bad(input)).expect("numbers are changed");
    assert_eq!(smaller(&found, bad), b"18446744073709551615");
    let mut same = Kitchen::of("thin", 1);
    assert!((0..5_000).map(|_| same.cook()).any(|input| input == found), "the same seed cooks the same");
}
