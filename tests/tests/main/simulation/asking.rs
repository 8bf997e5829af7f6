//! Clients in the world: they ask, are answered, and ask again elsewhere when their coordinator is gone.

use std::sync::Arc;

use super::clients::{self, Client, Report, Request};
use super::invariants::{bq1, det1, st1, st2};
use super::scenario;
use super::world::{Happening, World};

impl World {
    pub(super) fn new_client(&mut self, at: u64) {
        let client = self.clients.len();
        self.clients.push(Client {
            request: Arc::new(Request::random(&mut self.rng, self.scenario.steps)),
            tries: 0,
            at: None,
            task: None,
            asked: 0,
            accepted: false,
            tokens: Vec::new(),
            over: false,
        });
        self.at(at, Happening::Ask { client });
    }

    /// A client asks a coordinator that runs, or waits for one.
    pub(super) fn ask(&mut self, client: usize) {
        let up: Vec<u64> = self.running_coordinators();
        let at = up.get(self.rng.below(up.len() as u64) as usize).copied();
        let gateway = at.and_then(|id| self.gateway(id));
        let (Some(id), Some(gateway)) = (at, gateway) else {
            return self.after(200, Happening::Ask { client });
        };
        let now = self.now;
        let one = &mut self.clients[client];
        one.tries += 1;
        one.at = Some(id);
        one.asked = now;
        one.accepted = false;
        one.tokens.clear();
        let request = Arc::clone(&one.request);
        let (desk, tries) = (self.desk.clone(), one.tries);
        let task = tokio::spawn(clients::ask(desk, client, tries, gateway, request));
        one.task = Some(task.abort_handle());
        self.trace
            .add(now, || format!("client {client} asks coordinator {id}"));
    }

    pub(super) fn see_to_desk(&mut self) {
        // What tasks told in this order.
        for (client, tries, report) in self.desk.reports() {
            if self.clients[client].tries == tries && !self.clients[client].over {
                self.told(client, report);
            }
        }
        for outgoing in self.desk.outgoing() {
            self.after(0, Happening::Outgoing(outgoing));
        }
    }

    fn told(&mut self, client: usize, report: Report) {
        let now = self.now;
        // Tokens would leave no room for anything else.
        if !matches!(report, Report::Token(..)) {
            self.trace.add(now, || format!("client {client}: {report:?}"));
        }
        let one = &mut self.clients[client];
        let request = Arc::clone(&one.request);
        match report {
            Report::Accepted => {
                one.accepted = true;
                let at = one.at;
                let live = self
                    .clients
                    .iter()
                    .filter(|one| one.at == at && one.accepted && !one.over);
                let live = live.count();
                self.check(bq1::check(live, scenario::gateway().max_live_requests));
            }
            Report::Token(token, mark) => {
                let tokens = one.tokens.len();
                one.tokens.push(token);
                self.coverage.tokens += 1;
                self.check(st1::check(client, tokens, mark));
                self.check(det1::check(client, tokens, token, request.expected()));
            }
            Report::Ended(end) => {
                let late = now + 2 >= one.asked + request.timeout_ms;
                let tokens = std::mem::take(&mut one.tokens);
                (one.over, one.at) = (true, None);
                match &end {
                    Ok(_) => self.coverage.completed += 1,
                    Err(_) => self.coverage.deadlines += 1,
                }
                self.check(st2::check(client, &request, &tokens, &end, late));
            }
            Report::Left => (one.over, one.at) = (true, None),
            Report::Refused => {
                one.at = None;
                let pause = 200 + self.rng.below(800);
                self.after(pause, Happening::Ask { client });
            }
        }
    }

    /// Two more requests that must be answered once all is well.
    pub(super) fn ask_for_proof(&mut self) {
        for _ in 0..2 {
            let at = self.now + 100;
            self.new_client(at);
        }
    }
}
