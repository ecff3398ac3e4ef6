"""Where the training of a DeepCOD codec starts: at the best linear codec of its data.

The encoder begins as the principal components of what lies at the point, which satisfy the paper's
equation 7 as they are; the decoder undoes them, one halving of the area after the other, through
its shortcuts alone; the quantiser's step is the one that gives the bytes asked for. Training then
has the decoder's other paths to learn and, of all, what the backbone looks at.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from server.models.deepcod import DeepCOD, DeepCODConfig, UpBlock

STEP = 1.5
"""Distance between centres at the start, in the quantiser's units."""
SPAN = 8.0
"""Deviations of a feature that lie within [-1, 1]: few values leave the tanh's straight part."""
CLEAR = 3.0
"""Deviations by which what enters the last ReLU is lifted, so that it passes it."""
UNITS = (1e-2, 1e3)
"""What `unit` may be: float16 holds it, and its inverse."""
FAINT = 0.02
"""How large weights are that the linear codec has no use for."""


@torch.no_grad()
def start(config: DeepCODConfig, x: Tensor, size: float, begin: DeepCOD | None = None) -> DeepCOD:
    """A codec for data such as `x` [n, inputs, *size], of about `size` bytes for each of them.

    With `begin`, a trained codec that differs in its levels at most, it is that one with another
    step.
    """
    model = DeepCOD(config)
    middle = (config.levels - 1) / 2
    model.quantizer.centres.copy_((torch.arange(config.levels) - middle) * STEP)
    if begin is not None:
        state = begin.state_dict()
        if config.levels != begin.config.levels:
            del state["quantizer.centres"]
        model.load_state_dict(state, strict=False)
    else:
        places = tuple(range(2, x.ndim))
        model.mean.copy_(x.mean((0, *places)))
        model.span.copy_((SPAN * x.std((0, *places))).clamp_min(1e-3))
        rows = pieces(config, model.scaled(x))
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        kernel = vectors.flip(1)[:, : config.channels].T
        model.encoder.weight.copy_(kernel.reshape(model.encoder.weight.shape))
        undo(model, values.flip(0)[: config.channels].clamp_min(0))
    before = float(model.unit)
    y = model.encoder(model.scaled(x))
    low, high = UNITS[0], UNITS[0]
    most = 0.0
    while high < UNITS[1]:  # upwards: where all fall to the outmost centres, entropy falls again
        model.unit.fill_(high)
        bits = entropy(model.quantizer.indices(model.unit * y), config.levels)
        if bits >= 8 * size or bits < most:
            break
        low, high, most = high, high * 1.25, bits
    for _ in range(8):
        model.unit.fill_((low * high) ** 0.5)
        few = entropy(model.quantizer.indices(model.unit * y), config.levels) < 8 * size
        low, high = (float(model.unit), high) if few else (low, float(model.unit))
    model.gain.mul_(before / float(model.unit))
    return model


def pieces(config: DeepCODConfig, x: Tensor) -> Tensor:
    """What the encoder's kernel sees of `x` [n, inputs, *size]: rows [places, inputs * k...]."""
    found = x
    for dim in range(config.dims):
        found = found.unfold(2 + dim, config.kernel, config.kernel)
    # [n, inputs, *grid, *kernel] to one row for each place.
    grid = range(2, 2 + config.dims)
    order = (0, *grid, 1, *range(2 + config.dims, found.ndim))
    return found.permute(*order).flatten(1 + config.dims).flatten(0, config.dims)


def entropy(symbols: Tensor, levels: int) -> float:
    """Bits that one of [n, c, *grid] takes if its channels' statistics are known."""
    n, c = symbols.shape[:2]
    flat = symbols.reshape(n, c, -1)
    book = levels * torch.arange(c)[:, None]
    counts = (flat + book).flatten().bincount(minlength=c * levels).view(c, levels).float()
    shares = counts / counts.sum(1, keepdim=True)
    bits = -(shares * shares.clamp_min(1e-9).log2()).sum(1)
    return float(bits.sum() * flat.shape[2])


@torch.no_grad()
def undo(model: DeepCOD, energies: Tensor) -> None:
    """Make the decoder's linear part the encoder's transpose, as far as its widths allow.

    `energies` [channels] are the components' mean squares: what matters most is kept.
    """
    config = model.config
    first, blocks, last = _layers(model)
    side = config.kernel // config.shrink
    basis = model.encoder.weight.movedim(0, -1)  # [inputs, *k, c]
    if config.shrink > 1:
        for dim in range(config.dims):
            shape = [*basis.shape]
            shape[1 + dim : 2 + dim] = [side, config.shrink]
            basis = basis.reshape(shape).mean(2 + dim)
    kept = min(config.channels, config.widths[0])
    basis, spread = basis[..., :kept], torch.diag(energies[:kept])
    _faint(first.weight)
    centre = _at((slice(None), slice(None), *[1] * config.dims))
    first.weight[centre][:kept, :kept] += torch.eye(kept)
    for block in blocks:
        side //= 2
        parts = {
            place: basis[_at((slice(None), *(slice(at * side, (at + 1) * side) for at in place)))]
            .reshape(-1, basis.shape[-1])
            for place in product((0, 1), repeat=config.dims)
        }  # fmt: skip
        whole = sum(part @ spread @ part.T for part in parts.values())
        assert isinstance(whole, Tensor)
        width = min(block.shortcut.weight.shape[1], len(whole))
        axes = torch.linalg.eigh(whole)[1].flip(1)[:, :width]
        _faint(block.shortcut.weight)
        for place, part in parts.items():
            here = _at((slice(part.shape[1]), slice(width), *place))
            block.shortcut.weight[here] += (axes.T @ part).T
        spread = axes.T @ whole @ axes / len(parts)
        basis = axes.reshape(config.inputs, *[side] * config.dims, width)
    _faint(last.weight)
    last.weight[centre][:, : basis.shape[-1]] += basis.reshape(config.inputs, -1)


@torch.no_grad()
def level(model: DeepCOD, x: Tensor, fresh: bool) -> None:
    """After spectral normalisation: the gain that makes up for it, and nothing cut by a ReLU.

    `x` [n, inputs, *size]: data to look at. `fresh`: whether the codec is the linear one.
    """
    if not fresh:
        return
    first, blocks, last = _layers(model)
    shortcuts = [block.shortcut for block in blocks]
    linear: list[Any] = [first, *shortcuts, last]
    model.train()
    for layer in linear:
        if is_parametrized(layer, "weight"):
            for _ in range(30):
                layer.weight  # noqa: B018 - each access is a power iteration
            plain = layer.parametrizations.weight.original
            model.gain.mul_(float(plain.norm() / layer.weight.norm()))
    # The encoder works on what `unit` scales, the decoder has to undo that.
    model.gain.mul_(model.config.kernel ** (model.config.dims / 2))
    ahead = shortcuts[-1] if blocks else first
    for layer in linear:
        layer.bias.zero_()
    seen: list[Tensor] = []
    last_relu: nn.Module = model.decoder[-3]
    handle = last_relu.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model.eval()
    model(x)
    handle.remove()
    places = (0, *range(2, seen[0].ndim))
    lift = CLEAR * seen[0].std(places) - seen[0].mean(places).clamp_max(0)
    assert ahead.bias is not None
    assert last.bias is not None
    ahead.bias.copy_(lift)
    last.bias.copy_(-(last.weight.flatten(2).sum(2) @ lift))


def _layers(model: DeepCOD) -> tuple[nn.Conv2d, list[UpBlock], nn.Conv2d]:
    """First convolution, blocks and last convolution of the decoder; those of 1-D alike."""
    blocks = [each for each in model.decoder if isinstance(each, UpBlock)]
    return model.decoder[0], blocks, model.decoder[-2]  # type: ignore[return-value]


def _at(place: Iterable[int | slice]) -> Any:
    """An index of a tensor, whatever its dimensions; mypy knows none of that length."""
    return tuple(place)


def _faint(weight: Tensor) -> None:
    weight.normal_(0.0, FAINT / weight.flatten(1).shape[1] ** 0.5)
