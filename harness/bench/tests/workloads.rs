//! Workloads without a comparison: they train, say what they cost, and speak the protocol.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use replica_bench::trainer::Trainer;
use replica_bench::workload::{self, Workload};
use replica_bench::{file, serve};
use replica_nn::Shapes;
use serde_json::Value;

fn tiny() -> Box<dyn Workload> {
    workload::all().into_iter().find(|w| w.name() == "decoder-tiny").unwrap()
}

/// Operations of the products with weights, from the constructors themselves: every weight matrix meets every token
/// of its sequence; only attention's scores come on top.
#[test]
fn operations_cover_every_weight() {
    for workload in workload::all().into_iter().filter(|w| w.dominating().is_some()) {
        let shapes = Shapes::default();
        let _model = workload.model(shapes.builder(), &workload.data().unwrap()).unwrap();
        let tables = ["wte", "wpe", "word", "position", "table", "relative"];
        let weights = shapes.count(|name| {
            name.ends_with("weight")
                && !name.contains("norm")
                && !name.contains("ln")
                && !tables.iter().any(|table| name.contains(table))
        });
        // fewest and most tokens that a weight can meet
        let (least, most) = (6 * weights * workload.tokens() / 4, 6 * weights * workload.tokens());
        let flops = workload.flops();
        assert!(flops > least as f64, "{}: {flops:e} for {weights} weights", workload.name());
        assert!(flops < 3.0 * most as f64, "{}: {flops:e} for {weights} weights", workload.name());
        assert!(workload.dominating().unwrap().flops() < flops, "{}", workload.name());
    }
}

#[test]
fn the_small_decoder_costs_what_was_worked_out_by_hand() {
    let workload = workload::all().into_iter().find(|w| w.name() == "decoder-small").unwrap();
    // 4 layers of 12 * 256^2 and a head of 4096 * 256 for 2048 tokens; 8 * 256 * 257 / 2 pairs
    let expected = 6.0 * 2048.0 * (4.0 * 786_432.0 + 1_048_576.0) + 12.0 * 4.0 * 256.0 * 263_168.0;
    assert_eq!(workload.flops(), expected);
}

#[test]
fn the_same_file_and_the_same_losses_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny();
    let run = |name: &str, threads: usize| {
        let path = folder.path().join(name);
        file::write(tiny.as_ref(), &path).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let turn = pool.install(|| Trainer::load(tiny.as_ref(), &path).unwrap().turn(5).unwrap());
        (std::fs::read(path).unwrap(), turn.losses)
    };
    let (bytes, losses) = run("a", 1);
    assert_eq!((bytes, losses.clone()), run("b", 2));
    assert!(losses[4] < losses[0], "it trains: {losses:?}");
}

#[test]
fn a_process_can_be_asked_for_steps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let tiny = tiny();
    file::write(tiny.as_ref(), &path).unwrap();
    let mut said = Vec::new();
    serve::serve(tiny.as_ref(), &path, "step 2\nstep 1\nquit\n".as_bytes(), &mut said).unwrap();
    let lines: Vec<Value> =
        String::from_utf8(said).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["ready"], true);
    for (line, steps) in [(&lines[1], 2), (&lines[2], 1)] {
        for list in ["seconds", "cpu_seconds", "losses"] {
            assert_eq!(line[list].as_array().unwrap().len(), steps, "{line}");
        }
    }
    assert!(lines[3].get("peak_rss_mb").is_some());
    let error = serve::serve(tiny.as_ref(), &path, "stop\n".as_bytes(), Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "decoder-tiny: `stop` is neither `step N` nor `quit`");
}
