"""The services under a real systemd, in user-mode Linux: `./run systemd`."""
