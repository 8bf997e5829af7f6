//! `GET /metrics`: everything the process counts, in Prometheus' text format.
//!
//! What the replicas' schedulers are doing is asked of the leader at that moment, so that every coordinator shows it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use metrics::{describe_gauge, gauge};
use serde::Deserialize;
use tokio::time::timeout;

use super::Api;
use super::table::Routes;

/// Version 0.0.4 of the text exposition format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Longest wait for the leader; later the last known numbers are shown.
const LEADER_DEADLINE: Duration = Duration::from_secs(1);

const RUNNING: &str = "tramontane_sequences_running";
const WAITING: &str = "tramontane_sequences_waiting";
const BLOCKS_USED: &str = "tramontane_kv_blocks_used";
const BLOCKS_TOTAL: &str = "tramontane_kv_blocks_total";
const WORKERS: &str = "tramontane_workers";
const DRAINING: &str = "tramontane_workers_draining";
const HELD: &str = "tramontane_device_held_bytes";
const PLANNED: &str = "tramontane_device_planned_bytes";
const LOADED: &str = "tramontane_device_loaded_bytes";
const LOAD: &str = "tramontane_device_load_bytes";
const LOAD_RATE: &str = "tramontane_device_load_bytes_per_second";
const LOAD_LEFT: &str = "tramontane_device_load_seconds_left";
const STANDBY: &str = "tramontane_standby_bytes";
const GENERATION: &str = "tramontane_replica_generation";
const WORST_LOSS: &str = "tramontane_replica_worst_loss_bytes";

pub(super) fn routes() -> Routes {
    Routes::new().get("/metrics", show)
}

/// Describes the cluster's metrics to the recorder.
pub(super) fn describe() {
    describe_gauge!(RUNNING, "Sequences that hold cache blocks, by replica");
    describe_gauge!(WAITING, "Sequences that wait for admission, by replica");
    describe_gauge!(BLOCKS_USED, "Blocks of the key-value cache in use, by replica");
    describe_gauge!(BLOCKS_TOTAL, "Blocks of the key-value cache, by replica");
    describe_gauge!(WORKERS, "Workers that are members");
    describe_gauge!(DRAINING, "Workers that drain or have drained and are still there");
    describe_gauge!(HELD, "Bytes allocated on a device");
    describe_gauge!(PLANNED, "Bytes that the planner counts for a device");
    describe_gauge!(
        LOADED,
        "Bytes of its weights that a device that loads has; 0 if it does not load"
    );
    describe_gauge!(
        LOAD,
        "Bytes of weights that a device that loads will have; 0 if it does not load"
    );
    describe_gauge!(
        LOAD_RATE,
        "Bytes that a device that loads read in a second, in the mean since it began; 0 if it does not load"
    );
    describe_gauge!(
        LOAD_LEFT,
        "Seconds until a device that loads has its weights, at that rate; 0 if it does not load or has read nothing yet"
    );
    describe_gauge!(
        STANDBY,
        "Bytes of copies of weights that a device keeps for others"
    );
    describe_gauge!(GENERATION, "Last generation of a replica");
    describe_gauge!(
        WORST_LOSS,
        "Bytes of weights that a replica would have to read after the loss of the worker whose loss costs the most; 0 if \
         none would have to be, or if it does not serve"
    );
}

async fn show(State(api): State<Arc<Api>>) -> impl IntoResponse {
    if let Ok(Ok(status)) = timeout(LEADER_DEADLINE, api.cluster.status()).await {
        match serde_json::from_slice::<Cluster>(&status) {
            Ok(cluster) => cluster.record(&api.shown),
            Err(error) => tracing::debug!(%error, "the leader's status is of another version"),
        }
    }
    ([(CONTENT_TYPE, TEXT_FORMAT)], api.metrics.render())
}

/// What of the cluster's status is counted.
#[derive(Deserialize)]
struct Cluster {
    nodes: Vec<Node>,
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    role: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    index: u32,
    held_bytes: u64,
    #[serde(default)]
    planned_bytes: u64,
    #[serde(default)]
    standby_bytes: u64,
    loading: Option<Loading>,
}

#[derive(Deserialize, Default)]
struct Loading {
    loaded_bytes: u64,
    total_bytes: u64,
    #[serde(default)]
    bytes_per_second: u64,
    seconds_left: Option<u64>,
}

#[derive(Deserialize)]
struct Replica {
    id: u64,
    generation: u64,
    load: Option<Load>,
    worst_loss: Option<Loss>,
}

#[derive(Deserialize)]
struct Loss {
    read_bytes: u64,
}

#[derive(Deserialize, Default)]
struct Load {
    running: u32,
    waiting: u32,
    kv_blocks_used: u32,
    kv_blocks_total: u32,
}

/// Replicas that were shown: the numbers of one that is no more go to zero, they do not stay.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<BTreeSet<u64>>);

impl Shown {
    /// Replaces them; gives those that are no more.
    fn replace(&self, replicas: BTreeSet<u64>) -> BTreeSet<u64> {
        // Nothing panics while the lock is held.
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = shown.difference(&replicas).copied().collect();
        *shown = replicas;
        gone
    }
}

fn show_load(labels: &[(&'static str, String)], load: &Load) {
    gauge!(RUNNING, labels).set(f64::from(load.running));
    gauge!(WAITING, labels).set(f64::from(load.waiting));
    gauge!(BLOCKS_USED, labels).set(f64::from(load.kv_blocks_used));
    gauge!(BLOCKS_TOTAL, labels).set(f64::from(load.kv_blocks_total));
}

fn show_loading(labels: &[(&'static str, String)], loading: &Loading) {
    gauge!(LOADED, labels).set(loading.loaded_bytes as f64);
    gauge!(LOAD, labels).set(loading.total_bytes as f64);
    gauge!(LOAD_RATE, labels).set(loading.bytes_per_second as f64);
    gauge!(LOAD_LEFT, labels).set(loading.seconds_left.unwrap_or(0) as f64);
}

impl Cluster {
    fn record(self, shown: &Shown) {
        let replicas = self.replicas.iter().map(|replica| replica.id).collect();
        for gone in shown.replace(replicas) {
            let labels = [("replica", gone.to_string())];
            show_load(&labels, &Load::default());
        }
        let workers = self.nodes.iter().filter(|node| node.role == "worker");
        gauge!(WORKERS).set(workers.count() as f64);
        let draining = self
            .nodes
            .iter()
            .filter(|node| matches!(node.state.as_str(), "draining" | "drained"));
        gauge!(DRAINING).set(draining.count() as f64);
        for node in self.nodes {
            for device in node.devices {
                let labels = [("worker", node.id.clone()), ("device", device.index.to_string())];
                gauge!(HELD, &labels).set(device.held_bytes as f64);
                gauge!(PLANNED, &labels).set(device.planned_bytes as f64);
                gauge!(STANDBY, &labels).set(device.standby_bytes as f64);
                show_loading(&labels, &device.loading.unwrap_or_default());
            }
        }
        for replica in self.replicas {
            let labels = [("replica", replica.id.to_string())];
            // A replica that does not serve runs nothing.
            let load = replica.load.unwrap_or_default();
            let worst = replica.worst_loss.map_or(0, |loss| loss.read_bytes);
            gauge!(GENERATION, &labels).set(replica.generation as f64);
            gauge!(WORST_LOSS, &labels).set(worst as f64);
            show_load(&labels, &load);
        }
    }
}
