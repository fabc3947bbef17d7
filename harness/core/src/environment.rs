//! What the machine and the programs are, as far as they can change a number or a time.

use std::fs;
use std::num::NonZero;

use crate::record::Environment;

/// The environment of a trial with this many threads. `commit` is the git commit that the binary was built
/// from; only the binary knows it, so that a new commit does not recompile every crate.
pub fn capture(threads: usize, commit: Option<&str>, accelerator: Option<String>) -> Environment {
    Environment {
        replica: env!("CARGO_PKG_VERSION").to_owned(),
        commit: commit.map(str::to_owned),
        rustc: env!("REPLICA_RUSTC").to_owned(),
        platform: env!("REPLICA_TARGET").to_owned(),
        cpu: cpu_model(),
        simd: simd().to_owned(),
        threads,
        accelerator,
    }
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// The widest vector instructions that the kernels choose from, as found at run time.
pub fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            "avx512"
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            "avx2+fma"
        } else {
            "sse2"
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "neon"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "none"
    }
}

/// The processor's own name for itself where the system tells it.
pub fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    field("model name").or_else(|| field("Model")).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_empty() {
        let environment = capture(3, Some("0123abc-dirty"), None);
        assert_eq!(environment.threads, 3);
        assert_eq!(environment.commit.as_deref(), Some("0123abc-dirty"));
        assert!(environment.rustc.starts_with("rustc 1."), "{}", environment.rustc);
        assert!(environment.platform.contains(std::env::consts::ARCH));
        for text in [environment.replica, environment.cpu, environment.simd] {
            assert!(!text.is_empty());
        }
        assert!(cores() >= 1);
    }
}
