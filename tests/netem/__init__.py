"""The real pair over links shaped by the kernel: `./run netem`."""
