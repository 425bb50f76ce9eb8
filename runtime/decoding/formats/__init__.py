"""One module per format: what a file says of its samples, and what its decoder is to read."""
