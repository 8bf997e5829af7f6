//! Processes that are killed under a mixed load: every answer is whole, and the same as if nothing had happened.

use std::time::Duration;

use tramontane_tests::chaos::{Setting, Victim, run};

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, it must be a whole number")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_requests_are_whole_while_two_workers_and_the_leader_are_killed() {
    let report = run(Setting {
        seed: 1,
        requests: 60,
        kills: 3,
        leader_every: 2,
        lasting: Duration::ZERO,
    })
    .await;
    report.show();
    report.check();
    let is_leader = |victim| matches!(victim, Victim::Leader(_));
    assert!(report.kills.len() >= 3 && report.kills.iter().any(|kill| is_leader(kill.victim)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make soak"]
async fn soak_chaos_five_hundred_requests_are_whole_while_workers_and_leaders_are_killed() {
    let report = run(Setting {
        seed: given("SEED").unwrap_or(2),
        requests: 500,
        kills: 8,
        leader_every: 4,
        lasting: Duration::ZERO,
    })
    .await;
    report.show();
    report.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as it is told: make chaos MINUTES=n SEED=s"]
async fn chaos_for_as_long_as_it_is_told() {
    let minutes = given("MINUTES").unwrap_or(5);
    let report = run(Setting {
        seed: given("SEED").unwrap_or_else(|| getrandom::u32().expect("randomness").into()),
        requests: 1,
        kills: 1,
        leader_every: 4,
        lasting: Duration::from_secs(60 * minutes),
    })
    .await;
    report.show();
    report.check();
}
