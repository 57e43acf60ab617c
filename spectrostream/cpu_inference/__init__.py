"""A trained codec, laid out for speed on a CPU."""
