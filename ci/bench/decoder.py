"""PyTorch twin of the workloads decoder-small, decoder-medium and decoder-130m: a GPT-style decoder with learned
positions, layer norm before each sublayer, packed q, k, v, GELU (tanh form) and an output layer of its own. See twin.py.
"""

from torch import nn
from torch.nn import functional as F

from twin import serve


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.heads = heads
        self.ln1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)

    def forward(self, x):
        batch, t, width = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(batch, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, t, width))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x)), approximate="tanh"))


class Decoder(nn.Module):
    def __init__(self, config, data):
        super().__init__()
        width = config["hidden_size"]
        self.ids, self.labels = data["ids"], data["labels"].flatten()
        self.wte = nn.Embedding(config["vocab_size"], width)
        self.wpe = nn.Embedding(config["seq_len"], width)
        self.blocks = nn.ModuleList(
            Block(width, config["heads"], config["ffn_size"]) for _ in range(config["layers"])
        )
        self.lnf = nn.LayerNorm(width)
        self.head = nn.Linear(width, config["vocab_size"], bias=False)

    def forward(self):
        x = self.wte(self.ids) + self.wpe.weight
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.lnf(x)).flatten(0, 1), self.labels)


if __name__ == "__main__":
    serve(Decoder)
