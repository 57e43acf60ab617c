"""Corpora to crops to batches `[batch, channels, samples]`, float32 at 48 kHz."""
