"""PyTorch twin of the workload bob: an encoder and two decoders in the manner of BERT over BERT (Song et al. 2021).
The first decoder attends to the encoder; the second one to the encoder and to the first one's last states; their
losses are summed. Left out, on both sides: the persona's own path into the second decoder (it attends to the whole
source), the unlikelihood batches, and the weights of the losses. See twin.py.
"""

from torch import nn

from bert_layers import Attention, Embeddings, FeedForward, Head
from twin import serve


class Layer(nn.Module):
    """Self-attention, one cross-attention for each memory, feed-forward."""

    def __init__(self, config, memories):
        super().__init__()
        self.attention = Attention(config)
        self.cross = nn.ModuleList(Attention(config, cross=True) for _ in range(memories))
        self.ffn = FeedForward(config)

    def forward(self, x, memories):
        # without memories: the encoder, which sees everything but padding
        if not self.cross:
            return self.ffn(self.attention(x, mask=memories))
        x = self.attention(x, causal=True)
        for cross, (memory, mask) in zip(self.cross, memories):
            x = cross(x, memory, mask)
        return self.ffn(x)


class Stack(nn.Module):
    def __init__(self, config, seq_len, memories):
        super().__init__()
        self.embeddings = Embeddings(config, seq_len)
        self.layers = nn.ModuleList(Layer(config, memories) for _ in range(config["layers"]))
        self.head = Head(config) if memories else None

    def forward(self, ids, memories):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, memories)
        return x

    def loss(self, x, labels):
        return self.head(x, self.embeddings.word.weight, labels)


class Bob(nn.Module):
    def __init__(self, config, data):
        super().__init__()
        self.source, self.response, self.labels = data["source"], data["response"], data["labels"]
        self.mask = data["mask"].bool()[:, None, None, :]
        self.encoder = Stack(config, config["source_len"], 0)
        self.decoder1 = Stack(config, config["response_len"], 1)
        self.decoder2 = Stack(config, config["response_len"], 2)

    def forward(self):
        encoded = self.encoder(self.source, self.mask)
        first = self.decoder1(self.response, [(encoded, self.mask)])
        second = self.decoder2(self.response, [(encoded, self.mask), (first, None)])
        return self.decoder1.loss(first, self.labels) + self.decoder2.loss(second, self.labels)


if __name__ == "__main__":
    serve(Bob)
