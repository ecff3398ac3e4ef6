"""Every error Offboard raises on purpose, under one root.

OffboardError
+-- ConfigError     what the user gave is wrong: the text says what to do
+-- ProtocolError   the peer broke the protocol: its connection is closed
+-- Refused         the server declined one query; the connection goes on
+-- Unavailable     no answer could be had in time: link or server is gone
    +-- Silent      the network says nothing: not even that nobody listens
"""

from __future__ import annotations


class OffboardError(Exception):
    """Root of every deliberate error."""


class ConfigError(OffboardError):
    """A setting, file or argument is unusable; the text says how to mend it."""


class ProtocolError(OffboardError):
    """The peer sent something the protocol does not allow.

    `reason` is short enough to travel back in a Bye.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Refused(OffboardError):
    """The server refused a query. `retryable`: the same query may succeed later."""

    def __init__(self, code: str, reason: str, *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.retryable = retryable


class Unavailable(OffboardError):
    """No answer in time: not connected, connection lost, or deadline passed."""


class Silent(Unavailable):
    """No packet comes back from where the server should be: the link is dark."""
