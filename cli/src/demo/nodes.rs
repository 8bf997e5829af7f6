//! The processes of a demo: started from their files, watched, started again, stopped.
//!
//! A node stops when its standard input ends. The demo holds the other end, so nodes stop with it even where it has no
//! time to say so.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::layout::Layout;

/// Pause before a node that ended is started again, as in the systemd units of `deploy/`.
pub(super) const RESTART_AFTER: Duration = Duration::from_secs(2);
/// Longest graceful stop of all nodes; those left are killed.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How much of a log is shown: lines, and bytes that are looked at for them.
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 16 << 10;
/// Threads of Mesa's CPU adapter in each worker.
const CPU_ADAPTER_THREADS: &str = "LP_NUM_THREADS";

/// The processes.
pub(super) struct Nodes {
    program: PathBuf,
    /// Threads of each worker's CPU adapter; nothing where the user has said it.
    threads: Option<usize>,
    nodes: Vec<Node>,
    ending: mpsc::Sender<(usize, String)>,
    ends: mpsc::Receiver<(usize, String)>,
    kill: CancellationToken,
}

struct Node {
    role: &'static str,
    name: String,
    config: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

/// The process of a node.
struct Running {
    /// Ends it when it is dropped.
    stdin: Option<ChildStdin>,
    watch: JoinHandle<()>,
}

/// A node that ended by itself.
#[derive(Debug)]
pub(super) struct Ended {
    node: usize,
    name: String,
    how: String,
}

impl Ended {
    /// Which node, for [`Nodes::start_again`].
    pub(super) fn node(&self) -> usize {
        self.node
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended ({})", self.name, self.how)
    }
}

impl Nodes {
    /// Starts a process for every node. If one cannot be started, those started before stop.
    pub(super) fn start(layout: &Layout) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file cannot be found")?;
        let coordinators = layout.coordinators.iter();
        let coordinators = coordinators.map(|node| ("coordinator", &node.name, &node.config));
        let workers = layout
            .workers
            .iter()
            .map(|node| ("worker", &node.name, &node.config));
        let node = |(role, name, config): (&'static str, &String, &PathBuf)| Node {
            role,
            name: name.clone(),
            config: config.clone(),
            log: layout.dir.join(format!("{name}.log")),
            running: None,
        };
        let all: Vec<_> = coordinators.chain(workers).map(node).collect();
        let (ending, ends) = mpsc::channel(all.len());
        let mut nodes = Self {
            program,
            threads: cpu_adapter_threads(layout.workers.len()),
            nodes: all,
            ending,
            ends,
            kill: CancellationToken::new(),
        };
        for index in 0..nodes.nodes.len() {
            nodes.start_again(index)?;
        }
        Ok(nodes)
    }

    /// Starts a node's process from its file, with the id and the data directory that the file names.
    pub(super) fn start_again(&mut self, index: usize) -> Result<()> {
        let Some(node) = self.nodes.get_mut(index) else {
            return Ok(());
        };
        let mut command = Command::new(&self.program);
        command
            .arg(node.role)
            .arg("--config")
            .arg(&node.config)
            .arg("--until-stdin-closes");
        if let Some(threads) = self.threads {
            command.env(CPU_ADAPTER_THREADS, threads.to_string());
        }
        let child = spawn(command, &node.log);
        let mut child = child.with_context(|| format!("{} cannot be started", node.name))?;
        let stdin = child.stdin.take();
        let watch = watch(child, index, self.ending.clone(), self.kill.clone());
        node.running = Some(Running {
            stdin,
            watch: tokio::spawn(watch),
        });
        Ok(())
    }

    /// Whether a node still runs, as far as is known.
    pub(super) fn any_left(&self) -> bool {
        self.nodes.iter().any(|node| node.running.is_some())
    }

    /// Waits until a node ends by itself; for ever, once all have.
    pub(super) async fn next_end(&mut self) -> Ended {
        loop {
            let Some((index, how)) = self.ends.recv().await else {
                std::future::pending::<()>().await;
                continue;
            };
            if let Some(node) = self.nodes.get_mut(index) {
                node.running = None;
                let name = node.name.clone();
                return Ended {
                    node: index,
                    name,
                    how,
                };
            }
        }
    }

    /// Stops all nodes: gracefully, then within the deadline by force.
    pub(super) async fn stop(&mut self) {
        let mut running: Vec<_> = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.running.take())
            .collect();
        for one in &mut running {
            one.stdin = None;
        }
        let all = async {
            for one in &mut running {
                // A watch does not panic.
                let _ = (&mut one.watch).await;
            }
        };
        if tokio::time::timeout(STOP_DEADLINE, all).await.is_err() {
            eprintln!("nodes that did not stop within {STOP_DEADLINE:?} are killed");
            self.kill.cancel();
            for one in &mut running {
                if !one.watch.is_finished() {
                    let _ = tokio::time::timeout(STOP_DEADLINE, &mut one.watch).await;
                }
            }
        }
    }

    /// Shows the ends of the logs of the nodes that ended, or of all if none did.
    pub(super) fn print_tails(&mut self) {
        while let Ok((index, _)) = self.ends.try_recv() {
            if let Some(node) = self.nodes.get_mut(index) {
                node.running = None;
            }
        }
        let any_ended = self.nodes.iter().any(|node| node.running.is_none());
        for node in &self.nodes {
            if any_ended && node.running.is_some() {
                continue;
            }
            eprintln!("--- the end of {}:", node.log.display());
            match tail(&node.log) {
                Ok(lines) => eprintln!("{lines}"),
                Err(error) => eprintln!("it cannot be read: {error}"),
            }
        }
    }
}

fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    let log_file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    command
        .stdin(Stdio::piped())
        .stdout(log_file.try_clone()?)
        .stderr(log_file)
        // The terminal's interrupt is for the demo, which stops its nodes.
        .process_group(0)
        .kill_on_drop(true);
    Ok(command.spawn()?)
}

/// Waits for a process and tells how it ended.
async fn watch(mut child: Child, index: usize, ends: mpsc::Sender<(usize, String)>, kill: CancellationToken) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = kill.cancelled() => {
            // It may have ended meanwhile.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let how = status.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string());
    // Nobody listens any more once the demo stops.
    let _ = ends.try_send((index, how));
}

/// What each worker's CPU adapter may use of the machine; nothing where the user has said it.
fn cpu_adapter_threads(workers: usize) -> Option<usize> {
    if std::env::var_os(CPU_ADAPTER_THREADS).is_some() {
        return None;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Some((cores / workers.max(1)).max(1))
}

/// The last lines of a file.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(tail(file.path()).expect("reads"), "");
        let lines: Vec<String> = (0..5000).map(|line| format!("line {line}")).collect();
        std::fs::write(file.path(), lines.join("\n")).expect("writes");
        let shown = tail(file.path()).expect("reads");
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("line 4999"));
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let child = spawn(command, log.path()).expect("starts");
        let (sender, mut ends) = mpsc::channel(1);
        watch(child, 7, sender, CancellationToken::new()).await;
        assert_eq!(ends.recv().await, Some((7, "exit status: 3".to_owned())));
        assert_eq!(tail(log.path()).expect("reads"), "out\nerr");
    }

    #[tokio::test]
    async fn a_process_that_does_not_stop_is_killed() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = Command::new("sleep");
        command.arg("600");
        let child = spawn(command, log.path()).expect("starts");
        let (sender, mut ends) = mpsc::channel(1);
        let kill = CancellationToken::new();
        kill.cancel();
        let watched = watch(child, 0, sender, kill);
        tokio::time::timeout(Duration::from_secs(60), watched)
            .await
            .expect("it was killed");
        assert!(ends.recv().await.is_some_and(|(_, how)| how.contains('9')));
    }
}
