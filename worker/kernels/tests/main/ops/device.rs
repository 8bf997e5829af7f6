//! Device memory, order of writes and ops, and what goes wrong: memory, limits, deadlines, adapters, a lost device.

use std::time::{Duration, Instant};

use tramontane_kernels::gpu;
use tramontane_kernels::gpu::{DeviceConfig, GpuBackend, GpuBuffer};
use tramontane_kernels::ops::{Backend, DeviceBuffer, Embed, Linear, OpError, ReadRange, Rows, WeightFormat};

use super::rig::{Numbers, Rig, Weights, deadline, device, open};

#[test]
fn writes_and_ops_take_effect_in_program_order() {
    let mut device = device();
    let rig = &mut Rig(&mut *device);
    let table = rig.matrix(&Weights::new(&mut Numbers::new(30), 8, 16, WeightFormat::Bf16), 8);
    let tokens = rig.words(&[0_u32; 4]);
    let outputs: Vec<_> = (0..8_u32)
        .map(|token| {
            rig.0.write(&tokens, 0, bytemuck::bytes_of(&token)).expect("fits");
            let output = rig.zeros(16);
            let op = Embed {
                tokens: &tokens,
                table: &table,
                output: &output,
                rows: Rows::new(1, 0),
            };
            rig.0.embed(&op).expect("valid");
            output
        })
        .collect();
    let whole = rig.words(&[0_u32, 1, 2, 3, 4, 5, 6, 7]);
    let expected = rig.zeros(8 * 16);
    let op = Embed {
        tokens: &whole,
        table: &table,
        output: &expected,
        rows: Rows::new(8, 0),
    };
    rig.0.embed(&op).expect("valid");
    let expected = rig.rows(&expected, 8, 16);
    for (output, expected) in outputs.iter().zip(expected) {
        assert_eq!(rig.read(output), expected);
    }
}

#[test]
fn a_write_larger_than_the_staging_memory_arrives_whole() {
    let mut device = device();
    let mut numbers = Numbers::new(31);
    let words: Vec<u32> = (0..(40 << 20) / 4 + 3).map(|_| numbers.bits()).collect();
    let buffer = device.alloc("large", words.len() as u64 * 4 + 8).expect("room");
    device
        .write(&buffer, 8, bytemuck::cast_slice(&words))
        .expect("fits");
    let range = ReadRange {
        buffer,
        offset: 8,
        bytes: words.len() as u64 * 4,
    };
    let read = device.read(&[range], deadline()).expect("runs");
    assert!(bytemuck::pod_collect_to_vec::<u8, u32>(&read[0]) == words);
}

/// Reads a buffer whole.
fn bytes_of(device: &mut GpuBackend, buffer: &GpuBuffer) -> Vec<u8> {
    let range = ReadRange {
        buffer: buffer.clone(),
        offset: 0,
        bytes: buffer.bytes(),
    };
    let mut read = device.read(&[range], deadline()).expect("runs");
    read.remove(0)
}

#[test]
fn weights_have_what_was_written_before_and_after_their_first_use_and_zeros_elsewhere() {
    const SIZE: usize = 9 << 20;
    let mut device = open(64 << 20);
    let mut numbers = Numbers::new(37);
    // Memory that is used again is not zero of itself.
    let before = device.alloc_weights("before", SIZE as u64).expect("room");
    device.write(&before, 0, &vec![0xa5; SIZE]).expect("fits");
    assert!(bytes_of(&mut device, &before).iter().all(|&byte| byte == 0xa5));
    drop(before);
    let weights = device.alloc_weights("weights", SIZE as u64 - 3).expect("room");
    assert_eq!((weights.bytes(), device.held_bytes()), (SIZE as u64, SIZE as u64));
    let mut expected = vec![0; SIZE];
    let mut write = |device: &mut GpuBackend, start: usize, length: usize| {
        let words: Vec<u32> = (0..length / 4).map(|_| numbers.bits()).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        device.write(&weights, start as u64, bytes).expect("fits");
        expected[start..start + length].copy_from_slice(bytes);
        expected.clone()
    };
    for (start, length) in [
        (5 << 20, 2 << 20),
        (4100, 4),
        (4096, 4),
        (1 << 20, 4 << 20),
        (SIZE - 8, 4),
    ] {
        write(&mut device, start, length);
    }
    let first = write(&mut device, 4, 0);
    assert!(bytes_of(&mut device, &weights) == first);
    write(&mut device, 0, 8);
    let second = write(&mut device, 3 << 20, 6 << 20);
    assert!(bytes_of(&mut device, &weights) == second);
}

#[test]
fn memory_is_zeroed_counted_and_limited() {
    let mut device = open(1 << 20);
    let first = device.alloc("first", 700_001).expect("room");
    assert_eq!((first.bytes(), device.held_bytes()), (700_016, 700_016));
    let error = device.alloc("second", 400_000).expect_err("too large");
    let expected = OpError::OutOfMemory {
        label: "second".to_owned(),
        bytes: 400_000,
        held: 700_016,
    };
    assert_eq!(error, expected);
    assert!(Rig(&mut device).read(&first).iter().all(|&word| word == 0));
    drop(first);
    assert_eq!(device.held_bytes(), 0);
    device.alloc("second", 400_000).expect("room again");
}

#[test]
fn buffers_that_cannot_be_bound_and_copies_outside_are_refused() {
    let mut device = device();
    let limit = device.max_binding_bytes();
    let error = device.alloc("huge", limit + 1).expect_err("refused");
    assert!(
        matches!(error, OpError::BindingLimit { bytes, .. } if bytes == limit + 1),
        "{error}"
    );
    let error = device.alloc_weights("huge", limit + 1).expect_err("refused");
    assert!(matches!(error, OpError::BindingLimit { .. }), "{error}");
    let buffer = device.alloc("small", 32).expect("room");
    for buffer in [&buffer, &device.alloc_weights("small", 32).expect("room")] {
        for (offset, bytes) in [(2, 4), (28, 8), (u64::MAX - 3, 8)] {
            let error = device
                .write(buffer, offset, &vec![0; bytes])
                .expect_err("refused");
            assert!(matches!(error, OpError::Range { size: 32, .. }), "{error}");
        }
    }
    let range = ReadRange {
        buffer,
        offset: 16,
        bytes: 20,
    };
    let error = device.read(&[range], deadline()).expect_err("refused");
    assert!(matches!(error, OpError::Range { .. }), "{error}");
}

#[test]
fn a_passed_deadline_is_an_error_and_the_device_goes_on() {
    let mut device = open(1 << 28);
    let rig = &mut Rig(&mut device);
    let numbers = &mut Numbers::new(32);
    let weight = rig.matrix(&Weights::new(numbers, 1024, 1024, WeightFormat::Bf16), 1024);
    let input = rig.words(&numbers.floats(64 * 1024));
    let output = rig.zeros(64 * 1024);
    for _ in 0..20 {
        let op = Linear {
            input: &input,
            weight: &weight,
            output: &output,
            add: false,
            rows: Rows::new(0, 64),
        };
        rig.0.linear(&op).expect("valid");
    }
    let range = ReadRange {
        buffer: output.clone(),
        offset: 0,
        bytes: output.bytes(),
    };
    let error = rig
        .0
        .read(&[range], Instant::now() + Duration::from_micros(1))
        .expect_err("too early");
    assert!(matches!(error, OpError::Timeout { .. }), "{error}");
    assert!(rig.read(&output).iter().any(|&word| word != 0));
}

#[test]
fn two_devices_share_an_adapter_and_have_one_kind() {
    let (mut first, mut second) = (open(1 << 24), open(1 << 24));
    assert_eq!(first.info().kind, second.info().kind);
    let weights = Weights::new(&mut Numbers::new(33), 100, 64, WeightFormat::Fp8Block);
    let inputs = Numbers::new(34).floats(3 * 64);
    let run = |device: &mut gpu::GpuBackend| {
        let rig = &mut Rig(device);
        let (weight, input) = (rig.matrix(&weights, 100), rig.words(&inputs));
        let output = rig.zeros(3 * 100);
        let op = Linear {
            input: &input,
            weight: &weight,
            output: &output,
            add: false,
            rows: Rows::new(1, 2),
        };
        rig.0.linear(&op).expect("valid");
        rig.read(&output)
    };
    let results = run(&mut first);
    assert_eq!(run(&mut second), results);
    drop(first);
    assert_eq!(run(&mut second), results);
}

#[test]
fn an_adapter_that_is_not_there_is_told_with_those_that_are() {
    let there = device().info().name.clone();
    let config = DeviceConfig {
        adapter: Some("Voodoo2".to_owned()),
        ..DeviceConfig::default()
    };
    let message = gpu::open(&config).expect_err("no such adapter").to_string();
    assert!(
        message.contains("Voodoo2") && message.contains(&there),
        "{message}"
    );
    let config = DeviceConfig {
        adapter: Some(there[..4].to_owned()),
        ..DeviceConfig::default()
    };
    let device = gpu::open(&config).expect("part of its name");
    assert_eq!(device.info().name, there);
    assert!(device.info().memory_bytes > 1 << 26, "{:?}", device.info());
}

#[test]
fn a_lost_device_stays_lost() {
    let mut device = open(1 << 24);
    let buffer = device.alloc("a buffer", 16).expect("room");
    let weights = device.alloc_weights("weights", 16).expect("room");
    device.lose();
    let range = ReadRange {
        buffer: buffer.clone(),
        offset: 0,
        bytes: 16,
    };
    let is_lost = |error: OpError| matches!(error, OpError::DeviceLost { .. });
    for _ in 0..2 {
        assert!(device.alloc("another", 16).is_err_and(is_lost));
        assert!(device.alloc_weights("another", 16).is_err_and(is_lost));
        assert!(device.write(&buffer, 0, &[0; 16]).is_err_and(is_lost));
        assert!(device.write(&weights, 0, &[0; 16]).is_err_and(is_lost));
        assert!(device.submit().is_err_and(is_lost));
        assert!(
            device
                .read(std::slice::from_ref(&range), deadline())
                .is_err_and(is_lost)
        );
    }
}
