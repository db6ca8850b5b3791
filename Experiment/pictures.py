"""Pictures tell of a run and are no part of its result: one that fails is a warning."""

import logging

from Experiment.errors import UserError
from Experiment.text import one_line

log = logging.getLogger("experiment")


def try_to_draw(what, draw, *args, **kwargs):
    """What a function that draws returns; None, and a warning, where it fails.

    Whatever a picture may fail for, memory and fonts above all, is no reason to lose a run of days.

    A mistake of the user, such as an image that cannot be read, is not the picture's.

    Args:
        what: Of what the picture is, for the warning.
        draw: The function, called with the rest.
    """
    try:
        return draw(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        log.warning("%s cannot be drawn: %s", what, one_line(error)[:300] or type(error).__name__)
        return None
