"""PyTorch twin of the workload encoder-decoder: T5 (Raffel et al. 2020) with tied tables, RMS norm before each
sublayer, ReLU, no biases, no scaling of the scores, and relative position biases shared by a stack's layers. See twin.py.
"""

import torch
from torch import nn
from torch.nn import functional as F

from twin import serve


def linear(i, o):
    return nn.Linear(i, o, bias=False)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["heads"]
        self.q, self.kv, self.o = linear(width, width), linear(width, 2 * width), linear(width, width)

    def forward(self, x, memory, bias):
        heads = lambda y, n: y.view(y.shape[0], y.shape[1], n, self.heads, -1).permute(2, 0, 3, 1, 4)
        (q,), (k, v) = heads(self.q(x), 1), heads(self.kv(memory), 2)
        scores = q @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    def __init__(self, config, decoder):
        super().__init__()
        width = config["hidden_size"]
        norm = lambda: nn.RMSNorm(width, 1e-6)
        self.norm1, self.attention = norm(), Attention(config)
        self.norm2, self.cross = (norm(), Attention(config)) if decoder else (None, None)
        self.norm3 = norm()
        self.wi, self.wo = linear(width, config["ffn_size"]), linear(config["ffn_size"], width)

    def forward(self, x, bias, encoded=None):
        h = self.norm1(x)
        x = x + self.attention(h, h, bias)
        if self.cross is not None:
            x = x + self.cross(self.norm2(x), encoded, None)
        return x + self.wo(F.relu(self.wi(self.norm3(x))))


def pairs(distances):
    """Buckets of distances, from the first key and the last query on, as [queries, keys] of a square."""
    return distances.unfold(0, (len(distances) + 1) // 2, 1).flip(0)


class Stack(nn.Module):
    def __init__(self, config, decoder):
        super().__init__()
        self.relative = nn.Embedding(config["buckets"], config["heads"])
        self.layers = nn.ModuleList(Layer(config, decoder) for _ in range(config["layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], 1e-6)

    def forward(self, x, buckets, hidden=None, encoded=None):
        bias = self.relative(buckets).permute(2, 0, 1)
        if hidden is not None:
            bias = bias.masked_fill(hidden, float("-inf"))
        for layer in self.layers:
            x = layer(x, bias, encoded)
        return self.norm(x)


class EncoderDecoder(nn.Module):
    def __init__(self, config, data):
        super().__init__()
        width = config["hidden_size"]
        self.source, self.target, self.labels = data["source"], data["target"], data["labels"].flatten()
        self.encoder_buckets, self.decoder_buckets = pairs(data["encoder_buckets"]), pairs(data["decoder_buckets"])
        t = self.target.shape[1]
        self.hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
        self.scale = width**-0.5
        self.table = nn.Embedding(config["vocab_size"], width)
        self.encoder, self.decoder = Stack(config, False), Stack(config, True)

    def forward(self):
        encoded = self.encoder(self.table(self.source), self.encoder_buckets)
        x = self.decoder(self.table(self.target), self.decoder_buckets, self.hidden, encoded)
        return F.cross_entropy(F.linear(x * self.scale, self.table.weight).flatten(0, 1), self.labels)


if __name__ == "__main__":
    serve(EncoderDecoder)
