//! The commands as a person types them: real processes, real sockets, exit codes, and what they print.
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use tokio::time::Instant;
use voxrelay::audio::decode::decode_file;

pub(crate) fn voxrelay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxrelay"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "RUST_LOG", "VOXRELAY_TOKEN"] {
        command.env_remove(name);
    }
    // Whoever runs the tests may have tenants of their own.
    command.env("XDG_DATA_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/nobodys-data"));
    command
}

/// Runs to the end: exit code, standard output, standard error.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A process that listens.
pub(crate) struct Listening {
    child: Child,
    pub(crate) addr: SocketAddr,
}

impl Listening {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim_end().strip_prefix("listening on http");
        let addr = addr.and_then(|addr| addr.trim_start_matches('s').strip_prefix("://"));
        let addr = addr.unwrap_or_else(|| panic!("{line:?}"));
        let addr = addr.parse().unwrap();
        Self { child, addr }
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.addr).unwrap();
        write!(tcp, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.addr).unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Waits for the end: exit code, and what it wrote to standard error.
    pub(crate) fn end(mut self) -> (i32, String) {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), text)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn clip(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/clips", name].iter().collect()
}

#[test]
fn say_speaks_a_recording_and_saves_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("reply.wav");
    let (code, stdout, stderr) = run(voxrelay().args(["say", "assets/hello.wav", "--manual", "--out"]).arg(&out));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("speech") && stdout.contains("committed"), "{stdout}");
    let (said, heard) = (decode_file("assets/hello.wav", 24_000).unwrap(), decode_file(&out, 24_000).unwrap());
    assert!(heard.samples.len() >= said.samples.len() && heard.samples.len() < said.samples.len() + 2 * 480);
    assert_eq!(heard.samples[..said.samples.len()], said.samples, "bit for bit");
}

#[test]
fn say_reads_telephone_and_opus_recordings() {
    let dir = tempfile::tempdir().unwrap();
    for (file, args) in [
        ("hello_question_telephone_8k_ulaw.wav", &["--format", "mulaw"][..]),
        ("hello_question_opus.ogg", &["--format", "opus"]),
    ] {
        let out = dir.path().join(format!("{file}.reply.wav"));
        let (code, stdout, stderr) =
            run(voxrelay().arg("say").arg(clip(file)).args(args).arg("--manual").arg("--out").arg(&out));
        assert_eq!(code, 0, "{file}: {stdout}{stderr}");
        let (said, heard) = (decode_file(clip(file), 8_000).unwrap(), decode_file(&out, 8_000).unwrap());
        let energy = |samples: &[i16]| samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>();
        let ratio = energy(&heard.samples) / energy(&said.samples);
        assert!((0.7..1.3).contains(&ratio), "{file}: the answer has {ratio:.2} of the question's energy");
    }
}

#[test]
fn say_tells_a_bad_file_from_a_bad_relay() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.wav");
    std::fs::write(&empty, b"").unwrap();
    let truncated = dir.path().join("cut.wav");
    std::fs::write(&truncated, &std::fs::read("assets/hello.wav").unwrap()[..60_000]).unwrap();
    let (code, _, stderr) = run(voxrelay().args(["say", "nowhere.wav"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("nowhere.wav"), "{stderr}");
    let (code, _, stderr) = run(voxrelay().arg("say").arg(&empty));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("empty"), "{stderr}");
    let (code, _, stderr) = run(voxrelay().args(["say", "Cargo.toml"]));
    assert_eq!(code, 2, "{stderr}");
    let out = dir.path().join("r.wav");
    let (code, stdout, stderr) = run(voxrelay().arg("say").arg(&truncated).arg("--manual").arg("--out").arg(&out));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(format!("{stdout}{stderr}").contains("cut off or damaged"), "a warning: {stdout}{stderr}");
    let (code, _, stderr) = run(voxrelay().args(["say", "assets/hello.wav", "--format", "mp3"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("mp3") && stderr.contains("opus"), "{stderr}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, _, stderr) =
        run(voxrelay().args(["say", "assets/hello.wav", "--url", &format!("ws://{nobody}/v1/voice")]));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains(&nobody.to_string()), "{stderr}");
}

#[test]
fn serve_answers_on_the_simulator_and_leaves_in_time() {
    let relay = Listening::start(voxrelay().args(["serve", "--listen", "127.0.0.1:0"]));
    assert!(relay.get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(relay.get("/readyz").ends_with("ready\n"));
    let dir = tempfile::tempdir().unwrap();
    let url = format!("ws://{}/v1/voice", relay.addr);
    let (code, stdout, stderr) =
        run(voxrelay().args(["say", "--text", "hello", "--url", &url, "--out"]).arg(dir.path().join("r.wav")));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let metrics = relay.get("/metrics");
    for line in [
        "voxrelay_calls_total{door=\"thin\"} 1",
        "voxrelay_calls_ended_total{close=\"1000\"} 1",
        "voxrelay_replies_total{status=\"completed\"} 1",
        "voxrelay_first_audio_seconds_count 1",
        "voxrelay_relay_added_seconds_count 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    let began = Instant::now();
    relay.signal("-TERM");
    let (code, stderr) = relay.end();
    assert_eq!(code, 0, "{stderr}");
    assert!(began.elapsed() < Duration::from_secs(5), "nobody was left to wait for");
    assert!(stderr.contains("embedded simulator"), "{stderr}");
    assert!(!stderr.contains("hello"), "no word of a call in the log: {stderr}");
}

#[test]
fn at_the_loudest_level_no_word_and_no_key_is_in_the_log() {
    let loud = |command: &mut Command| {
        let trace = "trace,tungstenite=trace,tungstenite::protocol=trace,tokio_tungstenite=trace";
        Listening::start(command.env("RUST_LOG", trace).env("OPENAI_API_KEY", "sk-marked-key"))
    };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "[agents.default]\ninstructions = \"marked instructions\"\n").unwrap();
    let sim = loud(voxrelay().args(["sim", "--listen", "127.0.0.1:0"]));
    let upstream = format!("http://{}/v1", sim.addr);
    let relay =
        loud(voxrelay().args(["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream, "--config"]).arg(&config));
    let url = format!("ws://{}/v1/voice", relay.addr);
    let mut say = voxrelay();
    say.args(["say", "--text", "marked text", "--token", "marked-token", "--url", &url, "--out"]);
    let (code, stdout, stderr) = run(say.arg(dir.path().join("r.wav")));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("It is sunny"), "{stdout}");
    for listening in [relay, sim] {
        listening.signal("-TERM");
        let (_, log) = listening.end();
        for word in ["marked", "sunny", "Bearer", "response.output_audio.delta", "\u{1b}["] {
            assert!(!log.contains(word), "{word:?} is in {log}");
        }
    }
}

#[test]
fn a_relay_whose_output_nobody_reads_serves_all_the_same() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut child =
        voxrelay().args(["serve", "--listen", &port]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let began = Instant::now();
    while TcpStream::connect(&port).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let relay = Listening { child, addr: port.parse().unwrap() };
    assert!(relay.get("/healthz").ends_with("ok\n"));
}

#[test]
fn the_simulator_runs_alone_and_check_dials_it() {
    let sim = Listening::start(voxrelay().args(["sim", "--listen", "127.0.0.1:0"]));
    let base = format!("http://{}/v1", sim.addr);
    let (code, stdout, stderr) =
        run(voxrelay().args(["check", "--dial"]).env("OPENAI_BASE_URL", &base).env("OPENAI_API_KEY", "sk-secret-1"));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("(redacted)") && !stdout.contains("sk-secret-1"), "{stdout}");
    assert!(stderr.contains("is up after"), "{stderr}");
    let (code, _, stderr) =
        run(voxrelay().args(["check", "--dial"]).env("OPENAI_BASE_URL", &base).env("OPENAI_API_KEY", "sk-bad-1"));
    assert_eq!(code, 1);
    assert!(stderr.contains("does not know the API key") && !stderr.contains("sk-bad-1"), "{stderr}");
    let relay = Listening::start(
        voxrelay().args(["serve", "--listen", "127.0.0.1:0", "--upstream", &base]).env("OPENAI_API_KEY", "sk-1"),
    );
    let dir = tempfile::tempdir().unwrap();
    let url = format!("ws://{}/v1/voice", relay.addr);
    let (code, stdout, stderr) =
        run(voxrelay().args(["say", "--text", "hello", "--url", &url, "--out"]).arg(dir.path().join("r.wav")));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn the_simulator_is_reached_through_a_bad_network() {
    let dir = tempfile::tempdir().unwrap();
    let chaos = dir.path().join("chaos.toml");
    std::fs::write(&chaos, "[[fault]]\nkind = \"refuse\"\nconnection = 1\n").unwrap();
    let sim = Listening::start(voxrelay().args(["sim", "--listen", "127.0.0.1:0", "--chaos"]).arg(&chaos));
    let mut first = TcpStream::connect(sim.addr).unwrap();
    let reset = first.read(&mut [0]).unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(sim.get("/v1/nothing").starts_with("HTTP/1.1 404"), "the second one reaches the simulator");
    sim.signal("-TERM");
    let addr = sim.addr;
    let (code, stderr) = sim.end();
    assert!(code == 0 && stderr.contains(&format!("base URL: http://{addr}/v1")), "{stderr}");
}

#[test]
fn broken_configuration_is_refused_with_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.toml");
    std::fs::write(&file, "[audio]\nchunk_ms = 1\n").unwrap();
    for command in ["serve", "check"] {
        let (code, _, stderr) = run(voxrelay().args([command, "--config"]).arg(&file));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("broken.toml:2: audio.chunk_ms: found 1; allowed: 20 to 200 ms"), "{stderr}");
    }
    let (code, _, stderr) = run(voxrelay().args(["serve", "--config", "nowhere.toml"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("nowhere.toml"), "{stderr}");
    let (code, _, stderr) = run(voxrelay().args(["serve", "--listen", "0.0.0.0:0"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("--insecure-open"), "{stderr}");
    let (code, _, stderr) = run(voxrelay().args(["serve", "--upstream", "http://example.com"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("--upstream: upstream.url: found `http://example.com`"), "{stderr}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, _, stderr) = run(voxrelay().args(["serve", "--listen", &taken.local_addr().unwrap().to_string()]));
    assert_eq!(code, 1);
    assert!(stderr.contains("cannot listen on"), "{stderr}");
    for file in ["--faults", "--chaos"] {
        let (code, _, stderr) = run(voxrelay().args(["sim", "--listen", "127.0.0.1:0", file, "Cargo.toml"]));
        assert!(code == 2 && stderr.contains(&format!("{file} Cargo.toml: ")), "{stderr}");
    }
}

#[test]
fn help_names_every_command() {
    let (code, stdout, _) = run(voxrelay().arg("--help"));
    assert_eq!(code, 0);
    for command in ["say", "talk", "serve", "sim", "check"] {
        assert!(stdout.contains(command), "{stdout}");
        assert_eq!(run(voxrelay().args([command, "--help"])).0, 0);
    }
    assert_eq!(run(voxrelay().arg("sing")).0, 2);
}

/// Processor time that a process has used, in ticks of 10 ms.
#[cfg(target_os = "linux")]
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // Behind the name, which may hold anything: user and system time are the 12th and 13th field.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|n| n.parse::<u64>().unwrap()).sum()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_only_plays_costs_next_to_nothing() {
    let relay = Listening::start(voxrelay().args(["serve", "--listen", "127.0.0.1:0"]));
    let mut client = crate::support::Client::connect(&format!("ws://{}/v1/voice?turns=manual", relay.addr)).await;
    for _ in 0..10 {
        client.audio(&[1; 48_000]).await;
    }
    client.json(r#"{"type":"commit"}"#).await;
    client.until("reply_started").await;
    // The service has said everything after a few seconds; the loudspeaker needs ten.
    let waiting = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before = ticks(relay.child.id());
        tokio::time::sleep(Duration::from_secs(2)).await;
        ticks(relay.child.id()) - before
    };
    let (ended, used) = tokio::join!(client.until("reply_ended"), waiting);
    assert!(used < 50, "{used} of 200 ticks were spent on waiting");
    assert_eq!(ended["status"], "completed");
}

/// The tenants' command, and a relay that runs meanwhile.
#[test]
fn tenants_are_made_shown_rotated_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let command = || {
        let mut command = voxrelay();
        command.env("XDG_DATA_HOME", dir.path());
        command
    };
    let tenant = |args: &[&str]| run(command().arg("tenant").args(args));
    let (code, _, stderr) = tenant(&["list"]);
    assert_eq!((code, stderr.contains("no tenants")), (0, true), "{stderr}");
    let (code, _, stderr) = tenant(&["rotate", "acme"]);
    assert_eq!((code, stderr.contains("`voxrelay tenant add` makes one")), (2, true), "{stderr}");
    let mut serve = command();
    let relay = Listening::start(serve.args(["serve", "--listen", "127.0.0.1:0"]));
    let say = |credential: &str| {
        let out = dir.path().join("reply.wav");
        let url = format!("ws://{}/v1/voice", relay.addr);
        let mut say = command();
        say.args(["say", "--text", "hello", "--url", &url, "--token", credential, "--out"]).arg(&out);
        run(&mut say)
    };
    assert_eq!(say("any").0, 0, "nobody is asked yet");
    let (code, first, stderr) = tenant(&["add", "acme", "--max-calls", "3", "--label", "backend"]);
    assert_eq!((code, stderr.contains("shown once")), (0, true), "{stderr}");
    let first = first.trim();
    let (_, listed, _) = tenant(&["list"]);
    assert!(listed.contains("acme") && listed.contains("max_calls = 3") && listed.contains("backend"), "{listed}");
    assert!(!listed.contains(first), "it is shown once");
    let eventually = |what: &str, so: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !so() {
            assert!(Instant::now() < end, "never came: {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    eventually("the door is shut", &|| relay.get("/v1/voice").starts_with("HTTP/1.1 401"));
    let (code, _, stderr) = say("wrong");
    assert!(code != 0 && stderr.contains("a valid credential is needed"), "{stderr}");
    assert_eq!(say(first).0, 0);
    let (code, second, stderr) = tenant(&["rotate", "acme", "--keep-s", "0"]);
    assert_eq!((code, stderr.contains("1 other key(s)")), (0, true), "{stderr}");
    eventually("the old key has ended", &|| say(first).0 != 0);
    assert_eq!(say(second.trim()).0, 0);
    let (code, _, stderr) = tenant(&["revoke", "acme", "--key", "nope"]);
    assert_eq!((code, stderr.contains("it has: backend")), (2, true), "{stderr}");
    let (code, stdout, _) = tenant(&["rotate-signing"]);
    assert_eq!((code, stdout.contains("are signed with key")), (0, true), "{stdout}");
    assert_eq!(tenant(&["revoke", "acme"]).0, 0);
    eventually("the new key is gone", &|| say(second.trim()).0 != 0);
    assert!(relay.get("/v1/voice").starts_with("HTTP/1.1 401"), "the last tenant does not open the door");
    relay.signal("-TERM");
    assert_eq!(relay.end().0, 0);
    // Also after a restart; and a store that was named must be there.
    let mut again = command();
    let relay = Listening::start(again.args(["serve", "--listen", "127.0.0.1:0"]));
    assert!(relay.get("/v1/voice").starts_with("HTTP/1.1 401"));
    drop(relay);
    let absent = dir.path().join("absent.db");
    let (code, _, stderr) = run(command().args(["serve", "--listen", "127.0.0.1:0", "--store"]).arg(&absent));
    assert_eq!((code, stderr.contains("absent.db` is not there")), (2, true), "{stderr}");
}

#[test]
fn a_key_for_the_file_is_printed_with_its_hash() {
    let (code, key, hash) = run(voxrelay().args(["tenant", "key"]));
    assert_eq!(code, 0);
    let want = voxrelay::admit::key::hash(key.trim()).to_string();
    assert_eq!(hash.trim(), format!("hash = \"{want}\""));
}

#[test]
fn check_says_which_limit_stands_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults.toml");
    std::fs::write(
        &faults,
        "[[fault]]\nkind = \"refuse\"\ndoor = \"mint\"\nstatus = 429\nretry_after_s = 3\ntimes = 1\n",
    )
    .unwrap();
    let mut sim = voxrelay();
    let sim = Listening::start(sim.args(["sim", "--listen", "127.0.0.1:0", "--faults"]).arg(&faults));
    let check = |key: &str, args: &[&str]| {
        let mut check = voxrelay();
        check.env("OPENAI_BASE_URL", format!("http://{}/v1", sim.addr)).env("OPENAI_API_KEY", key);
        run(check.args(["check", "--upstream"]).args(args))
    };
    let (code, stdout, _) = check("sk-good", &[]);
    assert_eq!(code, 1, "{stdout}");
    assert!(
        stdout.contains("mint     refused: ") && stdout.contains("limit    mint (it asks for 3000 ms): "),
        "{stdout}"
    );
    assert!(stdout.contains("connect  session sess_"), "{stdout}");
    let (code, stdout, _) = check("sk-good", &["--spend"]);
    assert_eq!(code, 0, "{stdout}");
    for part in
        ["mint     a client secret", "reply    answered, ", "bucket   requests: ", "bucket   tokens: ", "verdict "]
    {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, _) = check("sk-no-credit", &[]);
    assert!(code == 1 && stdout.contains("limit    quota: ") && stdout.contains("no wait helps"), "{stdout}");
    let (code, stdout, _) = check("sk-bad-1234567", &[]);
    assert!(code == 1 && stdout.contains("it does not know the API key") && !stdout.contains("sk-bad"), "{stdout}");
    let (code, _, stderr) = check("sk-good", &["--upstream", "second"]);
    assert_eq!(code, 2, "{stderr}");
    let (code, _, stderr) = run(voxrelay().args(["check", "--upstream"]));
    assert!(code == 2 && stderr.contains("there is no service to ask"), "{stderr}");
}
