"""Shards: tar files of prepared audio, on this disk or behind HTTP or S3, and crops that go through them in windows."""
