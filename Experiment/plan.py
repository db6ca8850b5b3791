"""What a stage knows before anything heavy is loaded."""

from types import SimpleNamespace


class Plan(SimpleNamespace):
    """Named facts of a run: what the stage's `plan` has found, handed to the stage.

    Attributes:
        done: A line where there is nothing to do.
        thrown_away: Whether --restart has done what it shall: interrupted now, the same command goes on without it.
    """

    done, thrown_away = None, False
