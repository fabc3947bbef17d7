"""What all twins share: the file both sides start from, and the protocol of `replica bench`.

A twin is a script that is started as

    SCRIPT --weights FILE.safetensors --threads N [--compile] [--fused-adamw]

prints {"ready": true}, and then answers lines on standard input:

    step N   N training steps; {"seconds": [wall-clock of each], "cpu_seconds": [of all threads],
             "losses": [of each, before its update]}
    quit     {"peak_rss_mb": .., "baseline_rss_mb": ..} (10^6 bytes; baseline: before the model was built), and ends

Between lines it waits for input, so the other side has the cores for itself. FILE holds the initial weights under the
names of the twin's state_dict, the batch with `_` before each name, and the sizes as JSON under the metadata key
`config`. Needs torch and nothing else.
"""

import argparse
import json
import struct
import sys
import time

import torch

TYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U32": torch.uint32, "U8": torch.uint8}


def read(path):
    """Config, weights and data of a file that `replica bench` has written."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        body = bytearray(file.read())
    config = json.loads(header.pop("__metadata__")["config"])
    weights, data = {}, {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensor = torch.frombuffer(body, dtype=TYPES[entry["dtype"]], count=(end - start) // TYPES[entry["dtype"]].itemsize,
                                  offset=start).reshape(entry["shape"]).clone()
        if name.startswith("_"):
            data[name[1:]] = tensor
        else:
            weights[name] = tensor
    return config, weights, data


def packed(model, weights):
    """Where the model has one layer `kv` (or `qkv`) for several of the other side, their weights one after the other."""
    for name in model.state_dict():
        if name in weights:
            continue
        *path, layer, kind = name.split(".")
        if len(layer) > 1 and set(layer) <= set("qkv"):
            weights[name] = torch.cat([weights.pop(".".join([*path, part, kind])) for part in layer])
    return weights


def resident(field):
    """Megabytes (10^6 bytes) of this process that are in memory (VmRSS), or the most there have been (VmHWM)."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return None


def serve(build):
    """Trains the module `build(config, data)`, whose forward pass takes no arguments and returns the loss."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fused-adamw", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    baseline = resident("VmRSS")
    config, weights, data = read(options.weights)
    model = build(config, data)
    model.load_state_dict(packed(model, weights))
    del weights
    # without `fused` PyTorch chooses: on a CPU the loop over parameters
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1,
                                  fused=options.fused_adamw or None)
    loss_of = torch.compile(model) if options.compile else model
    if options.compile:
        # compiles forward and backward; no update, so both sides still start equal
        loss_of().backward()
        optimiser.zero_grad(set_to_none=True)

    def step():
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.item()

    answer = lambda line: print(json.dumps(line), flush=True)
    answer({"ready": True})
    for line in sys.stdin:
        words = line.split()
        if words[0] == "quit":
            answer({"peak_rss_mb": resident("VmHWM"), "baseline_rss_mb": baseline})
            return
        turn = {"seconds": [], "cpu_seconds": [], "losses": []}
        for _ in range(int(words[1])):
            started, cpu = time.perf_counter(), time.process_time()
            turn["losses"].append(step())
            turn["seconds"].append(time.perf_counter() - started)
            turn["cpu_seconds"].append(time.process_time() - cpu)
        answer(turn)
