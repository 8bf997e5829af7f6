//! Processes of the program: nodes that are started, watched and killed, and commands that run to their end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How much of a log is shown when a test fails.
const TAIL_LINES: usize = 40;

/// The directory of everything that is built, and the folder of it that this test is in.
pub fn target() -> (PathBuf, PathBuf) {
    let own = std::env::current_exe().expect("a test has a file");
    // target/release/deps/main-0123
    let mut above = own.ancestors().skip(2);
    let profile = above.next().expect("a test lies below target").to_owned();
    let target = above.next().expect("a test lies below target").to_owned();
    (target, profile)
}

/// The program, built beside this test.
pub fn program() -> PathBuf {
    let (_, profile) = target();
    let program = profile.join("tramontane");
    assert!(
        program.is_file(),
        "{} is missing: run `cargo build --release -p tramontane` first",
        program.display()
    );
    program
}

/// A coordinator or a worker.
#[derive(Debug)]
pub struct Node {
    /// Its name in logs and status.
    pub name: String,
    log: PathBuf,
    /// Its standard input ends with this test.
    child: Child,
}

impl Node {
    /// Starts `tramontane ROLE --config CONFIG`, its output appended to a log beside the file. On machines without a
    /// GPU each device computes on so many threads. `what` is to be logged, as JSON; without it, what the program logs by
    /// itself, for people.
    pub fn start(role: &str, name: &str, config: &Path, threads: usize, what: Option<&str>) -> Self {
        let log = config.with_extension("log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log");
        let mut command = Command::new(program());
        command
            .args([role, "--until-stdin-closes", "--config"])
            .arg(config)
            .env("LP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output);
        if let Some(what) = what {
            command.args(["--log-format", "json"]).env("TRAMONTANE_LOG", what);
        }
        Self {
            name: name.to_owned(),
            log,
            child: command.spawn().expect("the program starts"),
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// All that it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it said, the last lines.
    pub fn tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of {}'s log:\n{}", self.name, self.tail());
        }
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end; it is killed, and the test fails, if that does not come `within`.
pub async fn run(command: Command, within: Duration) -> Ran {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(within, output)
        .await
        .unwrap_or_else(|_| panic!("{shown} did not end within {within:?}"))
        .unwrap_or_else(|error| panic!("{shown} cannot be started: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Runs `tramontane` with arguments.
pub async fn tramontane<S: AsRef<std::ffi::OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    within: Duration,
) -> Ran {
    let mut command = Command::new(program());
    command.args(arguments);
    run(command, within).await
}

/// Sends a signal, by its name without `SIG`.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()])
        .status();
    let sent = sent.expect("a shell");
    assert!(sent.success(), "process {pid} cannot be sent SIG{name}: {sent}");
}

/// Ends a process as a power cut would.
pub fn kill(pid: u32) {
    signal(pid, "KILL");
}

/// Whether a process runs; one that ended and was not waited for does not.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some(None | Some('Z' | 'X')))
}

/// Bytes of memory that a process has in use.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
