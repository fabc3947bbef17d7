//! Image tasks: what is embedded, and what lies in `REPLICA_DATA` if that is set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;

use replica_datasets::tasks::{Cifar10Jpeg, Digits, MnistTest, images};
use replica_datasets::{Coding, Error, Inputs, SequenceTask, Sources, TaskSpec};

fn digits(side: usize, seed: u64) -> SequenceTask {
    Digits { side, seed }.load(&Sources::offline("nowhere")).unwrap()
}

/// How many items of each class.
fn counts(task: &SequenceTask) -> Vec<usize> {
    let splits = [&task.train, &task.valid, &task.test];
    let labels: Vec<u32> = splits.iter().flat_map(|split| (0..split.len()).map(|i| split.label(i))).collect();
    (0..10).map(|class| labels.iter().filter(|&&l| l == class).count()).collect()
}

#[test]
fn embedded_digits_are_the_published_ones() {
    let task = digits(8, 0);
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [1_197, 300, 300]);
    // as the data set's own description counts them
    assert_eq!(counts(&task), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    assert_eq!(task.files[0].source, "embedded");
    assert!(task.files[0].verified);
    let levels: HashSet<u8> = task.train.document(0, 0).iter().copied().collect();
    assert!(
        levels.iter().all(|&level| (0..=16).any(|n| (f64::from(n) * 255.0 / 16.0).round() as u8 == level))
    );
    assert_eq!(task.train.coding(), Coding::Pixels { height: 8, width: 8, mean: 0.0, std: 1.0 });
}

#[test]
fn seed_decides_the_split_and_side_only_the_resolution() {
    let (small, large) = (digits(8, 3), digits(16, 3));
    assert_eq!((large.max_len, large.train.document(5, 0).len()), (256, 256));
    for item in 0..50 {
        assert_eq!(small.train.label(item), large.train.label(item));
        let mean =
            |image: &[u8]| image.iter().map(|&level| f64::from(level)).sum::<f64>() / image.len() as f64;
        let (a, b) = (mean(small.train.document(item, 0)), mean(large.train.document(item, 0)));
        assert!((a - b).abs() < 8.0, "interpolation keeps the mean level: {a} and {b}");
    }
    let other = digits(8, 4);
    assert!((0..50).any(|item| small.train.document(item, 0) != other.train.document(item, 0)));
    assert!(matches!(
        Digits { side: 0, seed: 0 }.load(&Sources::offline("nowhere")),
        Err(Error::Task { .. })
    ));
}

#[test]
fn pixels_are_values_or_tokens() {
    let mut task = digits(8, 0);
    task.truncate(20, 5, 5);
    let levels = task.train.document(3, 0).to_vec();
    task.scale_pixels(0.5, 0.25);
    let Inputs::Values(values) = task.train.batch(&[3], None).inputs else { panic!("values") };
    assert!(values.iter().zip(&levels).all(|(v, &l)| (v - (f32::from(l) / 255.0 - 0.5) / 0.25).abs() < 1e-6));
    task.pixels_as_tokens();
    let Inputs::Tokens(ids) = task.train.batch(&[3], None).inputs else { panic!("tokens") };
    assert!(ids.iter().zip(&levels).all(|(&id, &level)| id == u32::from(level)));
}

/// A task whose files lie in the folder that the environment names.
fn from_folder(spec: TaskSpec) -> Option<SequenceTask> {
    let Some(folder) = std::env::var_os("REPLICA_DATA").filter(|f| !f.is_empty()) else {
        println!("skipped: REPLICA_DATA is not set");
        return None;
    };
    let mut sources = Sources::offline("nowhere");
    sources.folder = Some(folder.into());
    let task = spec.load(&sources).unwrap();
    assert!(task.files.iter().all(|f| f.source == "REPLICA_DATA" && f.verified));
    let digests = spec.expected_digests().unwrap();
    assert!(task.files.iter().all(|f| digests[&f.name] == f.sha256));
    Some(task)
}

#[test]
fn mnist_test_images_are_split_by_the_seed() {
    let Some(task) = from_folder(TaskSpec::MnistTest(MnistTest { seed: 1 })) else {
        return;
    };
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [8_000, 1_000, 1_000]);
    assert_eq!(counts(&task), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    assert_eq!(task.max_len, 784);
    let all: HashSet<&[u8]> = [&task.train, &task.valid, &task.test]
        .into_iter()
        .flat_map(|split| (0..split.len()).map(|i| split.document(i, 0)))
        .collect();
    assert!(all.len() > 9_990, "no image is in two splits");
}

#[test]
fn cifar_has_its_published_counts_and_means() {
    let Some(task) = from_folder(TaskSpec::Cifar10Jpeg(Cifar10Jpeg { seed: 1 })) else {
        return;
    };
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [45_000, 5_000, 10_000]);
    assert_eq!(counts(&task), [6_000; 10]);
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
    for split in [&task.train, &task.valid] {
        for item in 0..split.len() {
            for &level in split.document(item, 0) {
                sum += f64::from(level);
                squares += f64::from(level).powi(2);
                count += 1.0;
            }
        }
    }
    let (mean, std) = (sum / count, (squares / count - (sum / count).powi(2)).sqrt());
    let (s4_mean, s4_std) = images::S4_CIFAR10;
    assert!((mean - f64::from(s4_mean) * 255.0).abs() < 1.0, "mean {mean}");
    assert!((std - f64::from(s4_std) * 255.0).abs() < 1.5, "standard deviation {std}");
}
