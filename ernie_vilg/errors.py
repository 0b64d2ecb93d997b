"""The error that a person can mend: settings, or an input they named, that cannot be used.

A program answers it with one line and exit code 2, which no launcher and no batch script tries
again. Every other exception is a fault of ours, of a library or of the machine: a traceback and
exit code 1.

Source: ours.
"""


class InputError(ValueError):
    """A setting or an input named by the user cannot be used.

    The message says what was given, what is required, and what to do.
    """
