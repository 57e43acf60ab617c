"""Transcode a corpus once: from a manifest to FLAC files or shards."""
