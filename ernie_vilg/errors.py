"""The error that a person can mend: settings, or an input they named, that cannot be used.

A program answers it with one line and exit code 2, which no launcher and no batch script tries
again. Every other exception is a fault of ours, of a library or of the machine: a traceback and
exit code 1.

Source: ours.
"""

_MOST_CHARACTERS = 8000
_KEPT_CHARACTERS = 2000
"""Characters that are kept of either end of a longer message."""


class InputError(ValueError):
    """A setting or an input named by the user cannot be used.

    The message says what was given, what is required, and what to do. What was given may be a
    megabyte: of a message beyond every use the middle is left out.
    """

    def __init__(self, message: object = "") -> None:
        """Take the message."""
        text = str(message)
        if len(text) > _MOST_CHARACTERS:
            end = len(text) - _KEPT_CHARACTERS
            text = f"{text[:_KEPT_CHARACTERS]} [{end - _KEPT_CHARACTERS:,} characters] {text[end:]}"
        super().__init__(text)
