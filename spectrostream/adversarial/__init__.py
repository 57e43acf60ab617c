"""Discriminators, losses, and the recipes that put them together."""
