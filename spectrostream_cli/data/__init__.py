"""Commands for corpora: build, scan, stats, prepare, segments."""
