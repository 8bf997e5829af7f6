//! `tramontane-bench-kernels` on the adapter that there is: what it says of the small model's layers, and of what it
//! cannot measure.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tramontane_kernels::figures::{KernelFigures, Line, Part, Role, VERSION};

fn small_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cli/assets/mini-large-3/params.json")
}

fn run(arguments: &[&str], shape: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tramontane-bench-kernels"))
        .args(["--shape", shape])
        .args(arguments)
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Of a run that succeeds, the file and the table.
fn figures(arguments: &[&str], shape: &str) -> (KernelFigures, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("figures.json");
    let json = ["--json", file.to_str().expect("UTF-8")];
    let output = run(&[arguments, &json].concat(), shape);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = std::fs::read_to_string(&file).expect("a file");
    let figures = serde_json::from_str(&written).expect("figures");
    (figures, text(&output.stdout))
}

/// What a line is of.
fn name(line: &Line) -> String {
    let weight = line.weight.as_ref();
    weight.map_or_else(|| line.op.clone(), |weight| format!("{} {weight}", line.op))
}

/// The ops of a layer with latent attention, in their order; then those of its feed-forward.
const ATTENTION: [&str; 11] = [
    "rms_norm attention_norm",
    "linear wq_a",
    "rms_norm q_a_norm",
    "linear wq_b",
    "linear wkv_a",
    "latent_write kv_a_norm",
    "queries wkv_b",
    "attention",
    "values wkv_b",
    "linear wo",
    "rms_norm ffn_norm",
];
const MOE: [&str; 6] = [
    "route gate",
    "gate_up shared w1, w3",
    "linear shared w2",
    "experts",
    "combine",
    "layer",
];
const DENSE: [&str; 3] = ["gate_up w1, w3", "linear w2", "layer"];
const ENDS: [&str; 4] = ["embed output", "rms_norm norm", "linear output", "sample"];

#[test]
fn every_op_of_the_small_model_is_measured() {
    let shape = small_model();
    let arguments = [
        "--rows",
        "1,3",
        "--prefill",
        "40",
        "--context",
        "70,100000",
        "--repeats",
        "2",
    ];
    let (figures, table) = figures(&arguments, shape.to_str().expect("UTF-8"));
    assert_eq!(figures.version, VERSION);
    assert_eq!(figures.model.format, "fp8");
    assert_eq!((figures.model.experts, figures.model.experts_per_row), (16, 4));
    assert!(!figures.device.name.is_empty() && !figures.device.driver.is_empty());
    assert!(figures.device.kind.contains(&figures.device.driver));
    assert!(figures.ceilings.copy_bytes_per_s > 1e8 && figures.ceilings.product_flops_per_s > 1e8);

    let of = |part: Part, role: Role, rows: u32| -> Vec<&Line> {
        let lines = figures.lines.iter();
        // Of a prompt one row is sampled.
        let rows_of =
            |line: &Line| (line.role, line.rows) == (role, rows) || (part, line.rows) == (Part::Ends, 1);
        lines
            .filter(|line| line.part == part && line.role == role && rows_of(line))
            .collect()
    };
    let names = |lines: &[&Line]| lines.iter().map(|line| name(line)).collect::<Vec<_>>();
    for (role, rows) in [(Role::Generated, 3), (Role::Given, 40)] {
        assert_eq!(
            names(&of(Part::MoeLayer, role, rows)),
            [ATTENTION.as_slice(), &MOE].concat()
        );
        assert_eq!(
            names(&of(Part::DenseLayer, role, rows)),
            [ATTENTION.as_slice(), &DENSE].concat()
        );
    }
    assert_eq!(names(&of(Part::Ends, Role::Given, 40)), ENDS);
    for part in [Part::MoeLayer, Part::DenseLayer] {
        let expanded = of(part, Role::Expanded, 40);
        assert_eq!(names(&expanded), ["expanded_attention wkv_b", "layer"]);
    }
    assert_eq!(figures.lines.len(), 3 * (17 + 14 + 4) + 2 * 2);

    let moe = of(Part::MoeLayer, Role::Generated, 3);
    let line = |wanted: &str| *moe.iter().find(|line| name(line) == wanted).expect(wanted);
    // wq_a is [128, 256] in BF16; wo [256, 256] in FP8 with four scales, added to the residual stream.
    let wq_a = line("linear wq_a");
    assert_eq!(wq_a.weight_bytes, 128 * 256 * 2);
    assert_eq!((wq_a.input_bytes, wq_a.output_bytes), (3 * 256 * 4, 3 * 128 * 4));
    assert_eq!(wq_a.flops, 2 * 3 * 128 * 256);
    let wo = line("linear wo");
    assert_eq!(wo.weight_bytes, 256 * 256 + 4 * 4);
    assert_eq!((wo.input_bytes, wo.output_bytes), (2 * 3 * 256 * 4, 3 * 256 * 4));
    // wkv_b is [8 * (32 + 32), 64]: half of it for queries, half for values.
    assert_eq!(
        line("queries wkv_b").weight_bytes,
        line("values wkv_b").weight_bytes
    );
    assert_eq!(line("queries wkv_b").weight_bytes, (512 * 64 + 16) / 64 * 32);
    // Three sequences of 70 tokens, 64 + 16 values each, 8 heads.
    let attention = line("attention");
    let of_value = attention.cache_bytes / (3 * 70 * 80);
    assert_eq!(attention.cache_bytes, of_value * 3 * 70 * 80);
    assert!(of_value == 2 || of_value == 4, "{of_value} bytes of a value");
    assert_eq!(attention.flops, 2 * 3 * 70 * 8 * (80 + 64));
    assert_eq!(attention.context, Some(70));
    // Experts of [128, 256]: codes, and a section of scales for each matrix.
    let experts = line("experts");
    let chosen = experts.experts.expect("experts");
    assert!((4..=12).contains(&chosen), "{chosen} of three rows' experts");
    assert_eq!(experts.weight_bytes, u64::from(chosen) * 3 * (128 * 256 + 16));
    assert_eq!(experts.flops, 2 * 3 * 4 * 3 * 128 * 256);
    // The whole is its parts.
    let whole = line("layer");
    let parts = moe.iter().filter(|line| line.op != "layer");
    let (bytes, flops) = parts.fold((0, 0), |sum, line| (sum.0 + line.bytes(), sum.1 + line.flops));
    assert_eq!((whole.bytes(), whole.flops), (bytes, flops));
    // A prompt's 40 rows see 31 to 70 tokens.
    let given = of(Part::MoeLayer, Role::Given, 40);
    let attention = given
        .iter()
        .find(|line| line.op == "attention")
        .expect("attention");
    let seen: u64 = (31..=70).sum();
    assert_eq!(attention.flops, 2 * seen * 8 * (80 + 64));
    // The same rows over 70 tokens' keys and values, with heads of 32 + 16 and 32.
    let expanded = of(Part::MoeLayer, Role::Expanded, 40)[0];
    assert_eq!(
        expanded.flops,
        2 * 8 * (70 * (32 + 32) * 64 + seen * (32 + 16 + 32))
    );
    assert_eq!(expanded.weight_bytes, 512 * 64 + 16);
    assert_eq!(expanded.context, Some(70));

    for line in &figures.lines {
        let name = name(line);
        assert!(
            line.seconds > 0.0 && line.seconds < 60.0,
            "{name}: {} s",
            line.seconds
        );
        let copy = line.copy_share(&figures.ceilings);
        assert!(copy > 0.0 && copy < 20.0, "{name}: {copy} of the copy");
        let product = line.product_share(&figures.ceilings);
        let computes = line.flops > 0;
        assert!(
            (product > 0.0) == computes && product < 20.0,
            "{name}: {product} of the product"
        );
        assert!(table.contains(&name), "{name} is not in the table");
    }
    // What the model has no context for.
    assert_eq!(figures.missing.len(), 8);
    for missing in &figures.missing {
        assert!(missing.what.ends_with("context 100000"), "{missing:?}");
        assert_eq!(missing.reason, "the model's context is 4096 tokens");
        assert!(table.contains(&missing.what));
    }
}

#[test]
fn a_model_of_grouped_attention_is_measured_and_the_fastest_kernels_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("params.json");
    let params = r#"{"dim": 128, "n_layers": 2, "head_dim": 32, "hidden_dim": 256, "n_heads": 4, "n_kv_heads": 2,
        "rope_theta": 10000.0, "norm_eps": 1e-05, "vocab_size": 2048, "tied_embeddings": true,
        "max_position_embeddings": 4096}"#;
    std::fs::write(&file, params).expect("written");
    let arguments = [
        "--rows",
        "2",
        "--prefill",
        "none",
        "--context",
        "50",
        "--repeats",
        "1",
        "--layers",
        "2",
        "--format",
        "nvfp4",
        "--det-cost",
    ];
    let (figures, table) = figures(&arguments, file.to_str().expect("UTF-8"));
    let names: Vec<String> = figures.lines.iter().map(name).collect();
    let expected = [
        "rms_norm attention_norm",
        "linear wq",
        "linear wk",
        "linear wv",
        "rotate_qkv",
        "attention",
        "linear wo",
        "rms_norm ffn_norm",
        "gate_up w1, w3",
        "linear w2",
        "layer",
    ];
    assert_eq!(names, [expected.as_slice(), &ENDS].concat());
    assert!(figures.missing.is_empty(), "{:?}", figures.missing);
    let gate_up = &figures.lines[8];
    // Two matrices of [256, 128]: half a byte a code, a multiplier and a scale for each 16.
    assert_eq!(gate_up.weight_bytes, 2 * (256 * 64 + 16 + 256 * 8));
    for line in &figures.lines {
        match &line.fastest {
            None => assert_eq!(line.op, "layer"),
            Some(fastest) => {
                assert!(
                    fastest.seconds > 0.0 && fastest.seconds <= line.seconds,
                    "{line:?}"
                );
                assert_eq!(
                    fastest.sizes.is_none(),
                    fastest.seconds == line.seconds,
                    "{line:?}"
                );
            }
        }
    }
    assert!(table.contains("all ops at 2 generated rows: "), "{table}");
}

#[test]
fn ops_without_a_context_are_measured_where_no_context_fits() {
    let shape = small_model();
    let arguments = [
        "--rows",
        "2",
        "--prefill",
        "none",
        "--context",
        "100000",
        "--repeats",
        "1",
        "--parts",
        "dense",
    ];
    let (figures, _) = figures(&arguments, shape.to_str().expect("UTF-8"));
    let names: Vec<String> = figures.lines.iter().map(name).collect();
    let all = [ATTENTION.as_slice(), &DENSE].concat();
    let expected: Vec<&str> = all
        .into_iter()
        .filter(|name| !["attention", "layer"].contains(name))
        .collect();
    assert_eq!(names, expected);
    assert_eq!(figures.missing.len(), 1, "{:?}", figures.missing);
}

#[test]
fn what_does_not_fit_is_told() {
    let arguments = ["--rows", "1", "--prefill", "none", "--memory-bytes", "400000000"];
    let (figures, table) = figures(&arguments, "mistral-large-3");
    assert_eq!(figures.lines, []);
    let what: Vec<&str> = figures
        .missing
        .iter()
        .map(|missing| missing.what.as_str())
        .collect();
    assert_eq!(
        what,
        ["layer with experts", "dense layer", "embedding, head and sampler"]
    );
    for missing in &figures.missing {
        assert!(missing.reason.contains("the device has 400000000"), "{missing:?}");
        let told = format!("cannot measure {}: {}", missing.what, missing.reason);
        assert!(table.contains(&told), "{table}");
    }
}

#[test]
fn a_budget_that_is_spent_is_told() {
    let shape = small_model();
    let arguments = [
        "--rows",
        "1,2,3,4",
        "--context",
        "50,60,70",
        "--repeats",
        "1000",
        "--budget",
        "1",
    ];
    let (figures, _) = figures(&arguments, shape.to_str().expect("UTF-8"));
    let spent = figures
        .missing
        .iter()
        .filter(|missing| missing.reason.contains("--budget"));
    assert!(spent.count() > 0, "{:?}", figures.missing);
}

#[test]
fn options_that_cannot_be_are_named() {
    let shape = small_model();
    let shape = shape.to_str().expect("UTF-8");
    for (arguments, shape, named) in [
        ([].as_slice(), "large-4", "--shape"),
        (&["--format", "int4"], shape, "--format"),
        (&["--rows", "1,zero"], shape, "--rows"),
        (&["--prefill", "0"], shape, "--prefill"),
        (&["--prefill", "100000"], shape, "--prefill"),
        (&["--rows", "5000"], shape, "--rows"),
        (&["--context", "none"], shape, "--context"),
        (&["--experts", "2"], shape, "params.json"),
        (&["--experts", "8"], "ministral-8b", "--experts"),
        (&["--budget", "0"], shape, "--budget"),
        (&["--parts", "middle"], shape, "--parts"),
        (&["--adapter", "no such adapter"], shape, "no such adapter"),
    ] {
        let output = run(arguments, shape);
        assert!(!output.status.success(), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(named), "{arguments:?} {shape}: {error}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn figures_of_later_versions_are_read_where_fields_were_added() {
    let text = r#"{"version": 1, "device": {"name": "a", "driver": "b", "kind": "c", "is_cpu": false, "memory_bytes": 1},
        "model": {"shape": "s", "format": "fp8", "experts": 0, "experts_per_row": 0, "layers": 1,
                  "cache_format": "f16"}, "clock": "device",
        "ceilings": {"copy_bytes_per_s": 4e12, "copy_by": "x", "product_flops_per_s": 5e14, "product_by": "y"},
        "lines": [{"part": "moe_layer", "op": "linear", "weight": "wo", "role": "generated", "rows": 1, "seconds": 1e-4,
            "weight_bytes": 100000000, "cache_bytes": 0, "input_bytes": 60000000, "output_bytes": 40000000,
            "flops": 10000000000, "more": true}],
        "missing": [], "run_seconds": 2.0, "later": []}"#;
    let figures: KernelFigures = serde_json::from_str(text).expect("figures");
    let line = &figures.lines[0];
    assert_eq!(line.bytes(), 200_000_000);
    assert!((line.copy_share(&figures.ceilings) - 0.5).abs() < 1e-9);
    assert!((line.product_share(&figures.ceilings) - 0.2).abs() < 1e-9);
    assert_eq!(
        line.bound(&figures.ceilings),
        tramontane_kernels::figures::Bound::Memory
    );
}
