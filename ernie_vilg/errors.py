"""The error for settings and inputs that cannot be used, which a person can fix.

A program prints its message and exits with code 2, after which no launcher and no batch script
tries again. Every other exception is a fault of our code, of a library or of the machine: it prints
a traceback and exits with code 1.
"""

_MOST_CHARACTERS = 8000
_KEPT_CHARACTERS = 2000
"""Characters that are kept of either end of a longer message."""


class InputError(ValueError):
    """A setting or an input named by the user cannot be used.

    The message says what was given, what is required, and what to do. Since the input may be a
    megabyte, the middle of a long message is cut.
    """

    def __init__(self, message: object = "") -> None:
        """Take the message."""
        text = str(message)
        if len(text) > _MOST_CHARACTERS:
            end = len(text) - _KEPT_CHARACTERS
            text = f"{text[:_KEPT_CHARACTERS]} [{end - _KEPT_CHARACTERS:,} characters] {text[end:]}"
        super().__init__(text)
