"""Loader processes that survive files which vanish, hang or crash a decoder."""
