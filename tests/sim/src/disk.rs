//! A disk in memory that loses power, fills up and breaks, for tests.
//!
//! Writes since the last sync may be lost, kept or kept in part, in any combination: more than a real disk does.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::Rng;

#[derive(Debug)]
enum Write {
    Data { offset: u64, bytes: Vec<u8> },
    Length(u64),
}

#[derive(Debug, Default)]
struct State {
    /// What survives a loss of power for certain.
    durable: Vec<u8>,
    /// What the running process reads.
    current: Vec<u8>,
    unsynced: Vec<Write>,
    /// Handles of an earlier epoch belong to a process that is dead.
    epoch: u64,
    capacity: Option<u64>,
    writes_left: Option<u64>,
    syncs: u64,
}

/// The disk; survives the processes that use it.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

/// One process's open file on a [`Disk`].
#[derive(Debug)]
pub struct File {
    disk: Disk,
    epoch: u64,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file in the name of the running process.
    pub fn open(&self) -> File {
        File {
            disk: self.clone(),
            epoch: self.state().epoch,
        }
    }

    /// Cuts the power: every open file is dead, and of the unsynced writes a random part remains.
    pub fn crash(&self, rng: &mut Rng) {
        let state = &mut *self.state();
        state.epoch += 1;
        for write in state.unsynced.drain(..) {
            match write {
                Write::Length(len) if rng.chance(50) => state.durable.resize(len as usize, 0),
                Write::Data { offset, bytes } if rng.chance(50) => {
                    let kept = if rng.chance(50) {
                        bytes.len()
                    } else {
                        rng.below(bytes.len() as u64) as usize
                    };
                    put(&mut state.durable, offset, &bytes[..kept]);
                }
                Write::Length(_) | Write::Data { .. } => {}
            }
        }
        state.current = state.durable.clone();
    }

    /// From now on no write may make the file longer than `bytes`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// After this many more writes, every write and sync fails.
    pub fn break_after(&self, writes: u64) {
        self.state().writes_left = Some(writes);
    }

    /// Undoes [`Disk::set_capacity`] and [`Disk::break_after`].
    pub fn repair(&self) {
        let state = &mut *self.state();
        (state.capacity, state.writes_left) = (None, None);
    }

    /// How often the disk was synced.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Bytes that survive a loss of power for certain.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> u64 {
        self.state().durable.len() as u64
    }

    /// Changes a stored byte.
    pub fn corrupt(&self, offset: u64) {
        let state = &mut *self.state();
        state.durable[offset as usize] ^= 0x55;
        state.current = state.durable.clone();
    }

    /// What survives a loss of power for certain.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().durable.clone()
    }

    /// Replaces the stored bytes.
    pub fn overwrite(&self, bytes: Vec<u8>) {
        let state = &mut *self.state();
        state.epoch += 1;
        state.unsynced.clear();
        state.durable = bytes.clone();
        state.current = bytes;
    }
}

fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(bytes);
}

impl File {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch == self.epoch {
            Ok(state)
        } else {
            Err(io::Error::other("the process is dead"))
        }
    }

    fn writable(&self, end: u64) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state()?;
        if state.capacity.is_some_and(|capacity| end > capacity) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "no space left on device",
            ));
        }
        match &mut state.writes_left {
            Some(0) => return Err(io::Error::other("the disk is broken")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state()?;
        let (start, end) = (offset as usize, offset as usize + out.len());
        let found = state
            .current
            .get(start..end)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.writable(len)?;
        state.current.resize(len as usize, 0);
        state.unsynced.push(Write::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.writable(0)?;
        state.syncs += 1;
        for write in state.unsynced.drain(..) {
            match write {
                Write::Length(len) => state.durable.resize(len as usize, 0),
                Write::Data { offset, bytes } => put(&mut state.durable, offset, &bytes),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.writable(offset + data.len() as u64)?;
        put(&mut state.current, offset, data);
        state.unsynced.push(Write::Data {
            offset,
            bytes: data.to_vec(),
        });
        Ok(())
    }
}
