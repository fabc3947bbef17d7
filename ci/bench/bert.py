"""PyTorch twin of the workload bert: masked-language-model training of a small BERT on sequences of different
lengths. The loss is over the masked words only; logits are computed everywhere, as the common implementations do.
See twin.py.
"""

from torch import nn

from bert_layers import Attention, Embeddings, FeedForward, Head
from twin import serve


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config)

    def forward(self, x, mask):
        return self.ffn(self.attention(x, mask=mask))


class Bert(nn.Module):
    def __init__(self, config, data):
        super().__init__()
        self.ids, self.labels = data["ids"], data["labels"]
        self.mask = data["mask"].bool()[:, None, None, :]
        self.embeddings = Embeddings(config, config["seq_len"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["layers"]))
        self.head = Head(config)

    def forward(self):
        x = self.embeddings(self.ids)
        for layer in self.layers:
            x = layer(x, self.mask)
        return self.head(x, self.embeddings.word.weight, self.labels)


if __name__ == "__main__":
    serve(Bert)
