"""PyTorch twin of the workload selective-scan: Mamba's recurrence as a loop over time with autograd, decays and inputs
of all steps made at once, as its authors' reference does. Steps are taken apart by `unbind`; the reference indexes
them one by one, and the backward pass of every such index clears a whole tensor. The loss is the mean of y times a
fixed tensor; the inputs get gradients too, as inside a model. See twin.py.
"""

import torch
from torch import nn

from twin import serve


class SelectiveScan(nn.Module):
    def __init__(self, config, data):
        super().__init__()
        self.inputs = [data[name].requires_grad_() for name in ("u", "delta", "B", "C")]
        self.cotangent = data["cotangent"]
        channels, modes = self.inputs[0].shape[2], config["modes"]
        self.A_log = nn.Parameter(torch.empty(channels, modes))
        self.D = nn.Parameter(torch.empty(channels))
        self.delta_bias = nn.Parameter(torch.empty(channels))

    def forward(self):
        for tensor in self.inputs:
            tensor.grad = None
        u, delta, B, C = self.inputs
        delta = nn.functional.softplus(delta + self.delta_bias)
        decay = torch.exp(delta[..., None] * -torch.exp(self.A_log))
        inputs = (delta * u)[..., None] * B[:, :, None, :]
        state = torch.zeros_like(decay[:, 0])
        outputs = []
        for decay_t, inputs_t, C_t in zip(decay.unbind(1), inputs.unbind(1), C.unbind(1)):
            state = decay_t * state + inputs_t
            outputs.append((state * C_t[:, None, :]).sum(-1))
        y = torch.stack(outputs, dim=1) + u * self.D
        return (y * self.cotangent).mean()


if __name__ == "__main__":
    serve(SelectiveScan)
