"""Errors that a command shows without a traceback."""


class UserError(Exception):
    """What the user can act on; the message says what was given, what is allowed, what to type.

    exit_code: of the command that ends with it. 0 is for a process that leaves the words to another one.
    """

    exit_code = 1


class WeightsError(UserError):
    """Weights that are missing, foreign or damaged, or that cannot be had; the message says which and what to do."""


def require(is_possible: bool, given: str, allowed: str) -> None:
    """Check one value of a configuration.

    Args:
        is_possible: Whether the value is allowed.
        given: The user's own key and value in words, for instance "model.width = 0 is not possible".
        allowed: What is allowed, in words.

    Raises:
        ValueError: The value is not possible; the message quotes both texts.
    """
    if not is_possible:
        raise ValueError(f"{given}; allowed: {allowed}")
