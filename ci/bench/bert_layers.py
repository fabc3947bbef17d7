"""Layers of BERT as its original checkpoints have them: layer norm after each residual sum, GELU by the error function,
biases everywhere. Shared by bert.py and bob.py.
"""

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-12


class Embeddings(nn.Module):
    """Words and learned positions, normalised. Token types are left out: one type is a constant."""

    def __init__(self, config, seq_len):
        super().__init__()
        width = config["hidden_size"]
        self.word = nn.Embedding(config["vocab_size"], width)
        self.position = nn.Embedding(seq_len, width)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, ids):
        return self.norm(self.word(ids) + self.position.weight[: ids.shape[1]])


class Attention(nn.Module):
    """Attention of x to itself, q, k and v from one product; or to memory, k and v from one product."""

    def __init__(self, config, cross=False):
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["heads"]
        if cross:
            self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x, memory=None, mask=None, causal=False):
        heads = lambda y, n: y.view(y.shape[0], y.shape[1], n, self.heads, -1).permute(2, 0, 3, 1, 4)
        if memory is None:
            q, k, v = heads(self.qkv(x), 3)
        else:
            (q,), (k, v) = heads(self.q(x), 1), heads(self.kv(memory), 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.norm(x + self.out(attended.transpose(1, 2).reshape(x.shape)))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.fc1 = nn.Linear(width, config["ffn_size"])
        self.fc2 = nn.Linear(config["ffn_size"], width)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x):
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


class Head(nn.Module):
    """The masked-language-model head: dense, GELU, layer norm, and the word table again."""

    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, EPS)
        self.bias = nn.Parameter(torch.zeros(config["vocab_size"]))

    def forward(self, x, table, labels):
        logits = F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
