//! The cluster as the leader sees it.

use tramontane_model::ids::DeviceRef;
use tramontane_model::members::{DeviceReport, DeviceState, SchedulerLoad, StandbyReport};
use tramontane_model::placement::{KvShape, Replica};

use super::leader::Leader;
use super::view::{
    DeviceView, GroupView, KvView, LoadView, NodeView, Progress, ReplicaView, StageView, StatusView,
};
use super::{Controller, Role};
use crate::control::footprint::usage;
use crate::control::standby::shares_bytes;
use crate::control::state::{ClusterState, Part, Phase, ReplicaEntry, Standing, WorkerEntry};

impl Controller {
    /// The cluster as this coordinator sees it. What workers report is known to the leader only.
    pub fn status(&self, state: &ClusterState) -> StatusView {
        let (leader, leading) = match &self.role {
            Role::Following { leader } => (leader.map(|id| id.0), None),
            Role::Leading(leading) => (Some(self.options.id.0), Some(&**leading)),
        };
        let mut nodes = self.coordinators(state, leader);
        let workers = state.workers.values();
        nodes.extend(workers.map(|entry| worker(state, leading, entry)));
        if let Some(leading) = leading {
            nodes.extend(lost(leading));
        }
        let replicas: Vec<ReplicaView> = state
            .replicas
            .values()
            .zip(state.replicas.keys())
            .map(|(entry, id)| replica(state, leading, id.0, entry))
            .collect();
        let serving = state.replicas.values().filter(|entry| entry.serving().is_some());
        let serving = u32::try_from(serving.count()).unwrap_or(u32::MAX);
        let wanted = self.options.replicas;
        let short = leading.and_then(|leading| leading.placing.short());
        let short = short.filter(|_| wanted.is_some_and(|wanted| serving < wanted));
        StatusView {
            model: self.options.model.name.clone(),
            leader,
            term: leading.map_or(0, |leading| leading.term),
            nodes,
            members: Vec::new(),
            replicas,
            replicas_wanted: wanted,
            replicas_serving: serving,
            replicas_short: short.map(str::to_owned),
            missing: missing(state, leading),
        }
    }

    /// What the schedulers of replicas that serve are doing, as far as they told; nothing if this coordinator does not
    /// lead.
    pub fn loads(&self, state: &ClusterState) -> Vec<SchedulerLoad> {
        let Role::Leading(leader) = &self.role else {
            return Vec::new();
        };
        let serving = state.replicas.values().filter_map(ReplicaEntry::serving);
        serving
            .filter_map(|placement| scheduler_load(leader, placement))
            .collect()
    }

    fn coordinators(&self, state: &ClusterState, leader: Option<u64>) -> Vec<NodeView> {
        let view = |(id, entry): (&tramontane_model::ids::CoordinatorId, _)| {
            let entry: &crate::control::state::CoordinatorEntry = entry;
            let leads = Some(id.0) == leader;
            NodeView {
                id: format!("coordinator-{id}"),
                role: if leads { "leader" } else { "follower" },
                pid: entry.pid,
                address: match state.parts.get(id) {
                    Some(Part::Added { address }) => address.clone(),
                    Some(Part::Removed { .. }) | None => entry.raft_address.clone(),
                },
                http_address: Some(entry.http_address.clone()),
                state: "up",
                standby: false,
                devices: Vec::new(),
            }
        };
        state.coordinators.iter().map(view).collect()
    }
}

fn worker(state: &ClusterState, leader: Option<&Leader>, entry: &WorkerEntry) -> NodeView {
    let info = &entry.info;
    let report = leader.and_then(|leader| leader.members.report(&info.worker));
    let device = |device: &tramontane_model::members::DeviceInfo| {
        let told = report.and_then(|report| report.devices.iter().find(|one| one.index == device.index));
        let at = DeviceRef {
            worker: info.worker.clone(),
            device: device.index,
        };
        let standby = told.map_or_else(StandbyReport::default, |told| told.standby);
        DeviceView {
            index: device.index.0,
            adapter: device.adapter.clone(),
            memory_bytes: device.memory_bytes,
            held_bytes: told.map_or(0, |told| told.held_bytes),
            planned_bytes: planned_bytes(state, &at),
            state: told.map_or_else(|| "unknown".to_owned(), device_state),
            loading: told.and_then(loading),
            standby: state.copies(&at).iter().map(ToString::to_string).collect(),
            standby_bytes: standby.loaded_bytes,
            standby_total_bytes: standby.total_bytes,
        }
    };
    let used = state.replicas.values().any(|replica| replica.uses(&info.worker));
    let silent = leader.is_some_and(|leader| !leader.members.admitted.contains_key(&info.worker));
    NodeView {
        id: info.worker.to_string(),
        role: "worker",
        pid: info.pid,
        address: info.address.clone(),
        http_address: None,
        state: match entry.standing {
            Standing::Draining { .. } if used => "draining",
            Standing::Draining { .. } => "drained",
            Standing::Joined if silent => "silent",
            Standing::Joined => "joined",
        },
        standby: entry.standing == Standing::Joined && !used,
        devices: info.devices.iter().map(device).collect(),
    }
}

/// What the planner counts for a device.
fn planned_bytes(state: &ClusterState, device: &DeviceRef) -> u64 {
    let Some(footprint) = state.model.as_ref().map(|model| &model.footprint) else {
        return 0;
    };
    let live = state.replicas.values().filter_map(ReplicaEntry::live);
    let of_replicas = live.filter_map(|placement| usage(footprint, placement).remove(device));
    let placed = of_replicas.fold(0u64, |sum, used| sum.saturating_add(used.total_bytes()));
    placed.saturating_add(shares_bytes(footprint, state.copies(device)))
}

fn device_state(report: &DeviceReport) -> String {
    match &report.state {
        DeviceState::Idle => "idle".to_owned(),
        DeviceState::Loading { load, .. } => format!("loading, {}", Progress::from(*load)),
        DeviceState::Ready { .. } => "ready".to_owned(),
        DeviceState::Failed { reason, .. } => format!("failed: {reason}"),
    }
}

fn loading(report: &DeviceReport) -> Option<Progress> {
    match report.state {
        DeviceState::Loading { load, .. } => Some(load.into()),
        DeviceState::Idle | DeviceState::Ready { .. } | DeviceState::Failed { .. } => None,
    }
}

fn lost(leader: &Leader) -> impl Iterator<Item = NodeView> + '_ {
    leader.members.lost.iter().map(|(worker, lost)| NodeView {
        id: worker.to_string(),
        role: "worker",
        pid: lost.pid,
        address: lost.address.clone(),
        http_address: None,
        state: if lost.left { "left" } else { "lost" },
        standby: false,
        devices: Vec::new(),
    })
}

fn replica(state: &ClusterState, leader: Option<&Leader>, id: u64, entry: &ReplicaEntry) -> ReplicaView {
    let placement = entry.placement();
    let (reason, loading) = match &entry.phase {
        Phase::Loading { placement } => (None, leader.map(|leader| leader.progress(placement))),
        Phase::Serving { .. } => (None, None),
        Phase::Broken { fault, .. } => (Some(fault.to_string()), None),
        Phase::Unplaceable { reason, .. } => (Some(reason.clone()), None),
    };
    let kv = placement.map(|placement| placement.kv);
    ReplicaView {
        id,
        generation: entry.generation.0,
        phase: entry.phase.name(),
        reason,
        stages: placement.map_or_else(Vec::new, stages),
        kv: kv.map_or_else(KvView::default, |kv: KvShape| KvView {
            block_tokens: kv.block_tokens,
            blocks: kv.blocks,
            format: Some(kv.format.name()),
        }),
        load: leader
            .zip(entry.live())
            .and_then(|(leader, live)| load(leader, live)),
        loading,
        worst_loss: leader
            .zip(entry.serving())
            .and_then(|(leader, placement)| leader.worst_loss(state, placement)),
    }
}

fn stages(placement: &Replica) -> Vec<StageView> {
    let group = |group: &tramontane_model::placement::ExpertGroup| GroupView {
        experts: (group.experts.start(), group.experts.end()),
        holder: group.holder.to_string(),
    };
    let stage = |stage: &tramontane_model::placement::Stage| StageView {
        layers: (stage.layers.start(), stage.layers.end()),
        owner: stage.owner.to_string(),
        groups: stage.groups.iter().map(group).collect(),
    };
    placement.stages.iter().map(stage).collect()
}

fn load(leader: &Leader, placement: &Replica) -> Option<LoadView> {
    let load = scheduler_load(leader, placement)?;
    Some(LoadView {
        running: load.running,
        waiting: load.waiting,
        kv_blocks_used: load.kv_blocks_used,
        kv_blocks_total: load.kv_blocks_total,
    })
}

fn scheduler_load(leader: &Leader, placement: &Replica) -> Option<SchedulerLoad> {
    let report = leader.members.report(&placement.head()?.worker)?;
    report
        .loads
        .iter()
        .find(|load| load.fence == placement.fence())
        .copied()
}

/// Why nothing serves, if nothing does.
fn missing(state: &ClusterState, leader: Option<&Leader>) -> Option<String> {
    if state.replicas.values().any(|entry| entry.serving().is_some()) {
        return None;
    }
    // The one that is nearest to serving says.
    let nearest = state.replicas.iter().min_by_key(|(_, entry)| match &entry.phase {
        Phase::Serving { .. } | Phase::Loading { .. } => 0,
        Phase::Broken { .. } => 1,
        Phase::Unplaceable { .. } => 2,
    });
    let Some((id, entry)) = nearest else {
        let workers = state.workers.len();
        return Some(format!("{workers} workers have joined and none is placed yet"));
    };
    let generation = entry.generation;
    Some(match &entry.phase {
        Phase::Loading { placement } => {
            let progress = leader.map(|leader| leader.progress(placement));
            let progress = progress.unwrap_or_default();
            format!("replica {id} generation {generation} is loading, {progress}")
        }
        Phase::Serving { .. } => return None,
        Phase::Broken { fault, .. } => format!(
            "replica {id} generation {generation} is to be placed anew because {}",
            fault
        ),
        Phase::Unplaceable { reason, .. } => reason.clone(),
    })
}
