"""Writes the checkpoint beside it: a T5 of CodeT5's published form, with weights that the test computes again.

Run with PyTorch: python3 make.py. The files are part of the repository; nobody needs to run it.
"""

import json
import math
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
MERGES = ["Ġ Ġ", "ĠĠ ĠĠ", "Ċ ĠĠĠĠ", "Ġ =", "Ġ t", "r e", "Ġt h", "Ġth e", "o n", "r n", "re t", "u rn", "ret urn"]
WIDTH, HEADS, HEAD, INNER, BUCKETS = 4, 2, 2, 8, 8


def letters():
    """The letters that byte-level BPE spells bytes with, by byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def tensor(name, *shape):
    """Numbers that depend on the name's length and the position."""
    count = math.prod(shape)
    values = [((7 * i + 5 * len(name)) % 31 - 15) / 64 for i in range(count)]
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def weights(vocabulary):
    shared = torch.nn.Parameter(tensor("shared.weight", vocabulary, WIDTH))
    tensors = {"shared.weight": shared}
    for stack in ["encoder", "decoder"]:
        tensors[f"{stack}.embed_tokens.weight"] = shared

        def add(name, *shape):
            tensors[f"{stack}.{name}"] = tensor(f"{stack}.{name}", *shape)

        attentions = ["0.SelfAttention"] + ["1.EncDecAttention"] * (stack == "decoder")
        for layer in attentions:
            place = f"block.0.layer.{layer}"
            for part in "qkv":
                add(f"{place}.{part}.weight", HEADS * HEAD, WIDTH)
            add(f"{place}.o.weight", WIDTH, HEADS * HEAD)
            add(f"block.0.layer.{layer[0]}.layer_norm.weight", WIDTH)
        add("block.0.layer.0.SelfAttention.relative_attention_bias.weight", BUCKETS, HEADS)
        last = f"block.0.layer.{len(attentions)}"
        add(f"{last}.DenseReluDense.wi.weight", INNER, WIDTH)
        add(f"{last}.DenseReluDense.wo.weight", WIDTH, INNER)
        add(f"{last}.layer_norm.weight", WIDTH)
        add("final_layer_norm.weight", WIDTH)
    tensors["lm_head.weight"] = shared
    return tensors


def main():
    tokens = SPECIAL + letters() + [merge.replace(" ", "") for merge in MERGES] + ["<extra_id_0>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (FOLDER / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (FOLDER / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    config = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": len(vocabulary),
        "d_model": WIDTH, "d_kv": HEAD, "d_ff": INNER, "num_layers": 1, "num_heads": HEADS,
        "relative_attention_num_buckets": BUCKETS, "dropout_rate": 0.1, "feed_forward_proj": "relu",
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0,
    }
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # as a model's state: ordered, with versions of its modules, and copies that share their memory
    module = torch.nn.Module()
    state = module.state_dict()
    state.update(weights(len(vocabulary)))
    torch.save(state, FOLDER / "pytorch_model.bin")


main()
