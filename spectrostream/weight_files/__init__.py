"""Weight files: ours, the officially released ones, and where they are found."""
