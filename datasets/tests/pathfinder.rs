//! Pathfinder: the geometry of its scenes, and that images and labels follow from it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use replica_datasets::tasks::Pathfinder;
use replica_datasets::tasks::pathfinder::{Paddle, REACH, Scene};
use replica_datasets::{Coding, Error};

fn scenes(contour_length: usize, count: u64) -> Vec<Scene> {
    let spec = Pathfinder { seed: 5, contour_length, ..Pathfinder::full() };
    (0..count).map(|index| spec.scene(index).unwrap()).collect()
}

/// Whether a path of paddles, each within reach of the next, leads from one point to the other.
fn path(paddles: &[Paddle], from: [f64; 2], to: [f64; 2]) -> bool {
    let at = |point| paddles.iter().position(|paddle| paddle.distance_to(point) < 1e-9).unwrap();
    let (start, goal) = (at(from), at(to));
    let mut reached = vec![false; paddles.len()];
    let mut open = vec![start];
    while let Some(paddle) = open.pop() {
        if !std::mem::replace(&mut reached[paddle], true) {
            open.extend(
                (0..paddles.len()).filter(|&next| {
                    !reached[next] && paddles[paddle].distance(&paddles[next]) <= REACH + 1e-9
                }),
            );
        }
    }
    reached[goal]
}

#[test]
fn labels_agree_with_a_path_through_the_paddles() {
    for length in [6, 9, 14] {
        let scenes = scenes(length, 300);
        for scene in &scenes {
            let paddles = scene.snakes.concat();
            assert_eq!(path(&paddles, scene.markers[0], scene.markers[1]), scene.connected);
        }
        let connected = scenes.iter().filter(|scene| scene.connected).count();
        // four standard errors of a fair coin
        assert!(connected.abs_diff(150) < 35, "{connected} of 300 are connected");
    }
}

#[test]
fn paddles_have_their_length_follow_each_other_and_keep_away_from_all_others() {
    for scene in scenes(14, 200) {
        let paddles: Vec<(usize, usize, &Paddle)> = scene
            .snakes
            .iter()
            .enumerate()
            .flat_map(|(snake, paddles)| {
                paddles.iter().enumerate().map(move |(i, paddle)| (snake, i, paddle))
            })
            .collect();
        assert_eq!(scene.snakes[0].len(), 14);
        assert_eq!(scene.snakes[1].len(), 14);
        assert!(scene.snakes[2..].iter().all(|distractor| distractor.len() == 4));
        assert!(scene.snakes.len() <= 7);
        for &(snake, i, paddle) in &paddles {
            let length = (paddle.head[0] - paddle.tail[0]).hypot(paddle.head[1] - paddle.tail[1]);
            assert!((length - 2.0).abs() < 1e-9, "{length}");
            assert!(paddle.tail.iter().chain(&paddle.head).all(|x| (1.0..=31.0).contains(x)));
            for &(other_snake, j, other) in &paddles {
                let distance = paddle.distance(other);
                match (snake == other_snake, i.abs_diff(j)) {
                    (true, 0) => {}
                    // a bend of at most a right angle brings two margins no nearer than this
                    (true, 1) => {
                        assert!((2f64.sqrt() - 1e-9..=REACH + 1e-9).contains(&distance), "{distance}")
                    }
                    _ => assert!(distance > REACH + 0.2, "{distance}"),
                }
            }
        }
    }
}

#[test]
fn markers_are_a_beginning_and_an_end_of_the_long_snakes_and_bright() {
    for scene in scenes(14, 100) {
        let begins: Vec<usize> = (0..2).filter(|&s| scene.snakes[s][0].tail == scene.markers[0]).collect();
        let ends: Vec<usize> = (0..2).filter(|&s| scene.snakes[s][13].head == scene.markers[1]).collect();
        assert_eq!((begins.len(), ends.len()), (1, 1));
        assert_eq!(begins == ends, scene.connected);
        let image = scene.render();
        for marker in scene.markers {
            assert_eq!(image[marker[0] as usize * 32 + marker[1] as usize], 255);
        }
        // the beginnings are seven pixels apart, the first in the middle
        let (a, b) = (scene.snakes[0][0].tail, scene.snakes[1][0].tail);
        assert!(((a[0] - b[0]).hypot(a[1] - b[1]) - 7.0).abs() < 1e-9);
        assert!(a.iter().all(|x| (14.0..=18.0).contains(x)));
    }
}

#[test]
fn image_is_dark_where_nothing_is_and_bright_along_paddles() {
    let scene = &scenes(14, 1)[0];
    let image = scene.render();
    for (index, &level) in image.iter().enumerate() {
        let centre = [(index / 32) as f64 + 0.5, (index % 32) as f64 + 0.5];
        let paddle =
            scene.snakes.iter().flatten().map(|p| p.distance_to(centre)).fold(f64::INFINITY, f64::min);
        let marker = scene
            .markers
            .iter()
            .map(|m| (m[0] - centre[0]).hypot(m[1] - centre[1]))
            .fold(f64::INFINITY, f64::min);
        if paddle > 0.76 && marker > 2.01 {
            assert_eq!(level, 0, "pixel {index}");
        }
        if marker > 2.01 && paddle < 0.25 {
            assert!(level >= 190, "pixel {index}: {level}");
        }
    }
}

#[test]
fn mini_set_is_the_published_one_on_any_number_of_threads() {
    let generate = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Pathfinder::mini().generate().unwrap())
    };
    let task = generate(1);
    assert_eq!(task.files, generate(3).files);
    assert_eq!(task.files[0].sha256.as_str(), Pathfinder::mini().published_digest().unwrap());
    assert!(task.files[0].verified);
    assert_eq!([task.train.len(), task.valid.len(), task.test.len()], [4_000, 500, 500]);
    assert_eq!(task.train.coding(), Coding::Pixels { height: 32, width: 32, mean: 0.0, std: 1.0 });
    assert!(task.train.majority() < 0.5 + 4.0 * 0.5 / 4_000f64.sqrt());
    // numbered through the splits
    let scene = Pathfinder::mini().scene(4_003).unwrap();
    assert_eq!(task.valid.document(3, 0), scene.render());
    assert_eq!(task.valid.label(3), u32::from(scene.connected));
}

#[test]
#[ignore = "200,000 images: cargo test -p replica-datasets --test pathfinder -- --ignored"]
fn full_set_is_the_published_one() {
    let task = Pathfinder::full().generate().unwrap();
    assert_eq!(task.files[0].sha256.as_str(), Pathfinder::full().published_digest().unwrap());
}

#[test]
fn no_pixel_statistic_gives_the_label_away() {
    // the classes differ in which ends are marked only: mean levels agree within four standard errors
    let task = Pathfinder { train: 2_000, valid: 0, test: 0, ..Pathfinder::mini() }.generate().unwrap();
    let mut levels = [Vec::new(), Vec::new()];
    for item in 0..task.train.len() {
        let image = task.train.document(item, 0);
        let mean = image.iter().map(|&level| f64::from(level)).sum::<f64>() / image.len() as f64;
        levels[task.train.label(item) as usize].push(mean);
    }
    let moments = levels.map(|levels| {
        let n = levels.len() as f64;
        let mean = levels.iter().sum::<f64>() / n;
        (mean, levels.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0) / n)
    });
    let [(a, va), (b, vb)] = moments;
    assert!((a - b).abs() < 4.0 * (va + vb).sqrt(), "{a} against {b}");
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for contour_length in [0, 2, 15] {
        let spec = Pathfinder { contour_length, ..Pathfinder::mini() };
        assert!(matches!(spec.generate(), Err(Error::Task { .. })));
        assert!(spec.scene(0).is_err());
    }
}
