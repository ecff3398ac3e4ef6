"""Amounts of bytes as people write them."""

from __future__ import annotations

import math
import re

from common.errors import ConfigError

FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_bytes(text: str) -> float:
    """Bytes in "3000", "3 kB" or "2.5MB". Raises ConfigError for anything else, 0 included."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmg]?)b?\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) * FACTORS[match[2].lower()] if match else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError(f"{text!r} is no amount of bytes such as 3000, 3kB or 2.5MB")
    return number
