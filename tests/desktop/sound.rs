//! A sound server of the test's own, somebody who speaks, somebody who listens, and `voxrelay talk` between them.
use std::{
    fmt::Display,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;
use voxrelay::audio::{
    Codec, Format,
    decode::{decode_file, write_wav},
};

/// At which things are compared, Hz.
pub(crate) const RATE: u32 = 8_000;
/// Longest wait for the sound server.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest wait for a line: these machines are busy.
const TALK_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// ALSA's devices: the server's default, and two with names of their own.
const ALSA: &str = r#"
pcm.!default { type pulse }
ctl.!default { type pulse }
pcm.test_mic { type pulse device "mic_in.monitor" hint { show on description "Test microphone" } }
pcm.test_speaker { type pulse device "spk" hint { show on description "Test loudspeaker" } }
"#;

type Done<T = ()> = Result<T, String>;

/// What is said: the question of the other tests.
pub(crate) fn clip() -> Vec<i16> {
    decode_file(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/hello.wav"), RATE).expect("the clip is there").samples
}

/// Something loud without a pause.
pub(crate) fn noise(length: Duration) -> Vec<i16> {
    let mut seed = 1_u32;
    let next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 16) as i16) / 6
    };
    std::iter::repeat_with(next).take(samples(length)).collect()
}

/// PulseAudio with null devices.
pub(crate) struct Sound {
    folder: TempDir,
    server: Child,
    /// The modules that make devices, and what keeps each of them awake.
    modules: Vec<(String, String, Child)>,
}

impl Sound {
    pub(crate) fn start() -> Done<Self> {
        let folder = tempfile::tempdir().map_err(told("a folder"))?;
        fs::write(folder.path().join("asound.conf"), ALSA).map_err(told("asound.conf"))?;
        let socket = folder.path().join("native");
        let log = File::create(folder.path().join("log")).map_err(told("a log"))?;
        let mut command = Command::new("pulseaudio");
        command
            .args(["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm=yes"])
            .arg("-L")
            .arg(format!("module-native-protocol-unix auth-anonymous=1 socket={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let server = own(&mut command, folder.path()).spawn().map_err(told("pulseaudio"))?;
        let mut sound = Self { folder, server, modules: Vec::new() };
        let began = Instant::now();
        while sound.pactl(&["info"]).is_err() {
            if began.elapsed() > PATIENCE {
                let log = fs::read_to_string(sound.folder.path().join("log")).unwrap_or_default();
                return Err(format!("pulseaudio does not answer\n{log}"));
            }
            thread::sleep(POLL);
        }
        sound.repair()?;
        Ok(sound)
    }

    /// All devices, freshly made.
    pub(crate) fn repair(&mut self) -> Done {
        self.unload()?;
        self.load_sink("spk")?;
        self.load_microphone()
    }

    pub(crate) fn unload(&mut self) -> Done {
        for (_, id, mut awake) in std::mem::take(&mut self.modules).into_iter().rev() {
            self.pactl(&["unload-module", &id])?;
            stop(&mut awake);
        }
        Ok(())
    }

    pub(crate) fn load_microphone(&mut self) -> Done {
        self.load_sink("mic_in")?;
        self.pactl(&["set-default-source", "mic_in.monitor"]).map(drop)
    }

    /// A null sink. It becomes the default, unless it is the microphone's.
    pub(crate) fn load_sink(&mut self, name: &str) -> Done {
        let id = self.pactl(&["load-module", "module-null-sink", &format!("sink_name={name}"), "rate=48000"])?;
        // Without a stream that asks for less a null sink works in steps of two seconds, as no sound card does.
        let zero = File::open("/dev/zero").map_err(told("/dev/zero"))?;
        let mut pacat = Command::new("pacat");
        pacat
            .args(["--playback", "--latency-msec=10", "-d", name])
            .stdin(zero)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let awake = own(&mut pacat, self.folder.path()).spawn().map_err(told("pacat"))?;
        self.modules.push((name.to_owned(), id, awake));
        if name != "mic_in" {
            self.pactl(&["set-default-sink", name])?;
        }
        Ok(())
    }

    fn pactl(&self, words: &[&str]) -> Done<String> {
        let mut command = Command::new("pactl");
        let output = own(command.args(words), self.folder.path()).output().map_err(told("pactl"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(format!("pactl {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Says something into the microphone, after so much silence: a stream needs a moment to begin.
    pub(crate) fn speak(&self, speech: &[i16], after: Duration) -> Done {
        let file = self.folder.path().join("speech.wav");
        let silence = vec![0; samples(after)];
        let bytes: Vec<u8> = silence.iter().chain(speech).flat_map(|sample: &i16| sample.to_le_bytes()).collect();
        write_wav(&file, Format { codec: Codec::Pcm16, rate: RATE }, &bytes).map_err(told("speech.wav"))?;
        let mut paplay = Command::new("paplay");
        paplay.args(["--latency-msec=100", "-d", "mic_in"]).arg(file).stdin(Stdio::null());
        let output = own(&mut paplay, self.folder.path()).output().map_err(told("paplay"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("paplay: {}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Listens to a loudspeaker.
    pub(crate) fn record(&self, sink: &str) -> Done<Ear> {
        let file = self.folder.path().join("heard.raw");
        let out = File::create(&file).map_err(told("heard.raw"))?;
        let mut parec = Command::new("parec");
        parec
            .args(["--format=s16le", "--channels=1", "--latency-msec=100", "-d", &format!("{sink}.monitor")])
            .arg(format!("--rate={RATE}"))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(Stdio::null());
        let child = own(&mut parec, self.folder.path()).spawn().map_err(told("parec"))?;
        let ear = Ear { child, file };
        let began = Instant::now();
        while fs::metadata(&ear.file).map_or(0, |file| file.len()) == 0 {
            if began.elapsed() > PATIENCE {
                return Err(format!("parec hears nothing of {sink}"));
            }
            thread::sleep(POLL);
        }
        Ok(ear)
    }
}

impl Drop for Sound {
    fn drop(&mut self) {
        for (_, _, awake) in &mut self.modules {
            stop(awake);
        }
        stop(&mut self.server);
    }
}

/// A recording in progress.
pub(crate) struct Ear {
    child: Child,
    file: PathBuf,
}

impl Ear {
    pub(crate) fn stop(mut self) -> Done<Vec<i16>> {
        stop(&mut self.child);
        let bytes = fs::read(&self.file).map_err(told("heard.raw"))?;
        Ok(bytes.as_chunks::<2>().0.iter().map(|bytes| i16::from_le_bytes(*bytes)).collect())
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// The command, running.
pub(crate) struct Talk {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    /// Lines that were waited for.
    seen: usize,
}

impl Talk {
    pub(crate) fn start(sound: &Sound, words: &[&str]) -> Done<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_voxrelay"));
        let words = words.iter().copied().filter(|word| *word != "talk");
        command.arg("talk").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "RUST_LOG", "VOXRELAY_TOKEN"] {
            command.env_remove(name);
        }
        let mut child = own(&mut command, sound.folder.path()).spawn().map_err(told("voxrelay"))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            readers.push(read(out, Arc::clone(&lines)));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(read(err, Arc::clone(&lines)));
        }
        Ok(Self { stdin: child.stdin.take(), child, lines, readers, seen: 0 })
    }

    fn text(&self) -> String {
        self.lines.lock().expect("no reader panics").join("\n")
    }

    /// Waits for a line that holds `what`, behind those that were waited for before.
    pub(crate) fn until(&mut self, what: &str) -> Done<String> {
        self.until_all(&[what]).map(|mut lines| lines.remove(0))
    }

    /// Waits for lines that hold these, whatever their order.
    pub(crate) fn until_all(&mut self, whats: &[&str]) -> Done<Vec<String>> {
        let began = Instant::now();
        loop {
            let over = matches!(self.child.try_wait(), Ok(Some(_)));
            let found: Vec<Option<(usize, String)>> = {
                let lines = self.lines.lock().expect("no reader panics");
                let find = |what: &&str| lines.iter().enumerate().skip(self.seen).find(|(_, line)| line.contains(what));
                whats.iter().map(|what| find(what).map(|(n, line)| (n + 1, line.clone()))).collect()
            };
            if let Some(found) = found.iter().cloned().collect::<Option<Vec<(usize, String)>>>() {
                self.seen = found.iter().map(|(n, _)| *n).max().unwrap_or(self.seen);
                return Ok(found.into_iter().map(|(_, line)| line).collect());
            }
            if over || began.elapsed() > TALK_PATIENCE {
                let missing = whats.iter().zip(&found).find(|(_, found)| found.is_none()).map_or("", |(what, _)| what);
                let why = if over { "before it ended" } else { "in time" };
                return Err(format!("{missing:?} was not said {why}\n{}", self.text()));
            }
            thread::sleep(POLL);
        }
    }

    /// The key Enter.
    pub(crate) fn press(&mut self) -> Done {
        let stdin = self.stdin.as_mut().ok_or("no keyboard")?;
        stdin.write_all(b"\n").and_then(|()| stdin.flush()).map_err(told("the keyboard"))
    }

    /// Waits for the end: exit code and all lines.
    pub(crate) fn wait(mut self) -> Done<(i32, String)> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().map_err(told("voxrelay"))? {
                self.readers.drain(..).for_each(|reader| drop(reader.join()));
                return Ok((status.code().unwrap_or(-1), self.text()));
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("it does not end\n{}", self.text()));
            }
            thread::sleep(POLL);
        }
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(self) -> Done<(i32, String)> {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().map_err(told("kill"))?;
        self.wait()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

fn read(from: impl std::io::Read + Send + 'static, into: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("no reader panics").push(line);
        }
    })
}

fn samples(length: Duration) -> usize {
    Format { codec: Codec::Pcm16, rate: RATE }.bytes(length) / 2
}

/// On the test's own sound server, whatever else there is.
fn own<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .env("HOME", folder)
        .env("XDG_RUNTIME_DIR", folder)
        .env("PULSE_SERVER", format!("unix:{}", folder.join("native").display()))
        .env("ALSA_CONFIG_PATH", folder.join("asound.conf"))
        .env_remove("PULSE_LATENCY_MSEC")
        .env_remove("PULSE_SINK")
        .env_remove("PULSE_SOURCE")
}

fn stop(child: &mut Child) {
    let _over = child.kill();
    let _status = child.wait();
}

fn told<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
