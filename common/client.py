"""The asyncio client: ask(query) -> Reply, with ids, deadlines, credits and reconnection.

    async with Client.connect("127.0.0.1", 7070, token="...") as client:
        reply = await client.ask(Query("raw", "whole", tensors={...}), deadline=0.5)
        print(reply.result.tensors["probabilities"], reply.bytes_up, reply.elapsed_ms)

`Client.connect(host, port, *, token="", agent="offboard", strategies=(), ssl=None, wait=10.0,
on_state=None, limits=DEFAULT, backoff=Backoff())` makes a client; entering it starts the
connection and waits at most `wait` seconds for it: Unavailable or Refused is raised if it is
not up by then; wait=0 enters at once and connects in the background.

    await client.ask(query, deadline=None) -> Reply       deadline: seconds from now
        raises Refused (the server declined) or Unavailable (link down, deadline passed)
    client.submit(query, on_reply, deadline=None) -> Pending
        the same without a future: on_reply(Reply | OffboardError) is called once, from the loop
    pending.cancel()                                      tells the server; on_reply is not called
    pending.id                                            the id under which round two finds it
    await client.fetch(path, offset=0, have=b"", deadline=None) -> bytes   sha256 checked
    client.connected: bool;  client.welcome: Welcome | None
    await client.wait_connected(timeout)                  raises Unavailable
    on_state(connected: bool, reason: str)                at every change of state
    await client.close()

Reply(result, id, bytes_up, bytes_down, elapsed_ms) is frozen. `reply.result.id` is the query's
id on this connection: put it in `memory` of a second round.
"""

from __future__ import annotations
