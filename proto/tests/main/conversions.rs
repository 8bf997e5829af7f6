//! Every conversion keeps everything there and back, and names the field it refuses.

use std::collections::BTreeMap;

use prost::Message;
use tramontane_model::grammar::{Grammar, MAX_GRAMMAR_BYTES};
use tramontane_model::ids::{
    DeviceIndex, DeviceRef, Fence, Generation, Origin, ReplicaId, RequestId, SequenceId, StepId, TraceId,
    WorkerId,
};
use tramontane_model::members::{
    DeviceInfo, DeviceReport, DeviceState, LoadReport, SchedulerLoad, StandbyReport, WorkerInfo, WorkerReport,
};
use tramontane_model::placement::{ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Replica, Stage};
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::standby::Share;
use tramontane_model::step::{Opening, RowRole, SequenceChunk, StepBatch, StepBounds, StepResult, Unsampled};
use tramontane_proto::{
    Directive, Ended, ExpertResults, ExpertWork, GenerateSubmission, GenerateUpdate, Joining, LinkMessage,
    Progress, RowsChunk, WireError, WorkerUpdate, v1 as pb,
};

const FENCE: Fence = Fence {
    replica: ReplicaId(3),
    generation: Generation(9),
};

fn device(name: &str) -> DeviceRef {
    DeviceRef {
        worker: WorkerId::new(name).expect("valid"),
        device: DeviceIndex(1),
    }
}

fn replica() -> Replica {
    let group = |start, end, holder: &str| ExpertGroup {
        experts: ExpertRange::new(start, end).expect("not empty"),
        holder: device(holder),
    };
    let stage = Stage {
        layers: LayerRange::new(0, 6).expect("not empty"),
        owner: device("w1"),
        groups: vec![group(0, 8, "w1"), group(8, 16, "w2")],
    };
    let kv = KvShape {
        block_tokens: 16,
        blocks: 100,
        format: KvFormat::F16,
    };
    Replica {
        id: ReplicaId(3),
        generation: Generation(9),
        stages: vec![stage],
        kv,
        steps: StepBounds {
            max_rows: 64,
            max_prefill_rows: 32,
            max_sequences: 16,
            max_waiting: 8,
            max_waiting_tokens: 1 << 33,
            prefix_cache: true,
            target_ms: 25,
            expanded_group: 8,
        },
    }
}

/// Converts to the wire, through bytes, and back.
fn there_and_back<T, W>(value: T) -> Result<T, WireError>
where
    T: Clone + TryFrom<W, Error = WireError>,
    W: Message + Default + From<T>,
{
    let bytes = W::from(value).encode_to_vec();
    T::try_from(W::decode(bytes.as_slice()).expect("decodes what it encoded"))
}

#[test]
fn membership_is_kept() {
    let info = WorkerInfo {
        worker: WorkerId::new("w1").expect("valid"),
        incarnation: u64::MAX,
        address: "127.0.0.1:7001".to_owned(),
        pid: 42,
        version: "0.1.0".to_owned(),
        model_fingerprint: [7; 32],
        devices: vec![DeviceInfo {
            index: DeviceIndex(0),
            adapter: "llvmpipe".to_owned(),
            driver: "Mesa".to_owned(),
            kind: "llvmpipe/22".to_owned(),
            is_cpu: true,
            memory_bytes: 1 << 40,
            max_binding_bytes: 1 << 27,
        }],
    };
    let join = WorkerUpdate::Join(Joining {
        token: vec![1, 2, 3].into(),
        info,
    });
    assert!(there_and_back::<_, pb::WorkerMessage>(join.clone()) == Ok(join));
    let states = [
        DeviceState::Idle,
        DeviceState::Loading {
            fence: FENCE,
            load: LoadReport {
                loaded_bytes: 5,
                total_bytes: 9,
                bytes_per_second: 2,
            },
        },
        DeviceState::Ready { fence: FENCE },
        DeviceState::Failed {
            fence: FENCE,
            reason: "no".to_owned(),
        },
    ];
    let devices = states
        .into_iter()
        .zip(0..)
        .map(|(state, index)| DeviceReport {
            index: DeviceIndex(index),
            held_bytes: 17,
            state,
            standby: StandbyReport {
                loaded_bytes: 3,
                total_bytes: 4,
            },
        })
        .collect();
    let load = SchedulerLoad {
        fence: FENCE,
        running: 1,
        waiting: 2,
        kv_blocks_used: 3,
        kv_blocks_total: 4,
    };
    let report = WorkerUpdate::Report(WorkerReport {
        devices,
        loads: vec![load],
        leaving: true,
    });
    assert!(there_and_back::<_, pb::WorkerMessage>(report.clone()) == Ok(report));
}

/// Copies of a stage and of experts alone; the third device keeps none.
fn copies() -> BTreeMap<DeviceIndex, Vec<Share>> {
    let layers = LayerRange::new(3, 6).expect("not empty");
    let experts = ExpertRange::new(8, 16);
    let share = |owned, experts| Share::new(layers, owned, experts).expect("not empty");
    BTreeMap::from([
        (DeviceIndex(0), vec![share(true, None), share(true, experts)]),
        (DeviceIndex(1), vec![share(false, experts)]),
        (DeviceIndex(2), vec![]),
    ])
}

#[test]
fn directives_are_kept() {
    let peers = BTreeMap::from([(WorkerId::new("w1").expect("valid"), "127.0.0.1:1".to_owned())]);
    let welcome = Directive::Welcome {
        coordinator: tramontane_model::ids::CoordinatorId(2),
        term: 5,
        heartbeat_ms: 100,
        lease_ms: 1000,
    };
    for directive in [
        welcome,
        Directive::Assign {
            replica: replica(),
            peers,
        },
        Directive::Release(FENCE),
        Directive::StandBy(copies()),
        Directive::Leave { refused: None },
        Directive::Leave {
            refused: Some("7 bytes are missing".to_owned()),
        },
    ] {
        assert_eq!(
            there_and_back::<_, pb::CoordinatorMessage>(directive.clone()),
            Ok(directive)
        );
    }
}

#[test]
fn requests_and_tokens_are_kept() {
    let sampling = SamplingParams {
        temperature: 0.7,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.05,
        presence_penalty: -1.5,
        frequency_penalty: 0.5,
        repetition_penalty: 1.25,
        logit_bias: vec![(3, -100.0), (900, 0.5)],
        min_tokens: 6,
        held_back: vec![2, 13],
        grammar: Some(Grammar::new("start: \"a\"").expect("short")),
        seed: u64::MAX,
        choice: 1,
        logprobs: Some(20),
        prompt_logprobs: Some(7),
    };
    let request = GenerateSubmission {
        fence: FENCE,
        request: RequestId(u128::MAX - 5),
        attempt: 2,
        prompt: vec![1, 2, 3],
        emitted: vec![4],
        sampling,
        max_tokens: 10,
        stop_tokens: vec![2],
        ignore_eos: true,
        timeout_ms: 1000,
        priority: -100,
        cache_salt: vec![7; 256],
        trace: TraceId::new(u128::MAX - 7).expect("not zero"),
    };
    assert_eq!(
        there_and_back::<_, pb::GenerateRequest>(request.clone()),
        Ok(request)
    );
    let token = SampledToken {
        token: 5,
        logprob: -0.25,
        top: vec![(5, -0.25), (6, f32::MIN_POSITIVE)],
    };
    let ends = [
        Ended::Stop,
        Ended::Length,
        Ended::Cancelled,
        Ended::Deadline,
        Ended::Failed("x".to_owned()),
        Ended::Grammar("y".to_owned()),
    ];
    let scored = Progress::Prompt {
        first: 1,
        tokens: vec![token.clone(), token.clone()],
    };
    let progress = ends.into_iter().map(Progress::Ended).chain([scored]).chain(
        [(None, None), (Some(0), Some(0)), (Some(9), Some(u64::MAX))].map(
            |(cached_prompt_tokens, queued_us)| Progress::Token {
                index: 3,
                token: token.clone(),
                cached_prompt_tokens,
                queued_us,
            },
        ),
    );
    for progress in progress {
        let update = GenerateUpdate {
            fence: FENCE,
            attempt: 2,
            progress,
        };
        assert_eq!(there_and_back::<_, pb::GenerateEvent>(update.clone()), Ok(update));
    }
}

#[test]
fn a_grammar_that_is_too_long_is_refused_by_its_name() {
    let sampling = |bytes: usize| pb::Sampling {
        grammar: Some("x".repeat(bytes)),
        ..SamplingParams::GREEDY.into()
    };
    assert!(SamplingParams::try_from(sampling(MAX_GRAMMAR_BYTES)).is_ok());
    let error = SamplingParams::try_from(sampling(MAX_GRAMMAR_BYTES + 1)).expect_err("too long");
    assert!(error.to_string().contains("sampling.grammar"), "{error}");
}

fn chunk() -> SequenceChunk {
    SequenceChunk {
        sequence: SequenceId(8),
        open: Some(Opening {
            origin: Origin {
                request: RequestId(77),
                trace: TraceId::new(78).expect("not zero"),
            },
            sampling: SamplingParams {
                repetition_penalty: 0.5,
                ..SamplingParams::GREEDY
            },
            prompt_tokens: 28,
            prompt_before: vec![3, 5],
            generated_before: vec![9, 9],
        }),
        first_position: 30,
        tokens: vec![4, 5],
        role: RowRole::Generated,
        sample: true,
        scored: vec![6],
        block_table: vec![9, 1],
    }
}

#[test]
fn link_messages_are_kept() {
    let sampled = SampledToken {
        token: 5,
        logprob: -1.5,
        top: vec![],
    };
    let messages = [
        LinkMessage::Hello {
            from_stage: 1,
            to_stage: 2,
        },
        LinkMessage::Step(StepBatch {
            fence: FENCE,
            step: StepId(7),
            chunks: vec![chunk()],
            closed: vec![SequenceId(1)],
        }),
        LinkMessage::Rows(RowsChunk {
            step: StepId(7),
            first_row: 1,
            values: vec![0, 1, 2, 3].into(),
        }),
        LinkMessage::Result(StepResult {
            fence: FENCE,
            step: StepId(7),
            tokens: vec![(SequenceId(8), sampled.clone())],
            scored: vec![(SequenceId(9), vec![sampled.clone(), sampled])],
            unsampled: vec![Unsampled {
                sequence: SequenceId(8),
                reason: "no token".to_owned(),
                passing: true,
            }],
        }),
    ];
    for message in messages {
        let bytes = pb::StageMessage::from((FENCE, message.clone())).encode_to_vec();
        let wire = pb::StageMessage::decode(bytes.as_slice()).expect("decodes what it encoded");
        assert_eq!(wire.try_into(), Ok((FENCE, message)));
    }
}

#[test]
fn expert_messages_are_kept() {
    let work = ExpertWork {
        fence: FENCE,
        stage: 1,
        group: 1,
        step: StepId(7),
        layer: 3,
        given_rows: 1,
        rows: vec![0; 8].into(),
        assigned: vec![(0, 9), (1, 8)],
    };
    assert_eq!(there_and_back::<_, pb::ExpertRequest>(work.clone()), Ok(work));
    let results = ExpertResults {
        fence: FENCE,
        step: StepId(7),
        layer: 3,
        results: vec![1; 8].into(),
    };
    assert_eq!(
        there_and_back::<_, pb::ExpertResponse>(results.clone()),
        Ok(results)
    );
}

#[test]
fn what_does_not_convert_names_its_field() {
    let refused = |wire: pb::Replica| Replica::try_from(wire).expect_err("refused").to_string();
    let good = || pb::Replica::from(&replica());
    assert_eq!(
        refused(pb::Replica {
            fence: None,
            ..good()
        }),
        "field fence is missing"
    );
    assert_eq!(
        refused(pb::Replica { kv: None, ..good() }),
        "field replica.kv is missing"
    );
    for format in [0, 7] {
        let mut unknown = good();
        if let Some(kv) = &mut unknown.kv {
            kv.format = format;
        }
        assert_eq!(
            refused(unknown),
            format!("field replica.kv.format is not valid: {format} is no known format")
        );
    }
    assert_eq!(
        refused(pb::Replica {
            steps: Some(pb::StepBounds {
                max_rows: 8193,
                max_prefill_rows: 32,
                max_sequences: 16,
                max_waiting: 8,
                max_waiting_tokens: 1,
                prefix_cache: false,
                target_ms: 40,
                expanded_group: 0,
            }),
            ..good()
        }),
        "field replica.steps is not valid: steps.max_rows is 8193, it must be between 2 and 8192"
    );
    let mut empty = good();
    empty.stages[0].layers = Some(pb::IndexRange { start: 4, end: 4 });
    assert_eq!(refused(empty), "field stage.layers is not valid: 4..4 is empty");
    let mut unheld = good();
    unheld.stages[0].groups[0].holder = None;
    assert!(refused(unheld).contains("group.holder"));
    let mut many = good();
    many.stages = vec![many.stages[0].clone(); 1025];
    assert_eq!(
        refused(many),
        "field replica.stages has 1025 stages, at most 1024 are allowed"
    );

    let share = |wire: pb::Share| Share::try_from(wire).expect_err("refused").to_string();
    let range = |start, end| Some(pb::IndexRange { start, end });
    let whole = pb::Share {
        layers: range(1, 2),
        owned: true,
        experts: range(0, 4),
    };
    assert_eq!(
        share(pb::Share {
            layers: None,
            ..whole
        }),
        "field share.layers is missing"
    );
    let experts = range(4, 4);
    assert!(share(pb::Share { experts, ..whole }).contains("share.experts is not valid: 4..4 is empty"));
    let nothing = pb::Share {
        owned: false,
        experts: None,
        ..whole
    };
    assert!(share(nothing).contains("neither their owner's part nor experts"));
    let crowded = pb::CoordinatorMessage {
        body: Some(pb::coordinator_message::Body::StandBy(pb::StandBy {
            devices: vec![pb::DeviceCopies {
                device: 0,
                shares: vec![whole; 4097],
            }],
        })),
    };
    let error = Directive::try_from(crowded).expect_err("refused").to_string();
    assert_eq!(
        error,
        "field stand_by.shares has 4097 shares, at most 4096 are allowed"
    );

    let chunk = |change: fn(&mut pb::SequenceChunk)| {
        let mut wire = pb::SequenceChunk::from(chunk());
        change(&mut wire);
        SequenceChunk::try_from(wire).expect_err("refused").to_string()
    };
    assert!(chunk(|c| c.role = 0).contains("chunk.role"));
    assert!(chunk(|c| c.role = 77).contains("chunk.role"));
    assert!(chunk(|c| c.tokens = vec![0; 8193]).contains("chunk.tokens"));
    assert!(
        chunk(|c| if let Some(open) = &mut c.open {
            open.sampling = Some(pb::Sampling {
                top_p: f32::NAN,
                ..pb::Sampling::default()
            });
        })
        .contains("sampling")
    );
    let open = |change: fn(&mut pb::Opening)| {
        let mut wire = pb::SequenceChunk::from(self::chunk());
        change(wire.open.as_mut().expect("it opens"));
        SequenceChunk::try_from(wire).expect_err("refused").to_string()
    };
    assert!(open(|open| open.sampling = None).contains("open.sampling"));
    assert!(
        open(|open| open.request = vec![1; 15].into()).contains("open.request is not valid: it has 15 bytes")
    );
    assert!(
        open(|open| open.trace = vec![1; 17].into()).contains("open.trace is not valid: it has 17 bytes")
    );
    assert!(open(|open| open.trace = vec![0; 16].into()).contains("open.trace is not valid: it is zero"));
    let bias = pb::TokenBias { token: 1, bias: 1.0 };
    let sampling = pb::Sampling {
        logit_bias: vec![bias; 301],
        ..SamplingParams::GREEDY.into()
    };
    let refused = SamplingParams::try_from(sampling)
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("sampling.logit_bias"), "{refused}");
}
