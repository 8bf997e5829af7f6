//! Headers good, bad and mutated.

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend((0..data_bytes).map(|byte| byte as u8));
    bytes
}

fn parsed(bytes: &[u8]) -> (Vec<Entry>, Faults) {
    let mut faults = Faults::default();
    (parse("f.safetensors", bytes, &mut faults), faults)
}

fn only_fault(bytes: &[u8]) -> String {
    let (_, faults) = parsed(bytes);
    assert_eq!(faults.total(), 1, "{faults}");
    faults.to_string()
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
    "a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},
    "scalar":{"dtype":"F32","shape":[],"data_offsets":[16,20]},
    "none":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]}}"#;

#[test]
fn a_good_header_gives_every_tensor() {
    let bytes = file(GOOD, 20);
    let (entries, faults) = parsed(&bytes);
    assert_eq!(faults.total(), 0, "{faults}");
    let start = 8 + GOOD.len();
    let found: Vec<_> = entries
        .iter()
        .map(|entry| (entry.name.as_str(), entry.span.clone()))
        .collect();
    let at = |begin, end| start + begin..start + end;
    assert_eq!(
        found,
        [
            ("a", at(0, 4)),
            ("b", at(4, 16)),
            ("none", at(4, 4)),
            ("scalar", at(16, 20))
        ]
    );
    assert_eq!(
        (entries[1].dtype, entries[1].shape.as_slice()),
        (Dtype::Bf16, [2, 3].as_slice())
    );
}

#[test]
fn lengths_that_cannot_be_are_refused_with_their_number() {
    assert!(only_fault(&[]).contains("has 0 bytes"));
    assert!(only_fault(&[1, 0, 0]).contains("has 3 bytes"));
    let mut bytes = file(GOOD, 20);
    for claimed in [1_000_000_000, MAX_HEADER_BYTES + 1, u64::MAX] {
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        let expected = format!("claims a header of {claimed} bytes, expected at most 100000000");
        assert!(only_fault(&bytes).contains(&expected));
    }
    bytes[..8].copy_from_slice(&5000_u64.to_le_bytes());
    let expected = format!("its header ends at byte 5008, the file at byte {}", bytes.len());
    assert!(only_fault(&bytes).contains(&expected));
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let whole = file(GOOD, 20);
    for length in 0..whole.len() {
        assert!(
            parsed(&whole[..length]).1.total() > 0,
            "{length} bytes were taken"
        );
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(only_fault(&longer).contains("bytes 20..21 of the data belong to no tensor"));
}

#[test]
fn each_impossible_tensor_is_refused_by_name() {
    let u8s = |offsets: &str| format!(r#""dtype":"U8","shape":[4],"data_offsets":{offsets}"#);
    let cases = [
        (
            u8s("[0,9]"),
            "t has the offsets 0..9, expected a range within the 4 bytes",
        ),
        (u8s("[4,0]"), "t has the offsets 4..0"),
        (
            u8s("[18446744073709551615,3]"),
            "t has the offsets 18446744073709551615..3",
        ),
        (u8s("[0,3]"), "t spans 3 bytes, its shape [4] in U8 takes 4"),
        (u8s("[-1,3]"), "tensor t: invalid value: integer `-1`"),
        (u8s("[0]"), "tensor t: invalid length 1"),
        (
            r#""dtype":"U8","shape":[4294967296,4294967296,2],"data_offsets":[0,4]"#.to_owned(),
            "takes more than a file can hold",
        ),
        (
            r#""dtype":"Q3","shape":[4],"data_offsets":[0,4]"#.to_owned(),
            "unknown dtype \"Q3\"",
        ),
        (
            r#""dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]"#.to_owned(),
            "more than 8 dimensions",
        ),
        (
            r#""shape":[4],"data_offsets":[0,4]"#.to_owned(),
            "tensor t: missing field `dtype`",
        ),
    ];
    for (tensor, expected) in cases {
        let (_, faults) = parsed(&file(&format!("{{\"t\":{{{tensor}}}}}"), 4));
        let text = faults.to_string();
        assert!(
            text.contains(expected) && text.contains("f.safetensors"),
            "{text}\n{expected}"
        );
    }
}

#[test]
fn tensors_may_neither_overlap_nor_leave_bytes_out() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"x":{{"dtype":"U8","shape":[4],"data_offsets":{first}}},"y":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#
        )
    };
    let overlap = only_fault(&file(&two("[0,4]", "[3,7]"), 7));
    assert!(
        overlap.contains("tensor y begins at byte 3 of the data, within x, which ends at 4"),
        "{overlap}"
    );
    let same = only_fault(&file(&two("[0,4]", "[0,4]"), 4));
    assert!(
        same.contains("tensor y begins at byte 0 of the data, within x"),
        "{same}"
    );
    let gap = only_fault(&file(&two("[0,4]", "[5,9]"), 9));
    assert!(
        gap.contains("bytes 4..5 of the data belong to no tensor"),
        "{gap}"
    );
    let late = only_fault(&file(&two("[1,5]", "[5,9]"), 9));
    assert!(late.contains("bytes 0..1 of the data"), "{late}");
}

#[test]
fn a_name_given_twice_is_refused() {
    let tensor = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    let fault = only_fault(&file(&format!(r#"{{"t":{tensor},"t":{tensor}}}"#), 4));
    assert_eq!(fault, "f.safetensors: names tensor t twice");
}

#[test]
fn names_that_would_spoil_a_log_are_refused() {
    let tensor = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    for name in ["a\\nb".to_owned(), "x".repeat(257)] {
        let fault = only_fault(&file(&format!(r#"{{"{name}":{tensor}}}"#), 4));
        assert!(
            fault.contains("is not one of a tensor") && !fault.contains('\n'),
            "{fault}"
        );
    }
}

#[test]
fn what_is_not_an_object_is_refused() {
    for header in ["", "7", "[]", "{\"a\":", "{\"a\":[]}", &"{\"a\":".repeat(10_000)] {
        assert!(
            only_fault(&file(header, 0)).contains("f.safetensors: header: "),
            "{header}"
        );
    }
    let mut bytes = file("{\"a\"", 0);
    bytes[10] = 0xff;
    only_fault(&bytes);
}

proptest! {
    /// Whatever bytes a file has, nothing panics, each tensor given lies within it and spans what its shape
    /// takes; and what passes here, the safetensors crate takes as well.
    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut bytes = file(GOOD, 20);
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                // Digits and brackets keep more of the JSON whole than random bytes do.
                1 => bytes[at] = b"0123456789[]{},:\""[usize::from(byte) % 17],
                2 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        let (entries, faults) = parsed(&bytes);
        for entry in &entries {
            let elements: u64 = entry.shape.iter().product();
            prop_assert!(entry.span.start >= 8 && entry.span.end <= bytes.len());
            prop_assert_eq!(entry.span.len() as u64, elements * entry.dtype.bytes());
        }
        if faults.total() == 0 {
            let other = SafeTensors::deserialize(&bytes);
            prop_assert!(other.is_ok(), "{:?} {}", other, String::from_utf8_lossy(&bytes));
        }
    }
}
