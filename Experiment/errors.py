"""The error that a user can mend."""


class UserError(Exception):
    """Something the user can mend: scripts print it as one line and end with exit code 2."""
