"""The server's half of every strategy: one file each, none importing another."""
