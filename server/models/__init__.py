"""The networks of the server, one architecture per file, shared by training and serving."""
