"""Training frames as a server gets them: coded, reduced, sent in one round or in two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from common import codec
from common.patches import mosaic, unmosaic
from profiles.train.patchwork import PATCH, some
from server.models.mae import take
from server.models.spread import spread
from server.models.vit import VisionTransformer

U8 = npt.NDArray[np.uint8]


def coded(patches: Tensor, quality: int) -> Tensor:
    """``patches`` [b, k, 768] in [0, 1] after a JPEG of each frame's mosaic."""
    pixels = (patches * 255).round().to(torch.uint8).numpy()
    tensors = (codec.encode(mosaic(each, PATCH), "jpeg", quality=quality) for each in pixels)
    arrived = [unmosaic(codec.decode(tensor), patches.shape[1], PATCH) for tensor in tensors]
    return torch.from_numpy(np.stack(arrived)).float() / 255


def reduced(frames: U8, scale: float, quality: int) -> U8:
    """``frames`` [n, s, s, 3] sent as JPEGs of ``scale`` times their side, and enlarged again."""
    side = frames.shape[1]
    small = max(PATCH, round(side * scale))
    out = np.empty_like(frames)
    for index, frame in enumerate(frames):
        image = Image.fromarray(frame)
        if small < side:
            image = image.resize((small, small), Image.Resampling.BOX)
        arrived = codec.decode(codec.encode(np.asarray(image), "jpeg", quality=quality))
        large = Image.fromarray(arrived).resize((side, side), Image.Resampling.BICUBIC)
        out[index] = np.asarray(large)
    return out


@torch.no_grad()
def two_rounds(vit: VisionTransformer, patches: Tensor, first: float, second: float) -> Tensor:
    """Places [b, k] of a random share ``first`` and of a share ``second`` that it makes wanted.

    The second round is where the class token's attention to the first spreads to.
    """
    b, n, _ = patches.shape
    sent = some(max(1, int(n * first)), n, b)
    training = vit.training
    vit.eval()
    attention = vit(take(patches, sent), sent).attention
    vit.train(training)
    rest = spread(attention, sent, vit.config.grid).scatter(1, sent, -1.0)
    wanted = rest.topk(max(1, int(n * second)), dim=1).indices
    return torch.cat((sent, wanted), dim=1).sort(1).values
