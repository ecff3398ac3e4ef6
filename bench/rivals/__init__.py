"""One file per way to carry a payload up and 200 bytes down, all driven alike.

A rival is a module with

    LABEL: str             what it is and with which options
    serve() -> None        bind a free loopback port, call `ready(port)`, answer for ever
    drive(port)            -> Drive: an object whose `run` loads the server; see `harness`

Server and client each run in a process of their own (`python -m bench.rivals.harness`).
"""
