"""The error a user can act on. Programs print its message and exit with its code; everything else is a bug."""


class UserError(Exception):
    """A mistake in the input or the environment, told in one message: what, where, which value, the remedy.

    Args:
        message: one or two sentences naming file, key or row, the offending value and what to do.
        exit_code: exit status of the program; 2 is "mend your input".
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
