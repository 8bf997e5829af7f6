//! Waiting until a demo's cluster serves, and showing what it waits for.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget};
use tokio::time::Instant;

use crate::client::{Client, NotReady};
use crate::view::Status;

/// How often the cluster is looked at.
const INTERVAL: Duration = Duration::from_millis(150);
/// How often the spinner turns.
const SPIN: Duration = Duration::from_millis(100);
/// How long a cluster that everybody has joined may say that something is missing: no more will come.
const HOPELESS_AFTER: Duration = Duration::from_secs(20);
/// How long the status may lag behind readiness.
const STATUS_LAG: Duration = Duration::from_secs(5);

/// Who has to be there.
pub(super) struct Everyone<'a> {
    pub(super) clients: &'a [Client],
    pub(super) workers: usize,
    /// Replicas that were asked for.
    pub(super) replicas: Option<u32>,
    pub(super) within: Duration,
}

impl Everyone<'_> {
    /// Waits until every coordinator answers requests; the cluster's status then.
    pub(super) async fn wait(&self) -> Result<Status> {
        let progress = Progress::start();
        let deadline = Instant::now() + self.within;
        let mut hopeless: Option<(String, Instant)> = None;
        loop {
            let status = self.status().await;
            let why = match (self.not_ready().await, status.as_ref()) {
                (None, Some(status)) => match self.replicas_not_ready(status) {
                    None => break,
                    Some(why) => why,
                },
                (None, None) => "the leader does not answer yet".to_owned(),
                (Some(NotReady::Waits(reason)), _) => reason,
                (Some(NotReady::Silent(_)), _) => format!("starting {} coordinators", self.clients.len()),
            };
            let said = self.describe(status.as_ref(), &why);
            progress.say(&said);
            match self.missing(status.as_ref()) {
                Some(missing) => {
                    let since = match hopeless.take() {
                        Some((before, since)) if before == missing => since,
                        Some(_) | None => Instant::now(),
                    };
                    if since.elapsed() > HOPELESS_AFTER {
                        bail!("the cluster cannot serve: {missing}");
                    }
                    hopeless = Some((missing, since));
                }
                None => hopeless = None,
            }
            if Instant::now() > deadline {
                bail!(
                    "the cluster was not ready within {} s: {said}",
                    self.within.as_secs()
                );
            }
            tokio::time::sleep(INTERVAL).await;
        }
        self.with_all_nodes().await
    }

    async fn not_ready(&self) -> Option<NotReady> {
        for client in self.clients {
            if let Err(why) = client.readiness().await {
                return Some(why);
            }
        }
        None
    }

    /// What is waited for once one replica serves: the others that load, and those that were asked for.
    fn replicas_not_ready(&self, status: &Status) -> Option<String> {
        let serving = status.replicas_serving;
        let wanted = self.replicas.unwrap_or(1);
        let loads = status.replicas.iter().any(|replica| replica.phase == "loading");
        (serving < wanted || loads).then(|| {
            let why = status
                .replicas_short
                .as_deref()
                .unwrap_or("more are being placed");
            format!(
                "{serving} of {} replicas serve: {why}",
                wanted.max(serving + u32::from(loads))
            )
        })
    }

    async fn status(&self) -> Option<Status> {
        let text = self.clients.first()?.get("/cluster/status").await.ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The status, once it has all nodes: they say of themselves that they are there a moment after they are.
    async fn with_all_nodes(&self) -> Result<Status> {
        let everybody = self.clients.len() + self.workers;
        let deadline = Instant::now() + STATUS_LAG;
        loop {
            let status = self.status().await;
            let is_late = Instant::now() > deadline;
            match status {
                Some(status) if is_late || status.nodes.len() >= everybody => return Ok(status),
                None if is_late => bail!("the cluster is ready but does not tell its status"),
                Some(_) | None => tokio::time::sleep(INTERVAL).await,
            }
        }
    }

    /// What is missing although everybody is there and nothing is being placed.
    fn missing(&self, status: Option<&Status>) -> Option<String> {
        let status = status?;
        let is_placing = status.replicas.iter().any(|replica| replica.phase == "loading");
        let everybody = joined(status) >= self.workers;
        let missing = status.missing.as_ref().or(status.replicas_short.as_ref());
        missing.cloned().filter(|_| everybody && !is_placing)
    }

    fn describe(&self, status: Option<&Status>, why: &str) -> String {
        let Some(status) = status else {
            return why.to_owned();
        };
        let joined = joined(status);
        if joined < self.workers {
            return format!("{joined} of {} workers have joined", self.workers);
        }
        let loading = status
            .replicas
            .iter()
            .find_map(|replica| replica.loading.as_ref());
        match loading {
            Some(loading) if loading.loaded_bytes < loading.total_bytes => {
                format!("loading weights: {loading}")
            }
            Some(_) | None => why.to_owned(),
        }
    }
}

fn joined(status: &Status) -> usize {
    let workers = status.nodes.iter().filter(|node| node.role == "worker");
    workers.filter(|node| node.state == "joined").count()
}

/// A spinner on a terminal, lines elsewhere.
struct Progress {
    spinner: ProgressBar,
    is_terminal: bool,
    last: std::cell::RefCell<String>,
}

impl Progress {
    fn start() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let spinner = ProgressBar::new_spinner();
        if is_terminal {
            spinner.enable_steady_tick(SPIN);
        } else {
            spinner.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self {
            spinner,
            is_terminal,
            last: std::cell::RefCell::default(),
        }
    }

    fn say(&self, text: &str) {
        if self.last.replace(text.to_owned()) == text {
            return;
        }
        if self.is_terminal {
            self.spinner.set_message(text.to_owned());
        } else {
            eprintln!("{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.spinner.finish_and_clear();
    }
}
