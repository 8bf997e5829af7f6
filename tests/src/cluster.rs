//! A cluster of real processes on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::client::Client;
use crate::config::{
    Addresses, MODEL, Plan, Ports, addresses, fetched_dir, write_coordinator, write_token, write_worker,
};
use crate::process::{Node, signal};
use crate::status::{Replica, Status};
use crate::wait::{need, until};

/// Longest wait for a cluster to serve.
pub const READY_WITHIN: Duration = Duration::from_secs(120);

/// Longest wait for a node that was told to stop.
const STOP_WITHIN: Duration = Duration::from_secs(120);

/// The machine is one cluster's at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for the machine. Whoever holds a cluster has it already.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// The processes of a cluster; they end with it.
pub struct Cluster {
    /// What it was made from.
    pub plan: Plan,
    /// By number, from 1; those that were killed are gone.
    coordinators: Vec<Option<Node>>,
    workers: Vec<Option<Node>>,
    addresses: Vec<Addresses>,
    /// Where each worker's metrics are served.
    worker_metrics: Vec<SocketAddr>,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts the processes. Does not wait for them.
    pub async fn launch(plan: Plan) -> Self {
        let turn = turn().await;
        let dir = tempfile::tempdir().expect("a directory");
        write_token(dir.path());
        let mut cluster = Self {
            addresses: addresses(&plan),
            coordinators: Vec::new(),
            workers: Vec::new(),
            worker_metrics: Vec::new(),
            plan,
            dir,
            _turn: turn,
        };
        for number in 1..=cluster.addresses.len() {
            cluster.coordinators.push(None);
            cluster.start_coordinator(number);
        }
        for number in 1..=cluster.plan.workers.len() {
            cluster.room_for_worker(number);
            cluster.start_worker(number);
        }
        cluster
    }

    /// Starts the processes and waits until every coordinator serves.
    pub async fn start(plan: Plan) -> Self {
        let mut cluster = Self::launch(plan).await;
        cluster.until_ready().await;
        cluster
    }

    /// Waits until every coordinator that runs serves.
    pub async fn until_ready(&mut self) {
        let clients = self.clients();
        until("a cluster that serves", READY_WITHIN, async || {
            self.check_alive();
            for client in &clients {
                client.get("/readyz").await?.ok()?;
            }
            Ok(())
        })
        .await;
    }

    /// Waits until the status says `what`.
    pub async fn until_status<T>(
        &self,
        what: &str,
        within: Duration,
        look: impl Fn(&Status) -> Result<T, String>,
    ) -> T {
        until(what, within, async || look(&self.status().await?)).await
    }

    /// Waits until the replica serves in a way that is right.
    pub async fn until_placed(&self, what: &str, right: impl Fn(&Replica) -> bool) -> Replica {
        self.until_status(what, READY_WITHIN, |status| {
            let replica = status.serving()?;
            need(right(replica), || format!("it is {replica:?}"))?;
            Ok(replica.clone())
        })
        .await
    }

    /// Waits until nothing runs and no cache block is held (KV-1).
    pub async fn until_idle(&self) {
        let client = self.client(self.running()[0]);
        until("an idle cluster", Duration::from_secs(20), async || {
            for name in ["tramontane_sequences_running", "tramontane_kv_blocks_used"] {
                let value = client.metric(name).await?;
                need(value == Some(0.0), || format!("{name} is {value:?}, not 0"))?;
            }
            let total = client.metric("tramontane_kv_blocks_total").await?;
            need(total > Some(0.0), || format!("there are {total:?} blocks in all"))
        })
        .await;
    }

    /// The status as any coordinator that runs tells it.
    pub async fn status(&self) -> Result<Status, String> {
        let mut why = "no coordinator runs".to_owned();
        for client in self.clients() {
            match client
                .get("/cluster/status")
                .await
                .and_then(crate::client::Answer::ok)
            {
                Ok(answer) => return serde_json::from_str(&answer.body).map_err(|error| error.to_string()),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Number of the coordinator that leads.
    pub async fn leader(&self) -> usize {
        let leader = self
            .until_status("a leader", READY_WITHIN, |status| {
                status.leader.ok_or("none leads".to_owned())
            })
            .await;
        usize::try_from(leader).expect("a small number")
    }

    /// Numbers of the coordinators that run.
    pub fn running(&self) -> Vec<usize> {
        let numbers = self.coordinators.iter().zip(1..);
        numbers
            .filter_map(|(node, number)| node.is_some().then_some(number))
            .collect()
    }

    /// A client of a coordinator.
    pub fn client(&self, number: usize) -> Client {
        let address = self.addresses[number - 1].http.to_string();
        Client::new(address, self.plan.client_identity())
    }

    /// Clients of every coordinator that runs.
    pub fn clients(&self) -> Vec<Client> {
        let running = self.running().into_iter();
        running.map(|number| self.client(number)).collect()
    }

    /// Asks every coordinator that runs something that the miniature knows.
    pub async fn check_answers(&self) {
        for client in self.clients() {
            let answer = client.ask(MODEL, "What is the capital of France?").await;
            assert_eq!(answer.as_deref(), Ok("The capital of France is Paris."));
        }
    }

    /// Ends a coordinator as a power cut would.
    pub fn kill_coordinator(&mut self, number: usize) {
        let node = self.coordinators[number - 1].take();
        node.expect("it runs").kill();
    }

    /// Ends a worker as a power cut would.
    pub fn kill_worker(&mut self, number: usize) {
        let node = self.workers[number - 1].take();
        node.expect("it runs").kill();
    }

    /// Tells a coordinator to stop, as systemd does, and waits until it has.
    pub async fn stop_coordinator(&mut self, number: usize) {
        let node = self.coordinators[number - 1].take();
        stop(node.expect("it runs")).await;
    }

    /// Tells a worker to stop, as systemd does, and waits until it has; gives its log.
    pub async fn stop_worker(&mut self, number: usize) -> String {
        let node = self.workers[number - 1].take();
        stop(node.expect("it runs")).await
    }

    /// From now on a coordinator can write no file, as on a full disk.
    pub fn fill_disk_of_coordinator(&self, number: usize) {
        self.coordinators[number - 1]
            .as_ref()
            .expect("it runs")
            .limit_files(true);
    }

    /// Starts one coordinator more, which waits to be added; its number.
    pub fn start_coordinator_to_add(&mut self) -> usize {
        let number = self.addresses.len() + 1;
        let host = self.plan.coordinator_host(number);
        let mut ports = Ports::default();
        self.addresses.push(Addresses {
            http: ports.free(host),
            rpc: ports.free(host),
        });
        self.coordinators.push(None);
        self.start_coordinator(number);
        number
    }

    /// Where a coordinator's peers reach it.
    pub fn rpc_address(&self, number: usize) -> SocketAddr {
        self.addresses[number - 1].rpc
    }

    /// Stops a coordinator's process until it is resumed.
    pub fn pause_coordinator(&self, number: usize) {
        signal(self.coordinator_pid(number), "STOP");
    }

    /// Lets a coordinator that was stopped go on.
    pub fn resume_coordinator(&self, number: usize) {
        signal(self.coordinator_pid(number), "CONT");
    }

    /// Stops a worker's process until it is resumed.
    pub fn pause_worker(&self, number: usize) {
        signal(self.worker_pid(number), "STOP");
    }

    /// Lets a worker that was stopped go on.
    pub fn resume_worker(&self, number: usize) {
        signal(self.worker_pid(number), "CONT");
    }

    /// Starts a coordinator, with the data that it left if it ran before.
    pub fn start_coordinator(&mut self, number: usize) {
        let config = write_coordinator(self.dir.path(), &self.plan, &self.addresses, number);
        let name = format!("coordinator-{number}");
        let node = Node::start("coordinator", &name, &config, 1, self.plan.log.as_deref());
        self.coordinators[number - 1] = Some(node);
    }

    /// Starts a worker.
    pub fn start_worker(&mut self, number: usize) {
        let metrics = self.worker_metrics[number - 1];
        let config = write_worker(self.dir.path(), &self.plan, &self.addresses, number, metrics);
        // Mesa's CPU adapter takes all cores for every device otherwise.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let devices: usize = self.plan.workers.iter().map(Vec::len).sum();
        let threads = (cores / devices).max(1);
        let (name, log) = (format!("worker-{number}"), self.plan.log.as_deref());
        let node = Node::start("worker", &name, &config, threads, log);
        self.workers[number - 1] = Some(node);
    }

    /// Starts one worker more, of these devices; its number.
    pub fn add_worker(&mut self, devices: &[u64]) -> usize {
        self.plan.workers.push(devices.to_vec());
        let number = self.workers.len() + 1;
        self.room_for_worker(number);
        self.start_worker(number);
        number
    }

    fn room_for_worker(&mut self, number: usize) {
        self.workers.push(None);
        let mut ports = Ports::default();
        // Coordinators may not listen yet.
        let is_taken = |address: &SocketAddr| {
            let mut coordinators = self.addresses.iter();
            coordinators.any(|one| [one.http, one.rpc].contains(address))
                || self.worker_metrics.contains(address)
        };
        let address = loop {
            let address = ports.free(self.plan.worker_host(number));
            if !is_taken(&address) {
                break address;
            }
        };
        self.worker_metrics.push(address);
    }

    /// A client of what a worker serves its metrics with.
    pub fn worker_metrics(&self, number: usize) -> Client {
        let address = self.worker_metrics[number - 1].to_string();
        Client::new(address, self.plan.client_identity())
    }

    /// The sum of a metric over every worker that runs and over its labels; nothing if none has it.
    pub async fn worker_metric(&self, name: &str) -> Result<Option<f64>, String> {
        let mut sum = None;
        for (node, address) in self.workers.iter().zip(&self.worker_metrics) {
            if node.is_some() {
                let client = Client::new(address.to_string(), self.plan.client_identity());
                let value = client.metric(name).await?;
                sum = value.map(|value| sum.unwrap_or(0.0) + value).or(sum);
            }
        }
        Ok(sum)
    }

    /// Where a worker puts the files that it fetches.
    pub fn fetched_dir(&self, number: usize) -> PathBuf {
        fetched_dir(self.dir.path(), number)
    }

    /// What every process that runs has logged, by its name.
    pub fn logs(&self) -> Vec<(String, String)> {
        let nodes = self.coordinators.iter().chain(&self.workers).flatten();
        nodes.map(|node| (node.name.clone(), node.log())).collect()
    }

    /// Process id of a coordinator that runs.
    pub fn coordinator_pid(&self, number: usize) -> u32 {
        self.coordinators[number - 1].as_ref().expect("it runs").pid()
    }

    /// Process id of a worker that runs.
    pub fn worker_pid(&self, number: usize) -> u32 {
        self.workers[number - 1].as_ref().expect("it runs").pid()
    }

    /// Names and process ids of everything that runs.
    pub fn pids(&self) -> Vec<(String, u32)> {
        let nodes = self.coordinators.iter().chain(&self.workers).flatten();
        nodes.map(|node| (node.name.clone(), node.pid())).collect()
    }

    /// Fails with its log if a process ended by itself.
    pub fn check_alive(&mut self) {
        for node in self.coordinators.iter_mut().chain(&mut self.workers).flatten() {
            if let Some(how) = node.ended() {
                panic!("{} ended ({how}):\n{}", node.name, node.tail());
            }
        }
    }
}

/// Tells a node to stop and waits until it has ended well; gives its log.
async fn stop(mut node: Node) -> String {
    node.terminate();
    let ended = until(
        "the end of a node that was told to stop",
        STOP_WITHIN,
        async || node.ended().ok_or("it still runs".to_owned()),
    )
    .await;
    assert!(
        ended.success(),
        "{} ended with {ended}:\n{}",
        node.name,
        node.tail()
    );
    node.log()
}
