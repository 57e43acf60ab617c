"""The error that a command shows without a traceback."""


class UserError(Exception):
    """What the user can act on; the message says what was given, what is allowed, what to type."""
