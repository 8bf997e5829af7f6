//! What happens to the cluster meanwhile: a process is killed some time after each moment at which all is well again,
//! and started again with its name and its files.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::request::Numbers;
use crate::cluster::{Cluster, READY_WITHIN};
use crate::wait::{need, until};

/// How long all is well before the next one is killed.
const WELL_FOR: Duration = Duration::from_secs(5);
/// How long one that was killed stays dead, as its supervisor has it.
const DEAD_FOR: Duration = Duration::from_secs(2);

/// Whom it happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The coordinator that led.
    Leader(usize),
    /// A worker.
    Worker(usize),
}

/// A kill.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Who was killed.
    pub victim: Victim,
    /// When, from the beginning of the run.
    pub at: Duration,
    /// How long it took until all was well again, the two seconds in which the process was dead included; unknown for
    /// the last one.
    pub well_after: Option<Duration>,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.victim {
            Victim::Leader(number) => format!("coordinator-{number}, which led"),
            Victim::Worker(number) => format!("worker-{number}"),
        };
        write!(f, "{:6.1} s: {who}", self.at.as_secs_f64())?;
        match self.well_after {
            Some(after) => write!(f, "; all was well again after {:.1} s", after.as_secs_f64()),
            None => Ok(()),
        }
    }
}

/// What both sides of a run know of each other.
#[derive(Debug, Default)]
pub struct Shared {
    /// How many were killed.
    pub kills: AtomicUsize,
    /// Whether every request has ended.
    pub over: AtomicBool,
}

/// Kills until the load is over: the leader at every `leader_every`th time, else a worker.
pub async fn kill(
    cluster: &mut Cluster,
    numbers: &mut Numbers,
    leader_every: usize,
    shared: &Shared,
) -> Vec<Kill> {
    let started = Instant::now();
    let workers = cluster.plan.workers.len();
    let mut kills: Vec<Kill> = Vec::new();
    loop {
        until_well(cluster).await;
        if let Some(last) = kills.last_mut() {
            last.well_after = Some(started.elapsed() - last.at);
        }
        let well_since = Instant::now();
        while well_since.elapsed() < WELL_FOR {
            if shared.over.load(Ordering::Relaxed) {
                return kills;
            }
            sleep(WELL_FOR / 50).await;
        }
        let victim = match (kills.len() + 1) % leader_every {
            0 => Victim::Leader(cluster.leader().await),
            _ => Victim::Worker(1 + numbers.below(workers)),
        };
        let kill = Kill {
            victim,
            at: started.elapsed(),
            well_after: None,
        };
        println!("{kill}");
        match victim {
            Victim::Leader(number) => cluster.kill_coordinator(number),
            Victim::Worker(number) => cluster.kill_worker(number),
        }
        kills.push(kill);
        shared.kills.fetch_add(1, Ordering::Relaxed);
        sleep(DEAD_FOR).await;
        match victim {
            Victim::Leader(number) => cluster.start_coordinator(number),
            Victim::Worker(number) => cluster.start_worker(number),
        }
    }
}

/// Waits until every coordinator serves, and every worker is a member.
pub async fn until_well(cluster: &mut Cluster) {
    cluster.until_ready().await;
    let workers = cluster.plan.workers.len();
    until("every worker as a member", READY_WITHIN, async || {
        cluster.check_alive();
        let status = cluster.status().await?;
        status.serving()?;
        let joined = status
            .nodes
            .iter()
            .filter(|node| node.role == "worker" && node.state == "joined");
        let joined = joined.count();
        need(joined == workers, || {
            format!("{joined} of {workers} workers have joined")
        })
    })
    .await;
}
