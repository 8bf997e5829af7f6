//! Sends requests when they are to arrive and takes in what becomes of them.
//!
//! The load is open: a request arrives whatever became of those before. One that finds no place among those in flight
//! waits for one, and its times count from its arrival all the same, so that a slow cluster cannot hide behind a client
//! that waits for it. Without a rate there are no arrivals: the next request is sent when one ends, and its times count
//! from then.

use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::arrivals::Arrivals;
use super::load::{Ask, Load};
use super::send::send;
use super::stats::{Recorder, Sample};
use crate::client::Client;

/// What bounds a measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Most requests in flight.
    pub(super) concurrency: usize,
    /// Requests that are sent.
    pub(super) requests: u64,
    /// How long requests are sent; those in flight then are waited for.
    pub(super) duration: Option<Duration>,
}

/// One measurement.
pub(super) struct Drive<'a> {
    pub(super) client: &'a Client,
    pub(super) load: &'a Load,
    /// None: without a rate.
    pub(super) arrivals: Option<Arrivals>,
    pub(super) bounds: Bounds,
    pub(super) progress: &'a ProgressBar,
}

type Outcome = Result<Sample, String>;

impl Drive<'_> {
    /// Runs until every request has ended or `stop` resolves; how long it took, and whether it was stopped.
    pub(super) async fn run(
        mut self,
        recorder: &mut Recorder,
        stop: impl Future<Output = ()>,
    ) -> (Duration, bool) {
        let started = Instant::now();
        let mut flying = JoinSet::new();
        tokio::pin!(stop);
        let stopped = tokio::select! {
            biased;
            () = &mut stop => true,
            () = self.all(started, recorder, &mut flying) => false,
        };
        let took = started.elapsed();
        // Whatever ended by now counts; the rest goes with the set.
        while let Some(ended) = flying.try_join_next() {
            self.take(recorder, ended);
        }
        (took, stopped)
    }

    async fn all(&mut self, started: Instant, recorder: &mut Recorder, flying: &mut JoinSet<Outcome>) {
        let room = Arc::new(Semaphore::new(self.bounds.concurrency));
        let until = self.bounds.duration.map(|duration| started + duration);
        for number in 0..self.bounds.requests {
            // Made before its moment comes, so that making it delays nothing.
            let ask = self.load.ask(number);
            let arrives = match &mut self.arrivals {
                Some(arrivals) => match arrivals.next() {
                    Some(at) => Some(started + at),
                    None => break,
                },
                None => None,
            };
            if let (Some(arrives), Some(until)) = (arrives, until)
                && arrives > until
            {
                break;
            }
            let ready = self.ready(arrives, &room, recorder, flying);
            let permit = match until {
                // An arrival in time is sent however long it waits for its place.
                Some(until) if arrives.is_none() => match timeout_at(until, ready).await {
                    Ok(permit) => permit,
                    Err(_) => break,
                },
                Some(_) | None => ready.await,
            };
            self.spawn(ask, arrives.unwrap_or_else(Instant::now), permit, flying);
            recorder.sent();
        }
        while let Some(ended) = flying.join_next().await {
            self.take(recorder, ended);
        }
    }

    /// Waits for the moment and then for a place, taking in what ends meanwhile.
    async fn ready(
        &self,
        arrives: Option<Instant>,
        room: &Arc<Semaphore>,
        recorder: &mut Recorder,
        flying: &mut JoinSet<Outcome>,
    ) -> Option<OwnedSemaphorePermit> {
        let ready = async {
            if let Some(arrives) = arrives {
                sleep_until(arrives).await;
            }
            // The semaphore is never closed.
            Arc::clone(room).acquire_owned().await.ok()
        };
        tokio::pin!(ready);
        loop {
            tokio::select! {
                biased;
                permit = &mut ready => return permit,
                Some(ended) = flying.join_next() => self.take(recorder, ended),
            }
        }
    }

    fn spawn(
        &self,
        ask: Ask,
        intended: Instant,
        permit: Option<OwnedSemaphorePermit>,
        flying: &mut JoinSet<Outcome>,
    ) {
        let client = self.client.clone();
        flying.spawn(async move {
            let outcome = send(&client, ask, intended).await;
            drop(permit);
            outcome
        });
    }

    fn take(&self, recorder: &mut Recorder, ended: Result<Outcome, tokio::task::JoinError>) {
        recorder.take(ended.unwrap_or_else(|error| Err(format!("the client failed: {error}"))));
        self.progress.set_position(match self.bounds.duration {
            Some(_) => self.progress.elapsed().as_secs(),
            None => recorder.ended(),
        });
        self.progress.set_message(format!(
            "{} ended, {} failed, {} in flight",
            recorder.ended(),
            recorder.failed(),
            self.flying(recorder)
        ));
    }

    fn flying(&self, recorder: &Recorder) -> u64 {
        recorder.sent_so_far().saturating_sub(recorder.ended())
    }
}

/// Sends so many warm-up requests at once, which must all succeed.
pub(super) async fn warm_up(client: &Client, load: &Load, requests: u32) -> Result<(), String> {
    let mut flying = JoinSet::new();
    for number in 0..requests {
        let (client, ask) = (client.clone(), load.warm_up(number.into()));
        flying.spawn(async move { send(&client, ask, Instant::now()).await });
    }
    while let Some(ended) = flying.join_next().await {
        ended.map_err(|error| error.to_string())??;
    }
    Ok(())
}
