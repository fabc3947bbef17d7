//! Programs that mean harm, and pools to run them in.

use std::path::PathBuf;
use std::time::Duration;

use replica_pad::exec::{Limits, Pool, WorkerCommand, with_call};

/// Enough for every program here that ends, so that none of them waits for a clock.
pub const LIMITS: Limits = Limits {
    source: 64 << 10,
    steps: 1_000_000,
    time: Duration::from_secs(60),
    memory: 32 << 20,
    recursion: 1000,
    output: 64 << 10,
};

pub fn command() -> WorkerCommand {
    WorkerCommand { program: PathBuf::from(env!("CARGO_BIN_EXE_pad-worker")), arguments: Vec::new() }
}

/// Bodies of programs that mean harm, beyond the oracle's. None may finish unless it says so.
pub const HOSTILE: [&str; 42] = [
    "while True:\n        try:\n            x = 1\n        except:\n            pass",
    "while True:\n        try:\n            while True:\n                x = 1\n        except BaseException:\n            pass",
    "l = []\n    while True:\n        try:\n            l.append('x' * 100000)\n        except MemoryError:\n            pass",
    "while True:\n        try:\n            print('x' * 1000)\n        except Exception:\n            pass",
    "return [0] * 10**12",
    "return 'a' * 10**11",
    "return list(range(10**9))",
    "return sorted(range(10**9), key=lambda x: -x)",
    "return [[i] * 1000 for i in range(10**7)]",
    "return {i: str(i) for i in range(10**8)}",
    "return set(range(10**9))",
    "return 10**10**9",
    "return 7 ** 7 ** 7 ** 7",
    "return 1 << 10**12",
    "return int('9' * 60000) ** 1000000",
    "return f'{1:>10000000000}'",
    "return '{:>9999999999}'.format(1)",
    "return 'x'.center(10**11)",
    "return 'x'.ljust(10**11)",
    "return '1'.zfill(10**11)",
    "return bytes(10**11)",
    "return bytearray(10**11)",
    "s = 'ab' * 10**6\n    while True:\n        s = s.replace('a', 'aa')",
    "return ','.join(['x' * 10**6] * 10**6)",
    "l = []\n    l.append(l)\n    while True:\n        l = [l, l]",
    "import math\n    return math.factorial(10**7)",
    "import math\n    return math.comb(10**7, 5 * 10**6)",
    "def f():\n        try:\n            return f()\n        except RecursionError:\n            return f()\n    return f()",
    "def f(n):\n        return f(n + 1) + f(n + 2)\n    return f(0)",
    "return open('/etc/passwd').read()",
    "import socket\n    return socket.gethostname()",
    "import os\n    return os.getenv('PATH')",
    "import os\n    return os.fork()",
    "import sys\n    sys.stdout.close()",
    "import ctypes\n    return ctypes.string_at(0)",
    "from pathlib import Path\n    return Path('/etc/passwd').read_text()",
    "from pathlib import Path\n    return Path('replica-pad-was-here').write_text('x')",
    "return ().__class__.__base__.__subclasses__()",
    "return exec('import os')",
    "return compile('1', '', 'eval')",
    "raise SystemExit(0)",
    "raise KeyboardInterrupt",
];

/// Programs whose text is the weapon.
pub fn hostile_texts() -> Vec<String> {
    let nested = |open: &str, close: &str, n: usize| format!("x = {}1{}", open.repeat(n), close.repeat(n));
    let blocks: String = (0..500).map(|i| format!("{}if 1:\n", " ".repeat(i))).collect();
    vec![
        nested("(", ")", 10_000),
        nested("[", "]", 10_000),
        nested("{1: ", "}", 5_000),
        nested("f(", ")", 10_000),
        nested("-", "", 30_000),
        nested("not ", "", 10_000),
        nested("lambda: ", "", 5_000),
        nested("x if x else ", "", 4_000),
        format!("x = {}", "1+".repeat(30_000) + "1"),
        format!("x = {}", "a.".repeat(20_000) + "a"),
        format!("x = 1{}", "[0]".repeat(20_000)),
        format!("x = {}1", "x = ".repeat(10_000)),
        format!("x = {}", "'a' ".repeat(10_000)),
        "if 1: pass\n".to_owned() + &"elif 1: pass\n".repeat(4_000),
        blocks,
        "x = 9".to_owned() + &"9".repeat(60_000),
        format!("x = f'{}'", "{f'".repeat(1_000)),
        "import re\nre.match('(' * 5000 + 'a' + ')' * 5000, 'a')".to_owned(),
        "import re\nre.match('((a{1,1000}){1,1000}){1,1000}', 'a')".to_owned(),
        "\0\0\0".to_owned(),
        "\u{feff}x = '\u{202e}\u{1f4a3}'".to_owned(),
        "x = 1\n".repeat(20_000),
        String::new(),
    ]
}

pub fn hostile() -> Vec<String> {
    HOSTILE.iter().map(|body| with_call(&format!("def solution():\n    {body}"))).collect()
}

/// All workers live, none is left of those that died, and programs are answered.
pub fn assert_intact(pool: &Pool, workers: usize) {
    let programs: Vec<String> = (0..4 * workers).map(|i| format!("print({i})")).collect();
    for (i, outcome) in pool.run(&programs).unwrap().iter().enumerate() {
        assert_eq!(outcome.stdout(), Some(format!("{i}\n").as_str()));
    }
    let alive = pool.process_ids();
    assert_eq!(alive.len(), workers);
    #[cfg(target_os = "linux")]
    for id in &alive {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim().to_owned();
        assert!(!line("State:").starts_with('Z'), "worker {id} is dead");
        let kib: u64 = line("VmRSS:").trim_end_matches(" kB").parse().unwrap();
        assert!(kib << 10 < 2 * LIMITS.memory + (64 << 20), "worker {id} has grown to {kib} KiB");
    }
}
