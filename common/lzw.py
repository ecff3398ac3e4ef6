"""LZW (Welch 1984), the lossless code that Janus and its baselines are published with.

Codes are packed most significant bit first, each as wide as the largest code that can stand there:
8 bits for the first, then 9, up to 16. When the table has no more 16-bit codes, both sides begin a
new one. The loop over the bytes runs in Python, at a few MB/s: lz4 and zstd are there for speed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SINGLE = 256
PERIOD = (1 << 16) - SINGLE
"""Codes until the table is full: each one adds an entry."""


def compress(data: bytes | memoryview) -> bytes:
    """`data` as LZW codes."""
    codes = np.array(_match(bytes(data)), dtype=np.uint32)
    bits = [np.empty(0, np.uint8)]
    start = 0
    for count, width in _widths():
        if start >= len(codes):
            break
        part = codes[start : start + count, None]
        bits.append((part >> np.arange(width - 1, -1, -1, dtype=np.uint32) & 1).astype(np.uint8))
        start += count
    return np.packbits(np.concatenate([each.reshape(-1) for each in bits])).tobytes()


def expand(data: bytes | bytearray | memoryview, size: int) -> bytes:
    """The `size` bytes that `data` holds. Raises ValueError if it does not hold so many exactly.

    Takes memory in proportion to `size` and to the length of `data`, whatever the codes are.
    """
    out: list[bytes] = []
    left = size
    for table_codes in _tables(data):
        table = [bytes((value,)) for value in range(SINGLE)]
        last = b""
        for code in table_codes:
            if code < len(table):
                entry = table[code]
            elif code == len(table) and last:
                entry = last + last[:1]
            else:
                raise ValueError(f"code {code} comes before its entry")
            left -= len(entry)
            if left < 0:
                raise ValueError(f"more than {size} bytes")
            out.append(entry)
            if last:
                table.append(last + entry[:1])
            last = entry
    if left:
        raise ValueError(f"{size - left} bytes, not {size}")
    return b"".join(out)


def _match(data: bytes) -> list[int]:
    """The codes of `data`: each time the longest entry that it goes on with."""
    if not data:
        return []
    codes: list[int] = []
    table: dict[int, int] = {}
    free = SINGLE
    prefix = data[0]
    for byte in data[1:]:
        pair = prefix << 8 | byte
        found = table.get(pair)
        if found is not None:
            prefix = found
            continue
        codes.append(prefix)
        table[pair] = free
        free += 1
        prefix = byte
        if free == SINGLE + PERIOD:
            table.clear()
            free = SINGLE
    codes.append(prefix)
    return codes


def _widths() -> Iterator[tuple[int, int]]:
    """(how many codes, bits of each), for ever: the n-th code of a table is at most 255 + n."""
    while True:
        yield 1, 8
        for width in range(9, 16):
            yield 1 << (width - 1), width
        yield PERIOD - (1 << 15) + SINGLE - 1, 16


def _tables(data: bytes | bytearray | memoryview) -> Iterator[list[int]]:
    """The codes in `data`, those of one table at a time."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    start, codes = 0, list[int]()
    for count, width in _widths():
        if width == 8 and codes:
            yield codes
            codes = []
        take = min(count, (len(bits) - start) // width)
        part = bits[start : start + take * width].reshape(take, width)
        codes += (part @ (1 << np.arange(width - 1, -1, -1))).tolist()
        start += take * width
        if take < count:
            break
    if len(bits) - start >= 8 or bits[start:].any():
        raise ValueError("bits left over")
    if codes:
        yield codes
