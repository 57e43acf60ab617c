"""The coded file `.sps`."""
