//! Connections in the world: what is sent over them arrives in order, or they break, at either end first.

use super::network::{ConnId, Message, Proc};
use super::world::{Happening, World};

impl World {
    /// Sends over a connection; what cannot be sent is lost with it.
    pub(super) fn send(&mut self, conn: ConnId, from: Proc, message: Message) {
        if let Some((end, at)) = self.net.send(conn, from, message, self.now, &mut self.rng) {
            self.at(at, Happening::Arrival { conn, end });
        }
    }

    pub(super) fn connect(&mut self, from: Proc, to: Proc) -> ConnId {
        let conn = self.net.connect(from, to);
        if self.net.is_parted(from, to) {
            let patience = 1000 + self.rng.below(4000);
            self.after(patience, Happening::Keepalive { conn });
        }
        conn
    }

    /// Closes a process's end; the other end hears of it, unless nothing gets through.
    pub(super) fn hang_up(&mut self, conn: ConnId, from: Proc) {
        let Some(own) = self.net.own_end(conn, from) else {
            return;
        };
        if let Some((end, other)) = self.net.close(conn, own) {
            let delay = if self.net.is_parted(from, other) {
                1000 + self.rng.below(7000)
            } else if self.healed {
                1 + self.rng.below(4)
            } else {
                1 + self.rng.below(300)
            };
            self.after(delay, Happening::Closed { conn, end });
        }
    }

    /// Breaks a connection: each end learns of it in its own time.
    pub(super) fn reset(&mut self, conn: ConnId, within: u64) {
        for end in 0..2 {
            if self.net.is_open(conn, end) {
                let delay = self.rng.below(within);
                self.after(delay, Happening::Closed { conn, end });
            }
        }
    }

    pub(super) fn arrive(&mut self, conn: ConnId, end: usize) {
        let Some((process, message)) = self.net.end(conn, end).zip(self.net.receive(conn, end)) else {
            return;
        };
        if !self.net.is_open(conn, end) {
            return self.late_update(conn, message);
        }
        let is_up = match process {
            Proc::Coordinator(id) => self.coordinators[&id].up.is_some(),
            Proc::Worker(number) => self.workers[number].up.is_some(),
        };
        if !is_up {
            return self.hang_up(conn, process);
        }
        match process {
            Proc::Coordinator(id) => self.coordinator_message(id, conn, message),
            Proc::Worker(number) => self.worker_message(number, conn, message),
        }
    }

    pub(super) fn closed(&mut self, conn: ConnId, end: usize) {
        let Some(process) = self.net.end(conn, end) else {
            return;
        };
        if !self.net.is_open(conn, end) {
            return;
        }
        self.net.close(conn, end);
        match process {
            Proc::Coordinator(id) => self.coordinator_closed(id, conn),
            Proc::Worker(number) => self.worker_closed(number, conn),
        }
    }
}
