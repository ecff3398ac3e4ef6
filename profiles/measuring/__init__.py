"""What each strategy has measured on the machine that will serve, one file a strategy.

`profiles/measuring/NAME.py` measures for the strategy NAME:

    measure(profile: Profile) -> dict[str, Any]
        Its parameters in profile.json that hold the measurements: JSON values, replaced whole.
        A minute or two at most. Raises ConfigError where the profile lacks what it measures.
    tables(measured: Mapping[str, Any]) -> str
        These as Markdown tables, for people.

`./run measure PROFILE` finds the file by the strategy's name; nothing registers it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

RUNS = 15
SECONDS = 0.5


def milliseconds(call: Callable[[], object], runs: int = RUNS, seconds: float = SECONDS) -> float:
    """The lower quartile of the times of `call`, a first one not counted: what other work on the
    machine adds is not its own. `runs` of them, fewer if `seconds` are over before. Wall clock, so
    of an accelerator only if `call` waits for its result.
    """
    call()
    spent: list[float] = []
    began = time.perf_counter()
    while len(spent) < runs and (len(spent) < 3 or time.perf_counter() - began < seconds):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return sorted(spent)[len(spent) // 4] * 1e3
