"""PyTorch twin of the workload s4d: kernel, FFT convolution and skip of one S4D layer, as its authors' minimal version
computes them, without the output projection. The loss is the mean of y times a fixed tensor; the input gets a gradient
too, as inside a model. See twin.py.
"""

import torch
from torch import nn

from twin import serve


class S4D(nn.Module):
    def __init__(self, config, data):
        super().__init__()
        self.u, self.cotangent = data["u"].requires_grad_(), data["cotangent"]
        channels, modes = self.u.shape[1], config["modes"]
        self.log_dt = nn.Parameter(torch.empty(channels))
        self.log_A_real = nn.Parameter(torch.empty(channels, modes))
        self.A_imag = nn.Parameter(torch.empty(channels, modes))
        self.C = nn.Parameter(torch.empty(channels, modes, 2))
        self.D = nn.Parameter(torch.empty(channels))

    def forward(self):
        self.u.grad = None
        length = self.u.shape[-1]
        A = -torch.exp(self.log_A_real) + 1j * self.A_imag
        dt_A = A * torch.exp(self.log_dt)[:, None]
        C = torch.view_as_complex(self.C) * (torch.exp(dt_A) - 1.0) / A
        powers = torch.exp(dt_A[:, :, None] * torch.arange(length))
        kernel = 2 * torch.einsum("hn,hnl->hl", C, powers).real
        spectrum = torch.fft.rfft(kernel, n=2 * length) * torch.fft.rfft(self.u, n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + self.u * self.D[:, None]
        return (y * self.cotangent).mean()


if __name__ == "__main__":
    serve(S4D)
