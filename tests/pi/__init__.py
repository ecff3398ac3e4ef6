"""The device in Raspberry Pi OS's base, emulated: `./run pi`."""
