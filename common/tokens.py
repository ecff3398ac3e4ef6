"""A transformer's tokens as they travel: exact, in half precision, or in a byte each.

"fp32" and "fp16" are the values; in "int8" every token has a scale of its own, since a few tokens
are many times as large as the others, and a value is its whole number times the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from common.codec import encode
from common.messages import Tensor

F32 = npt.NDArray[np.float32]
DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
SCALE = "float16"


def pack(tokens: F32, precision: str, codec: str) -> dict[str, Tensor]:
    """ "tokens" [n, d] in `precision`, coded by `codec`; for "int8" their "scales" [n] as well."""
    if precision != "int8":
        return {"tokens": encode(tokens.astype(DTYPES[precision], copy=False), codec)}
    # Rounded up, so that the largest value is not beyond 127 scales; never zero.
    scales = (np.abs(tokens).max(1) / 126.5 + 1e-6).astype(SCALE)
    values = np.rint(tokens / scales[:, None].astype(np.float32)).astype(np.int8)
    return {"tokens": encode(values, codec), "scales": encode(scales)}


def restore(values: npt.NDArray[Any], scales: npt.NDArray[Any] | None) -> F32:
    """The tokens float32 [n, d] that `pack` made into `values` and, for "int8", `scales`."""
    tokens = values.astype(np.float32, copy=False)
    if scales is None:
        return tokens
    with np.errstate(invalid="ignore"):  # of scales that are no numbers: the caller looks
        return np.asarray(tokens * scales[:, None].astype(np.float32))
