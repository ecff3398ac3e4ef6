"""The state of a connection: who may say what when, credits, ids, silence."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from common.errors import ProtocolError, Refused, Unavailable
from common.messages import (
    Bye,
    Cancel,
    Chunk,
    Fetch,
    Hello,
    Message,
    Ping,
    Pong,
    Query,
    Refusal,
    Result,
    Tensor,
    Welcome,
)
from common.protocol import LEGAL, Phase, Side, State, Timing, choose_version
from tests.packets import EXAMPLES

HELLO = Hello((1,), "a", (), 1 << 20)
WELCOME = Welcome(1, "s", "p", "d", (), 1 << 20, credits=2)
TIMING = Timing(hello=5.0, ping=10.0, dead=4.0)


def server() -> State:
    """An open server's state, two credits granted."""
    state = State(Side.SERVER, 0.0, TIMING)
    assert state.received(HELLO)
    state.sent(WELCOME, None)
    return state


def device() -> State:
    """An open device's state, two credits granted."""
    state = State(Side.DEVICE, 0.0, TIMING)
    state.sent(HELLO, None)
    assert state.received(WELCOME)
    return state


def in_phase(side: Side, phase: Phase) -> State:
    state = server() if side is Side.SERVER else device()
    if side is Side.DEVICE:
        for id in (41, 42):
            state.sent(Query("raw", "whole"), id)
    state.enter(phase)
    return state


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.DRAINING, Phase.CLOSED])
@pytest.mark.parametrize("kind", get_args(Message))
def test_the_table_is_kept(side: Side, phase: Phase, kind: type[Any]) -> None:
    message = next(m for m in EXAMPLES.values() if type(m) is kind)
    if type(message) is Chunk:
        message = Chunk(4, 6, "", message.tensors, id=42)
    state = in_phase(side, phase)
    if kind in LEGAL[side, phase]:
        state.received(message)
    else:
        with pytest.raises(ProtocolError, match=f"{kind.__name__} is not allowed"):
            state.received(message)


def test_a_handshake_comes_first_and_once() -> None:
    state = State(Side.SERVER, 0.0)
    with pytest.raises(ProtocolError, match="Query is not allowed before the welcome"):
        state.received(Query("raw", "whole", id=1))
    state.received(HELLO)
    with pytest.raises(ProtocolError, match="twice"):
        state.received(HELLO)
    state = server()
    with pytest.raises(ProtocolError, match="Hello is not allowed while open"):
        state.received(HELLO)
    with pytest.raises(ProtocolError, match="Result is not allowed before"):
        State(Side.DEVICE, 0.0).received(Result("edge", id=1))


def test_versions() -> None:
    assert choose_version((1, 2, 3), (1, 2)) == 2
    with pytest.raises(Refused, match=r"no common version: \[1\] spoken here"):
        choose_version((7, 8), (1,))
    state = State(Side.DEVICE, 0.0)
    with pytest.raises(ProtocolError, match="version 9"):
        state.received(Welcome(9, "s", "p", "d", (), 1, 1))


def test_credits_bind_the_device() -> None:
    state = server()
    state.received(Query("raw", "whole", id=1))
    state.received(Fetch("x", id=2))
    with pytest.raises(ProtocolError, match="more than the 2 credits"):
        state.received(Query("raw", "whole", id=3))
    state.sent(Result("edge", id=1), None)
    state.received(Query("raw", "whole", id=3))
    assert state.outstanding == {2, 3}


def test_a_device_may_not_exceed_its_credits_either() -> None:
    state = device()
    state.sent(Query("raw", "whole"), 1)
    state.sent(Query("raw", "whole"), 2)
    with pytest.raises(ValueError, match="more than the 2 credits"):
        state.sent(Query("raw", "whole"), 3)


def test_ids() -> None:
    state = server()
    with pytest.raises(ProtocolError, match="id 0"):
        state.received(Query("raw", "whole", id=0))
    state.received(Query("raw", "whole", id=5))
    with pytest.raises(ProtocolError, match="id 5 is outstanding already"):
        state.received(Fetch("x", id=5))
    with pytest.raises(ValueError, match="id 6, which is not outstanding"):
        state.sent(Refusal("busy", "", True, id=6), None)
    asker = device()
    with pytest.raises(ProtocolError, match="answer to id 6"):
        asker.received(Result("edge", id=6))


def test_cancel_keeps_the_credit_until_the_answer() -> None:
    state = server()
    assert not state.received(Cancel(id=9))
    state.received(Query("raw", "whole", id=1))
    assert state.received(Cancel(id=1))
    assert state.outstanding == {1}
    state.sent(Refusal("cancelled", "", False, id=1), None)
    assert not state.received(Cancel(id=1))
    assert not state.outstanding


def test_a_fetch_lasts_until_its_last_byte() -> None:
    def chunk(at: int, n: int) -> Chunk:
        return Chunk(at, 6, "", {"data": Tensor(bytes(n), "uint8", (n,))}, id=1)

    sender, receiver = server(), device()
    sender.received(Fetch("x", id=1))
    receiver.sent(Fetch("x"), 1)
    for piece, left in ((chunk(0, 4), {1}), (chunk(4, 2), set())):
        sender.sent(piece, None)
        receiver.received(piece)
        assert sender.outstanding == receiver.outstanding == left
    receiver.sent(Fetch("empty"), 2)
    receiver.received(Chunk(0, 0, "", id=2))
    assert not receiver.outstanding


def test_bye() -> None:
    state = device()
    state.received(Bye("drain", "restart"))
    assert state.phase is Phase.DRAINING
    state.received(Bye("done", ""))
    assert state.phase is Phase.CLOSED
    with pytest.raises(ProtocolError, match="Ping is not allowed after Bye"):
        state.received(Ping(id=1))
    early = State(Side.DEVICE, 0.0)
    early.received(Bye("drain", "restart"))
    assert early.phase is Phase.CLOSED


def test_pings_only_when_idle() -> None:
    state = device()
    assert state.tick(9.0, heard=False) is None
    assert state.tick(9.5, heard=True) is None
    assert state.tick(19.0, heard=False) is None
    assert state.tick(19.5, heard=False) == Ping(id=1)
    assert state.tick(20.0, heard=False) is None
    state.received(Pong(id=1))
    assert state.tick(21.0, heard=True) is None
    assert state.tick(30.0, heard=False) is None


def test_any_byte_proves_life_and_silence_is_death() -> None:
    state = device()
    assert state.tick(10.0, heard=False) == Ping(id=1)
    assert state.tick(13.0, heard=True) is None
    assert state.tick(23.0, heard=False) == Ping(id=1)
    with pytest.raises(Unavailable, match="nothing heard for 14 s"):
        state.tick(27.0, heard=False)


@pytest.mark.parametrize("side", Side)
def test_a_handshake_must_come_in_time(side: Side) -> None:
    state = State(side, 0.0, TIMING)
    assert state.tick(4.9, heard=True) is None
    with pytest.raises(ProtocolError, match="no handshake within 5 s"):
        state.tick(5.0, heard=True)
