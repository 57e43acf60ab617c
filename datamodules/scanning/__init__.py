"""Measure a corpus once: from a folder to a manifest."""
