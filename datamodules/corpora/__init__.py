"""Corpora: manifests, splits, and the parts of tracks that are trained on and evaluated."""
