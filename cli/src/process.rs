//! `tramontane coordinator` and `tramontane worker`: one node, from its configuration file until it is told to stop.
//!
//! A process is told by SIGINT or SIGTERM, or, as a child of a demo, by the end of its standard input: that comes
//! however its parent ends. It stops gracefully within a deadline; a second signal ends it at once. A worker that is told
//! by a signal leaves the cluster first.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tramontane_coordinator::config::CoordinatorConfig;
use tramontane_proto::net::Identity;
use tramontane_worker::config::WorkerConfig;

use crate::client::runtime;
use crate::logging::LogArgs;
use crate::{node, telemetry};

/// Longest graceful stop, beside the graces that a node is configured with.
const STOP_DEADLINE: Duration = Duration::from_secs(25);

/// How a process is told to stop.
#[derive(Clone, Default)]
pub(crate) struct Told {
    /// It is to stop.
    pub(crate) stop: CancellationToken,
    /// And nobody is left to wait for it.
    pub(crate) at_once: CancellationToken,
}

/// How a node is started.
#[derive(Args)]
pub(crate) struct NodeArgs {
    /// The node's configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    log: LogArgs,
    /// Stop also when the standard input ends.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

pub(crate) fn coordinator(args: &NodeArgs) -> Result<()> {
    args.log.start()?;
    let config = CoordinatorConfig::read(&args.config)?;
    let graces = config.requests.shutdown_notice() + config.requests.shutdown_grace();
    run(args.until_stdin_closes, graces, async move |told| {
        let metrics = telemetry::install()?;
        node::coordinator(config, metrics, told.stop, |_| {}).await
    })
}

pub(crate) fn worker(args: &NodeArgs) -> Result<()> {
    args.log.start()?;
    let config = WorkerConfig::read(&args.config)?;
    run(args.until_stdin_closes, config.drain_grace, async move |told| {
        let metrics = telemetry::install()?;
        if let Some(address) = config.metrics_listen {
            let identity = Identity::from_config(config.tls.as_ref())?;
            telemetry::serve(address, &identity, metrics, told.at_once.clone()).await?;
        }
        let name = config.name.clone();
        node::worker(config, told, move |address| {
            tracing::info!(%name, %address, "worker listening");
        })
        .await
    })
}

/// Runs `work` on a runtime until it ends; once the process is told to stop, `work` is told and waited for, for as long
/// as its graces allow.
pub(crate) fn run<F>(until_stdin_closes: bool, graces: Duration, work: impl FnOnce(Told) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let told = Told::default();
        let mut signals = Signals::listen()?;
        let stdin = until_stdin_closes.then(stdin_end).transpose()?;
        let work = work(told.clone());
        tokio::pin!(work);
        tokio::select! {
            outcome = &mut work => return outcome,
            () = signals.next() => tracing::info!("told to stop by a signal"),
            () = ended(stdin) => {
                tracing::info!("told to stop by the end of the standard input");
                told.at_once.cancel();
            }
        }
        told.stop.cancel();
        let deadline = STOP_DEADLINE + graces;
        tokio::select! {
            outcome = tokio::time::timeout(deadline, work) => {
                outcome.with_context(|| format!("it did not stop within {deadline:?}"))?
            }
            () = signals.next() => bail!("stopped at once by a second signal"),
        }
    });
    // What still blocks a thread ends with the process.
    runtime.shutdown_background();
    outcome
}

/// What tells a process to stop.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on the signals do not end the process by themselves. Must be called within a runtime.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened for");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ends with the standard input, which a thread of its own reads and throws away.
fn stdin_end() -> Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            // An input that cannot be read has ended too.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            drop(sender);
        })
        .context("a thread cannot be started")?;
    Ok(receiver)
}

async fn ended(stdin: Option<oneshot::Receiver<()>>) {
    match stdin {
        Some(end) => {
            let _ = end.await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A folder with an example of `deploy/` and the token that it names.
    fn example(name: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let config = dir.path().join(name);
        std::fs::copy(examples.join(name), &config).expect("an example");
        std::fs::write(dir.path().join("join-token"), "0123456789abcdef").expect("writes");
        (dir, config)
    }

    #[test]
    fn the_examples_are_valid() {
        let (dir, path) = example("coordinator.toml");
        let config = CoordinatorConfig::read(&path).expect("valid");
        assert_eq!(config.initial_members.len(), 3);
        assert_eq!(
            config.tls.expect("certificates").ca,
            dir.path().join("tls/ca.pem")
        );
        let (_dir, path) = example("worker.toml");
        let config = WorkerConfig::read(&path).expect("valid");
        assert_eq!(config.name.as_str(), "worker-1");
        assert_eq!(config.devices.len(), 1);
    }

    #[test]
    fn work_that_ends_ends_the_run() {
        run(false, Duration::ZERO, |_| async { Ok(()) }).expect("it ended well");
        let error = run(false, Duration::ZERO, |_| async { bail!("broken") }).expect_err("it failed");
        assert_eq!(error.to_string(), "broken");
    }
}
