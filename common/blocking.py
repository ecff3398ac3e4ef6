"""The blocking client for scripts: the same core as `client`, one query at a time.

    with BlockingClient("127.0.0.1", 7070, token="...") as client:
        reply = client.ask(Query("raw", "whole", tensors={...}), deadline=0.5)
        data = client.fetch("", deadline=5.0)
"""

from __future__ import annotations
