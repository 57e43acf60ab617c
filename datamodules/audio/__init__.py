"""Audio files: found, opened, read in blocks, resampled."""
