"""What device and server share: numpy and msgpack, never torch."""
