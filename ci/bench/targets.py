"""Compares a record of `replica bench --output FILE` with what this project wants to reach: `targets.py FILE`.

Ratios are this engine's over PyTorch eager's, so smaller is better. Memory is the peak of a process that did nothing
else, with program and libraries ("process"), and without them ("added"). The targets are for 2 threads.
"""

import json
import sys

# step time, peak memory, share of the large matrix product's rate
TARGETS = {
    "decoder-small": {"time": 0.80, "memory": 0.40},
    "decoder-medium": {"time": 1.05, "memory": 0.60, "share": 0.80},
    "encoder-decoder": {"time": 0.90},
    "bert": {"time": 0.90},
    "bob": {"time": 0.90},
    "s4d": {"time": 0.20},
    "selective-scan": {"time": 0.20},
}


def memory(side, added):
    sizes = side["memory"] or {}
    peak, baseline = sizes.get("peak_rss_mb"), sizes.get("baseline_rss_mb")
    if peak is None or baseline is None:
        return None
    return peak - baseline if added else peak


def rows(measured):
    targets = TARGETS.get(measured["workload"], {})
    share = measured["products"][0]["share"]
    for twin in measured["twins"]:
        if "measured" not in twin:
            continue
        side, ratio = twin["measured"]["side"], twin["measured"]["ratio"]
        program = side["program"]
        eager = program == "torch eager"
        yield f"step time / {program}", ratio["median"], ratio["interval"], targets.get("time") if eager else None, False
        if cpu := twin["measured"]["cpu_ratio"]:
            yield f"processor time / {program}", cpu["median"], cpu["interval"], None, False
        for added in (False, True):
            ours, theirs = memory(measured["engine"], added), memory(side, added)
            if ours is not None and theirs:
                word = "added" if added else "process"
                target = targets.get("memory") if eager and not added else None
                yield f"peak memory, {word} / {program}", ours / theirs, None, target, False
    yield "share of the gemm rate", share["median"], share["interval"], targets.get("share"), True


def main():
    with open(sys.argv[1]) as file:
        record = json.load(file)
    for entry in record["workloads"]:
        measured = entry["measured"]
        print(f"\n{measured['workload']}, {measured['threads']} threads, {measured['rounds']} rounds")
        for name, value, interval, target, more_is_better in rows(measured):
            spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            verdict = ""
            if target is not None:
                met = value >= target if more_is_better else value <= target
                sign = ">=" if more_is_better else "<="
                verdict = f"  target {sign} {target:.2f}: {'met' if met else 'missed'}"
            print(f"  {name:48} {value:.3f}{spread}{verdict}")


if __name__ == "__main__":
    main()
