"""The error that a user can mend, and which of them may mend themselves."""

import errno

MAY_PASS = 75  # exit code: EX_TEMPFAIL of sysexits.h
# Of a network, or of a file system that is on one.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ECONNREFUSED, errno.ECONNRESET,
           errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ENOLCK, errno.ESHUTDOWN,
           errno.EHOSTDOWN, errno.ENETRESET, errno.ECONNABORTED, getattr(errno, "EREMOTEIO", errno.EIO)}  # fmt: skip


class UserError(Exception):
    """Something the user can mend: scripts print it as one line and end with exit code 2."""


class PassingError(UserError):
    """Something that may be over when the same command is given again: scripts end with `MAY_PASS`, for batch systems."""


def may_pass(error):
    """Whether an error may be over when the same command is given again."""
    return isinstance(error, PassingError) or isinstance(error, OSError) and error.errno in PASSING


def let_pass(error, path=None):
    """Raise an error again that may pass, with the file's name: only others say that a file is damaged."""
    if may_pass(error):
        if isinstance(error, OSError) and error.filename is None:
            error.filename = None if path is None else str(path)
        raise error


def exit_code(error):
    """The exit code for an error that ends in one line."""
    return MAY_PASS if may_pass(error) else 2
