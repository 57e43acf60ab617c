"""Errors that a command shows without a traceback."""


class UserError(Exception):
    """An error that the user can correct; the message says what was given, what is allowed, what to type.

    Attributes:
        exit_code: Exit code of the command; 0 if another process reports the error.
    """

    exit_code = 1


class WeightsError(UserError):
    """Weights that are missing, damaged, of another kind or not available; the message says which and what to do."""


def require(is_possible: bool, given: str, allowed: str) -> None:
    """Check one value of a configuration.

    Args:
        is_possible: True if the value is allowed.
        given: The user's own key and value in words, for instance "model.width = 0 is not possible".
        allowed: What is allowed, in words.

    Raises:
        ValueError: The value is not possible; the message quotes both texts.
    """
    if not is_possible:
        raise ValueError(f"{given}; allowed: {allowed}")
