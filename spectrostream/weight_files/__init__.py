"""Files of weights: ours, the officially released ones, and where they are found."""
