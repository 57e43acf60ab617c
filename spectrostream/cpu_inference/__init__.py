"""A trained codec, rearranged for speed on a CPU."""
