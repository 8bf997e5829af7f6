//! A live cluster under a mixed load, whose processes are killed meanwhile; and the proof that no answer has changed.
//!
//! Clients do what a client has to: they send their key, and where their gateway is gone or nothing serves they try again
//! at the next coordinator. Every answer is then compared with what a cluster answers to which nothing happens.

mod answer;
mod kills;
mod request;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub use answer::{Answer, Tried, ask};
pub use kills::{Kill, Shared, Victim, kill, until_well};
pub use request::{Numbers, Request, Requests};

use crate::client::{Client, all_at_once};
use crate::cluster::Cluster;
use crate::config::Plan;

/// Requests in flight.
const AT_ONCE: usize = 6;
/// Longest time a request may take, over all its attempts.
const DEADLINE: Duration = Duration::from_secs(240);
/// Pause of a client before it tries again.
const PAUSE: Duration = Duration::from_millis(200);
/// Most requests of a run.
const MAX_REQUESTS: usize = 100_000;

/// What a run is to be.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// What is asked and who is killed follows from it.
    pub seed: u64,
    /// Fewest requests.
    pub requests: usize,
    /// Fewest kills; requests go on until there are as many.
    pub kills: usize,
    /// The leader is killed each time in so many.
    pub leader_every: usize,
    /// Shortest time.
    pub lasting: Duration,
}

/// What a request came to.
#[derive(Clone, Debug)]
struct Outcome {
    number: usize,
    answer: Result<Answer, String>,
    /// What came before each gateway was gone.
    partial: Vec<Answer>,
    /// Attempts that found that nothing served.
    not_now: usize,
    took: Duration,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Requests.
    pub requests: usize,
    /// Tokens of their answers.
    pub tokens: u64,
    /// Who was killed.
    pub kills: Vec<Kill>,
    /// Requests whose gateway died in the middle, and that were answered by another.
    pub moved: usize,
    /// Attempts that found that nothing served.
    pub not_now: usize,
    /// The longest time of a request.
    pub longest: Duration,
    /// What was lost, repeated or changed.
    pub faults: Vec<String>,
}

/// Runs it, and compares.
pub async fn run(setting: Setting) -> Report {
    println!("chaos with seed {}: {setting:?}", setting.seed);
    let requests = Requests::new(setting.seed);
    let plan = Plan::new(3)
        .coordinators(3)
        .shape(2, 1)
        .set("placement.replicas = 1");
    let mut cluster = Cluster::start(plan).await;
    until_well(&mut cluster).await;
    let clients: Vec<Client> = (1..=3).map(|number| cluster.client(number)).collect();
    let shared = Shared::default();
    let mut numbers = Numbers::new(setting.seed);
    let (outcomes, kills) = tokio::join!(
        load(&clients, &requests, setting, &shared),
        kill(&mut cluster, &mut numbers, setting.leader_every, &shared)
    );
    until_well(&mut cluster).await;
    cluster.until_idle().await;
    cluster.check_answers().await;
    drop(cluster);
    println!(
        "{} requests have ended; now to a cluster to which nothing happens",
        outcomes.len()
    );
    let mut undisturbed = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let client = undisturbed.client(1);
    let faults = all_at_once(AT_ONCE, &outcomes, async |outcome| {
        let request = requests.numbered(outcome.number);
        let expected = ask(&client, &request).await;
        compare(&request, outcome, expected)
    })
    .await;
    undisturbed.check_alive();
    Report {
        requests: outcomes.len(),
        tokens: outcomes
            .iter()
            .filter_map(|one| one.answer.as_ref().ok())
            .map(Answer::tokens)
            .sum(),
        kills,
        moved: outcomes.iter().filter(|one| !one.partial.is_empty()).count(),
        not_now: outcomes.iter().map(|one| one.not_now).sum(),
        longest: outcomes.iter().map(|one| one.took).max().unwrap_or_default(),
        faults: faults.into_iter().flatten().collect(),
    }
}

/// Sends requests until there are enough, enough were killed and enough time is over.
async fn load(clients: &[Client], requests: &Requests, setting: Setting, shared: &Shared) -> Vec<Outcome> {
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    let goes_on = |number: usize| {
        let wanted = number < setting.requests
            || shared.kills.load(Ordering::Relaxed) < setting.kills
            || started.elapsed() < setting.lasting;
        wanted && number < MAX_REQUESTS
    };
    let streams = all_at_once(AT_ONCE, 0..AT_ONCE, async |_| {
        let mut outcomes = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if !goes_on(number) {
                return outcomes;
            }
            outcomes.push(answered(clients, &requests.numbered(number)).await);
        }
    });
    let outcomes = streams.await.into_iter().flatten().collect();
    shared.over.store(true, Ordering::Relaxed);
    outcomes
}

/// Asks one coordinator after the other until one answers.
async fn answered(clients: &[Client], request: &Request) -> Outcome {
    let started = Instant::now();
    let mut outcome = Outcome {
        number: request.number,
        answer: Err("it was not answered in time".to_owned()),
        partial: Vec::new(),
        not_now: 0,
        took: Duration::ZERO,
    };
    for client in clients.iter().cycle().skip(request.number % clients.len()) {
        if started.elapsed() > DEADLINE {
            break;
        }
        match ask(client, request).await {
            Tried::Whole(answer) => {
                outcome.answer = Ok(answer);
                break;
            }
            Tried::Wrong(why) => {
                outcome.answer = Err(why);
                break;
            }
            Tried::Gone(partial) => outcome.partial.push(partial),
            Tried::NotNow(_) => outcome.not_now += 1,
        }
        sleep(PAUSE).await;
    }
    outcome.took = started.elapsed();
    outcome
}

/// What is wrong with an answer, if something is.
fn compare(request: &Request, outcome: &Outcome, expected: Tried) -> Option<String> {
    let told = |what: String| Some(format!("request {} ({}): {what}", request.number, request.kind));
    let answer = match &outcome.answer {
        Ok(answer) => answer,
        Err(why) => return told(format!("lost: {why}")),
    };
    let Tried::Whole(expected) = expected else {
        return told(format!("the cluster to which nothing happens says {expected:?}"));
    };
    if *answer != expected {
        return told(format!(
            "changed: {answer:?} in place of {expected:?}; {}",
            request.body
        ));
    }
    let broken = outcome.partial.iter().find(|partial| !partial.begins(&expected));
    broken.and_then(|partial| {
        told(format!(
            "began otherwise before its gateway died: {partial:?}, {expected:?}"
        ))
    })
}

impl Report {
    /// Shows it to people.
    pub fn show(&self) {
        println!(
            "{} requests, {} tokens; {} kills; {} requests lost their gateway and were answered by another; {} times \
             nothing served; the longest request took {:.1} s; {} faults",
            self.requests,
            self.tokens,
            self.kills.len(),
            self.moved,
            self.not_now,
            self.longest.as_secs_f64(),
            self.faults.len(),
        );
        for kill in &self.kills {
            println!("  {kill}");
        }
    }

    /// Fails if an answer was lost, repeated or changed.
    pub fn check(&self) {
        assert!(
            self.faults.is_empty(),
            "{} faults: {:#?}",
            self.faults.len(),
            self.faults
        );
    }
}
