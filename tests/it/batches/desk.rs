//! A folder of texts, and `voxrelay extract --batch-api` over them: a real process.
use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use tokio::{task::spawn_blocking, time};

use crate::{commands::voxrelay, support::PATIENCE};

/// Where a job is done.
pub(super) struct Desk {
    pub(super) dir: tempfile::TempDir,
    /// The relay's base.
    pub(super) url: String,
    pub(super) key: String,
}

impl Desk {
    /// With so many texts: `This is call 0, about an invoice.` and so on.
    pub(super) fn new(texts: usize) -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap(), url: String::new(), key: String::new() };
        std::fs::write(desk.at("schema.jsonc"), "{\"topic\": \"an invoice\", \"urgent\": true}").unwrap();
        std::fs::create_dir(desk.at("texts")).unwrap();
        for n in 0..texts {
            let text = format!("This is call {n}, about an invoice.");
            std::fs::write(desk.at("texts").join(format!("{n}.txt")), text).unwrap();
        }
        desk
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn command(&self, more: &[&str]) -> Command {
        let mut command = voxrelay();
        command.arg("extract").args(["--extract", "schema.jsonc", "--out", "out.csv", "--batch-look", "1"]).args(more);
        command.args(["--progress", "lines", "--url", &self.url, "--extract-model", "fast"]);
        command.env("VOXRELAY_TOKEN", &self.key).current_dir(self.dir.path());
        command
    }

    /// To its end: exit code, and what it says.
    pub(super) async fn run(&self, more: &[&str]) -> (i32, String) {
        let mut command = self.command(more);
        said(spawn_blocking(move || command.output().unwrap())).await
    }

    pub(super) fn start(&self, more: &[&str]) -> Child {
        self.command(more).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    /// Rows of the table; 0: there is none.
    pub(super) fn table(&self) -> usize {
        self.rows().len()
    }

    pub(super) fn rows(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.at("out.csv")).unwrap_or_default();
        text.lines().skip(1).map(str::to_owned).collect()
    }
}

/// As with Ctrl-C: exit code, and what it says.
pub(super) async fn interrupt(child: Child) -> (i32, String) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    said(spawn_blocking(move || child.wait_with_output().unwrap())).await
}

async fn said(ended: tokio::task::JoinHandle<Output>) -> (i32, String) {
    let output = time::timeout(PATIENCE, ended).await.expect("the command has not ended").unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

pub(super) fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

pub(super) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let end = time::Instant::now() + PATIENCE;
    while !so().await {
        assert!(time::Instant::now() < end, "never came: {what}");
        time::sleep(Duration::from_millis(20)).await;
    }
}
