"""The official JAX implementation in an environment of its own, spoken to in JSON lines; see `client` and `worker`.

Nothing here imports torch, and only `loading`, `codec` and `worker` import JAX: the driver's side runs without it.
"""
