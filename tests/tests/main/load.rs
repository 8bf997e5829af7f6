//! Many streams at once for a while: each ends rightly, as it does alone; then nothing is held, and no process has grown.
//!
//! One load with two settings: a minute of 40 streams among the tests, five minutes of 200 in `make soak`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tramontane_tests::client::{Client, all_at_once};
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::{MODEL, Plan};
use tramontane_tests::process::resident_bytes;
use tramontane_tests::stream::{Asked, Events};
use tramontane_tests::wait::need;

/// Longest wait for the next event of a stream, its first one included.
const SILENCE: Duration = Duration::from_secs(240);
/// How much the memory of a process may grow from the second quarter of the load to its last.
const GROWTH_BYTES: u64 = 24 << 20;
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_secs(1);
/// One request in so many is sent again, alone.
const COMPARED: u64 = 10;

struct Setting {
    streams: u64,
    lasting: Duration,
    /// Most requests that are sent again.
    compared: usize,
}

/// What a client does with its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Habit {
    Reads,
    /// Waits between events.
    ReadsSlowly,
    /// Leaves in the middle.
    Leaves,
    /// Leaves before anything has come.
    NeverReads,
}

/// A request with what its client does; a number says all.
struct Request {
    body: Value,
    habit: Habit,
    tokens: u64,
}

/// A stream of numbers from a number, by splitmix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.next() % all.len() as u64).expect("an index")]
    }
}

impl Request {
    fn numbered(number: u64) -> Self {
        let mut numbers = Numbers(number);
        let prompt_tokens = numbers.of(&[3, 17, 40, 40, 130, 300, 900]);
        let tokens = numbers.of(&[1, 8, 24, 24, 60]);
        let habit = numbers.of(&[
            Habit::Reads,
            Habit::Reads,
            Habit::Reads,
            Habit::Reads,
            Habit::Reads,
            Habit::Reads,
            Habit::ReadsSlowly,
            Habit::Leaves,
            Habit::Leaves,
            Habit::NeverReads,
        ]);
        // Half of the prompts begin alike, so that blocks of the cache are shared.
        let begins_alike = numbers.next().is_multiple_of(2);
        let mut other = Numbers(if begins_alike { 0 } else { number });
        let mut prompt: Vec<u64> = (0..prompt_tokens).map(|_| 1000 + other.next() % 6000).collect();
        prompt.push(1000 + numbers.next() % 6000);
        let body = json!({
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": true,
            "temperature": numbers.of(&[0.0, 0.8]),
            "top_p": numbers.of(&[1.0, 0.9]),
            "seed": number,
            "logprobs": 0,
            "return_tokens_as_token_ids": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        Self { body, habit, tokens }
    }
}

/// Tokens and the texts of their log-probabilities, as they came.
type Told = Vec<(String, String)>;

/// Reads a stream to its right end.
async fn read(mut events: Events, request: &Request) -> Result<Told, String> {
    let (mut told, mut reason, mut usage) = (Told::new(), None, None);
    loop {
        let data = events
            .next(SILENCE)
            .await?
            .ok_or("the stream ended before [DONE]")?;
        if data == "[DONE]" {
            break;
        }
        let chunk: Value = serde_json::from_str(&data).map_err(|error| format!("{error}: {data}"))?;
        need(chunk.get("error").is_none(), || data.clone())?;
        if chunk["usage"].is_object() {
            usage = chunk["usage"]["completion_tokens"].as_u64();
        }
        let Some(choice) = chunk["choices"].get(0) else {
            continue;
        };
        need(reason.is_none(), || "more came after the end".to_owned())?;
        reason = choice["finish_reason"].as_str().map(str::to_owned);
        let logprobs = &choice["logprobs"];
        let tokens = logprobs["tokens"].as_array().into_iter().flatten();
        let values = logprobs["token_logprobs"].as_array().into_iter().flatten();
        told.extend(
            tokens
                .zip(values)
                .map(|(token, value)| (token.to_string(), value.to_string())),
        );
        if request.habit == Habit::ReadsSlowly {
            // It is slow; nothing is waited for.
            sleep(Duration::from_millis(150)).await;
        }
    }
    need(events.next(SILENCE).await?.is_none(), || {
        "more came after [DONE]".to_owned()
    })?;
    need(reason.as_deref() == Some("length"), || {
        format!("it ended with {reason:?}")
    })?;
    let right = told.len() as u64 == request.tokens && usage == Some(request.tokens);
    need(right, || {
        format!("{} tokens and {usage:?} of {}", told.len(), request.tokens)
    })?;
    Ok(told)
}

/// What became of a request.
enum Outcome {
    Read(Told),
    Left,
    /// There was no room for it.
    Refused,
}

async fn send(client: &Client, request: &Request) -> Result<Outcome, String> {
    if request.habit == Habit::NeverReads {
        // Long enough to be under way, too short for an answer.
        let asked = client.stream("/v1/completions", &request.body, Duration::from_millis(20));
        return match asked.await {
            Ok(Asked::Refused(answer)) => Err(format!("{answer:?}")),
            Ok(Asked::Begun(_)) | Err(_) => Ok(Outcome::Left),
        };
    }
    let mut events = match client.stream("/v1/completions", &request.body, SILENCE).await? {
        Asked::Begun(events) => events,
        Asked::Refused(answer) if answer.status == 429 => return Ok(Outcome::Refused),
        Asked::Refused(answer) => return Err(format!("{answer:?}")),
    };
    if request.habit == Habit::Leaves {
        for _ in 0..request.tokens / 2 {
            events.next(SILENCE).await?;
        }
        return Ok(Outcome::Left);
    }
    Ok(Outcome::Read(read(events, request).await?))
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    outcomes: BTreeMap<&'static str, u64>,
    tokens: u64,
    /// To be compared.
    kept: Vec<(u64, Told)>,
    faults: Vec<String>,
}

impl Seen {
    async fn until(client: &Client, stream: u64, streams: u64, end: Instant) -> Self {
        let mut seen = Self::default();
        let mut number = stream;
        while Instant::now() < end {
            let request = Request::numbered(number);
            let outcome = match send(client, &request).await {
                Ok(Outcome::Read(told)) => {
                    seen.tokens += told.len() as u64;
                    if number.is_multiple_of(COMPARED) {
                        seen.kept.push((number, told));
                    }
                    if request.habit == Habit::ReadsSlowly {
                        "read slowly"
                    } else {
                        "read"
                    }
                }
                Ok(Outcome::Left) => "left",
                Ok(Outcome::Refused) => {
                    sleep(Duration::from_secs(1)).await;
                    "refused"
                }
                Err(fault) => {
                    seen.faults.push(format!("{number} {:?}: {fault}", request.habit));
                    "faulty"
                }
            };
            *seen.outcomes.entry(outcome).or_default() += 1;
            number += streams;
        }
        seen
    }

    fn add(&mut self, other: Self) {
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.tokens += other.tokens;
        self.kept.extend(other.kept);
        self.faults.extend(other.faults);
    }
}

/// Resident bytes of each process over the load.
async fn watch_memory(cluster: &Cluster, end: Instant) -> BTreeMap<String, Vec<u64>> {
    let mut samples: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    while Instant::now() < end {
        for (name, pid) in cluster.pids() {
            samples.entry(name).or_default().extend(resident_bytes(pid));
        }
        sleep(SAMPLE).await;
    }
    samples
}

/// The median of a part of the samples.
fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn check_memory(samples: &BTreeMap<String, Vec<u64>>) {
    for (name, bytes) in samples {
        let quarter = bytes.len() / 4;
        assert!(quarter >= 5, "{name}: {} samples of its memory", bytes.len());
        let before = median(&bytes[quarter..2 * quarter]);
        let after = median(&bytes[bytes.len() - quarter..]);
        println!("{name}: {} MiB, then {} MiB", before >> 20, after >> 20);
        assert!(
            after < before + GROWTH_BYTES,
            "{name} grew from {before} to {after} bytes: {bytes:?}"
        );
    }
}

async fn load(setting: Setting) {
    let mut cluster = Cluster::start(Plan::new(2).shape(2, 1)).await;
    let client = cluster.client(1);
    let end = Instant::now() + setting.lasting;
    let streams = setting.streams;
    let at_once = usize::try_from(streams).expect("a number of streams");
    let all = all_at_once(at_once, 0..streams, async |stream| {
        Seen::until(&client, stream, streams, end).await
    });
    let (all, memory) = tokio::join!(all, watch_memory(&cluster, end));
    cluster.check_alive();
    let mut seen = Seen::default();
    all.into_iter().for_each(|one| seen.add(one));
    println!(
        "{streams} streams for {:?}: {:?}, {} tokens",
        setting.lasting, seen.outcomes, seen.tokens
    );
    assert!(
        seen.faults.is_empty(),
        "{} faults: {:#?}",
        seen.faults.len(),
        seen.faults
    );
    for outcome in ["read", "read slowly", "left"] {
        assert!(seen.outcomes.contains_key(outcome), "no stream was {outcome}");
    }
    cluster.until_idle().await;
    check_memory(&memory);

    seen.kept.truncate(setting.compared);
    assert!(!seen.kept.is_empty(), "nothing to compare");
    println!("{} requests are sent again, alone", seen.kept.len());
    for (number, told) in &seen.kept {
        let request = Request::numbered(*number);
        match send(&client, &request).await {
            Ok(Outcome::Read(alone)) => assert_eq!(*told, alone, "request {number}: {}", request.body),
            Ok(Outcome::Left | Outcome::Refused) => panic!("request {number} was refused alone"),
            Err(fault) => panic!("request {number}: {fault}"),
        }
    }
    cluster.until_idle().await;
    cluster.check_answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_streams_for_a_minute_end_as_they_do_alone() {
    load(Setting {
        streams: 40,
        lasting: Duration::from_secs(60),
        compared: 24,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "five minutes: make soak"]
async fn soak_two_hundred_streams_for_five_minutes_end_as_they_do_alone() {
    load(Setting {
        streams: 200,
        lasting: Duration::from_secs(300),
        compared: 100,
    })
    .await;
}
