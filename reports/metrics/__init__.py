"""The metrics: what each means, and how it is computed."""
