"""DeepCOD's codec: a one-convolution encoder, a learned quantiser, a decoder that does the work.

Yao et al., "Deep Compressive Offloading", SenSys 2020, sections 3.2 and 3.4.1, figure 3, equations
5-13. What is coded has features and one or two dimensions of space or time: a picture or a map
[b, features, h, w], a sequence [b, features, t]. Its features' `mean` and `span` scale it into
[-1, 1].

The encoder is one convolution whose kernel is its stride, without bias, kept near an isometry (7).
Every scalar that it gives goes to the nearest of L learned centres (12); gradients take the soft
assignment (13) instead. The decoder is self-attention (Zhang et al. 2018), residual transposed
convolutions and a tanh; while it is trained, `constrain` divides every weight by its largest
singular value (9), and `settle` leaves plain weights behind.

Ours: `unit` scales what the encoder gives before it is quantised, so that centres lie about as far
apart as v = 1 asks for, whatever the rate; `gain` scales them back for the decoder. A block's
residual has a gate, as attention has, so that a decoder can start as the linear one (see
`profiles.train.deepcod`). The decoder may stop at a coarser resolution than that of the input (a
backbone may like that better): fewer blocks than the encoder's stride has factors of two. And
`rate` tells the bits that the symbols would take, for a training that pays for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from server.models.vit import from_mapping

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
POOL = {1: F.max_pool1d, 2: F.max_pool2d}
ANNEALING = 1.0
"""v of equation 13: 1 all the time."""
GATE = 0.1
"""How much of a block's residual counts at first."""
STEPS = 64
"""Whole numbers so large times a byte fit, two by two, the 16 bits that x86 adds them in."""


@dataclass(frozen=True)
class DeepCODConfig:
    """Shape of a codec.

    `size`: the input's (height, width) or (time,). `inputs`: its features. `channels`: C, symbols
    per place. `kernel`: the encoder's, and its stride. `levels`: L centres. `widths`: features
    after the decoder's first layer and after each of its blocks, which double the resolution.
    """

    size: tuple[int, ...]
    inputs: int = 3
    channels: int = 4
    kernel: int = 4
    levels: int = 8
    widths: tuple[int, ...] = (64, 64, 32)

    def __post_init__(self) -> None:
        if len(self.size) not in CONV or any(side % self.kernel for side in self.size):
            raise ValueError("size has one or two sides, multiples of kernel")
        if not 2 <= self.levels <= 255 or self.channels > self.inputs * self.kernel**self.dims:
            raise ValueError("levels are 2 to 255, and channels no more than the kernel's inputs")
        if not self.widths or (self.kernel > 1) > self.blocks or self.kernel % 2**self.blocks:
            raise ValueError("widths need a block for any stride, and kernel a factor 2 for each")

    @property
    def dims(self) -> int:
        """Dimensions of space or time."""
        return len(self.size)

    @property
    def blocks(self) -> int:
        """Blocks of the decoder."""
        return len(self.widths) - 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Places that have symbols, along each side."""
        return tuple(side // self.kernel for side in self.size)

    @property
    def shrink(self) -> int:
        """How many times coarser the decoder's output is than the input."""
        return int(self.kernel // 2**self.blocks)


class Quantizer(nn.Module):
    """The nearest of L scalar centres, shared by all channels (section 3.4.1)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(-8, 8, levels))

    def indices(self, y: Tensor) -> Tensor:
        """Equation 12: the index of the nearest centre, int64; of two as near, the lower one.

        The centres must ascend (`settle` sorts them).
        """
        return torch.bucketize(y, (self.centres[1:] + self.centres[:-1]) / 2)

    def assignment(self, y: Tensor) -> Tensor:
        """Equation 13's weights [b, c, *grid, L]: the share of every centre in each of y."""
        return (-ANNEALING * (y.unsqueeze(-1) - self.centres).abs()).softmax(-1)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y [b, c, *grid] on its centres, with (13)'s gradient, and its `rate`."""
        shares = self.assignment(y)
        soft = shares @ self.centres
        order = self.centres.detach().argsort()  # they may cross while they learn
        ascending = self.centres.detach()[order]
        found = order[torch.bucketize(y.detach(), (ascending[1:] + ascending[:-1]) / 2)]
        return soft + (self.centres[found] - soft).detach(), rate(shares, found)


class SelfAttention(nn.Module):
    """SAGAN's self-attention over all places (Zhang et al. 2018); starts as the identity.

    Keys and values are pooled to half the resolution, as in its published code.
    """

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        narrow = max(1, width // 8)
        self.f = CONV[dims](width, narrow, 1)
        self.g = CONV[dims](width, narrow, 1)
        self.h = CONV[dims](width, width, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[b, width, *grid] to the same shape."""
        pool = POOL[x.ndim - 2]
        key, value = (pool(each(x), 2, ceil_mode=True).flatten(2) for each in (self.f, self.h))
        query: Tensor = self.g(x).flatten(2)
        looked = value @ (key.transpose(1, 2) @ query).softmax(1)
        return x + self.gamma * looked.reshape(x.shape)


class UpBlock(nn.Module):
    """A residual transposed convolution: twice the resolution."""

    def __init__(self, inputs: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.up = TRANSPOSED[dims](inputs, outputs, 4, 2, 1)
        self.conv = CONV[dims](outputs, outputs, 3, padding=1)
        self.shortcut = TRANSPOSED[dims](inputs, outputs, 2, 2)
        self.gate = nn.Parameter(torch.full((1,), GATE))

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, *side] to [b, outputs, *(2 * side)]."""
        grown: Tensor = self.conv(F.relu(self.up(F.relu(x))))
        around: Tensor = self.shortcut(x)
        return around + self.gate * grown


class DeepCOD(nn.Module):
    """One encoder, quantiser and decoder. `mean` and `span` are of each of the input's features."""

    mean: Tensor
    span: Tensor
    unit: Tensor

    def __init__(self, config: DeepCODConfig) -> None:
        super().__init__()
        self.config = config
        dims, (first, *_), last = config.dims, config.widths, config.widths[-1]
        self.encoder = CONV[dims](
            config.inputs, config.channels, config.kernel, config.kernel, bias=False
        )
        nn.init.orthogonal_(self.encoder.weight)
        self.register_buffer("mean", torch.zeros(config.inputs))
        self.register_buffer("span", torch.ones(config.inputs))
        self.register_buffer("unit", torch.ones(1))
        self.quantizer = Quantizer(config.levels)
        self.gain = nn.Parameter(torch.full((1,), config.kernel ** (-dims / 2)))
        blocks = [
            UpBlock(a, b, dims) for a, b in zip(config.widths, config.widths[1:], strict=False)
        ]
        self.decoder = nn.Sequential(
            CONV[dims](config.channels, first, 3, padding=1),
            SelfAttention(first, dims),
            *blocks,
            nn.ReLU(),
            CONV[dims](last, config.inputs, 3, padding=1),
            nn.Tanh(),
        )

    def encode(self, x: Tensor) -> Tensor:
        """[b, inputs, *size] to symbols int64 [b, channels, *grid]."""
        return self.quantizer.indices(self._measured(x))

    def decode(self, symbols: Tensor) -> Tensor:
        """Symbols int64 [b, channels, *grid] to [b, inputs, *(size / shrink)]."""
        return self._restored(self.quantizer.centres[symbols])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For training: what `decode` gives of `x`, and the symbols' `rate` in bits each."""
        y, bits = self.quantizer(self._measured(x))
        return self._restored(y), bits

    def scaled(self, x: Tensor) -> Tensor:
        """[b, inputs, *any] into [-1, 1], by `mean` and `span`."""
        mean, span = self._scale(x.ndim - 2)
        return (x - mean) / span

    def isometry(self) -> Tensor:
        """Equation 7: how far the encoder's matrix [h w inputs, channels] is from semi-orthogonal.

        The Frobenius norm; zero where it is an isometry on its own subspace.
        """
        matrix = self.encoder.weight.flatten(1).T
        error = matrix.T @ matrix - torch.eye(matrix.shape[1]).to(matrix)
        norm: Tensor = torch.linalg.norm(error)
        return norm

    def plain(self) -> Tensor:
        """The encoder's kernel [channels, inputs, *k] for what is not scaled, to its symbols."""
        weight: Tensor = self.encoder.weight
        return weight * self.folded()

    def folded(self) -> Tensor:
        """What scaling before and behind the encoder makes of its weights [inputs, 1, ...]."""
        return self.unit / self.span.view(-1, *[1] * self.config.dims)

    def _measured(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.scaled(x))
        return self.unit * y

    def _restored(self, y: Tensor) -> Tensor:
        restored: Tensor = self.decoder(self.gain * y)
        mean, span = self._scale(y.ndim - 2)
        return mean + span * restored

    def _scale(self, dims: int) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * dims)
        return self.mean.view(shape), self.span.view(shape)


def rate(shares: Tensor, symbols: Tensor) -> Tensor:
    """Bits that a symbol takes, from soft assignments [b, c, *grid, L] and hard ones [b, c, *grid].

    The cross entropy between every symbol's assignment and how often its channel's symbols occur
    in the batch (Agustsson et al. 2017 regularise by the entropy as well). Its gradient moves
    symbols to those that occur more often.
    """
    b, c, *_, levels = shares.shape
    book = levels * torch.arange(c, device=shares.device)[:, None]
    counts = (symbols.reshape(b, c, -1) + book).flatten().bincount(minlength=c * levels) + 1.0
    each = counts.view(c, levels)
    bits = (each.sum(1, keepdim=True) / each).log2()
    mean: Tensor = (shares.sum((0, *range(2, shares.ndim - 1))) * bits).sum() / symbols.numel()
    return mean


def constrain(model: DeepCOD) -> DeepCOD:
    """Put spectral normalisation (9), one power iteration a step, on the decoder's weights."""
    for module in model.decoder.modules():
        if isinstance(module, (*CONV.values(), *TRANSPOSED.values())):
            spectral_norm(module, n_power_iterations=1)
    return model


@torch.no_grad()
def settle(model: DeepCOD, iterations: int = 20) -> DeepCOD:
    """Make `model` fit to be served: normalised weights as plain ones, centres ascending."""
    model.train()
    for module in model.decoder.modules():
        if is_parametrized(module, "weight"):
            for _ in range(iterations):
                module.weight  # noqa: B018 - each access is a power iteration
    model.eval()
    for module in model.decoder.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight")
    centres = model.quantizer.centres
    centres.copy_(centres.sort().values)
    return model


@torch.no_grad()
def snap(model: DeepCOD) -> DeepCOD:
    """Make the encoder's `plain` kernel whole numbers from -STEPS to STEPS times a common factor.

    So that a frame's bytes can be convolved as they are, without an error. Everything else becomes
    what it will be when it is published, in half precision.
    """
    model.half().float()
    factor = model.plain().abs().max() / STEPS
    model.encoder.weight.copy_((model.plain() / factor).round() * factor / model.folded())
    return model


@dataclass(frozen=True)
class RatesConfig:
    """The codecs of a profile: for each, the fields of its config and the point that it codes.

    `points` are those of the model behind, "input" for all if empty; of one point, codecs come by
    rising rate.
    """

    rates: tuple[Mapping[str, Any], ...]
    points: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.points and len(self.points) != len(self.rates):
            raise ValueError("points are as many as rates")

    def configs(self) -> tuple[DeepCODConfig, ...]:
        """The config of every codec. Raises TypeError or ValueError if they are none."""
        return tuple(from_mapping(DeepCODConfig, each) for each in self.rates)

    def places(self, point: str) -> list[int]:
        """Which of the codecs code `point`."""
        points = self.points or ("input",) * len(self.rates)
        return [place for place, each in enumerate(points) if each == point]


class Rates(nn.Module):
    """Codecs of one model's points at several rates; of a point, the first takes fewest bytes."""

    def __init__(self, config: RatesConfig) -> None:
        super().__init__()
        self.config = config
        self.codecs = nn.ModuleList(DeepCOD(each) for each in config.configs())

    def codec(self, rate: int, point: str = "input") -> DeepCOD:
        """Codec number `rate` of `point`, counted from 1. Raises IndexError if there is none."""
        codec = self.codecs[self.config.places(point)[rate - 1]]
        assert isinstance(codec, DeepCOD)
        return codec
