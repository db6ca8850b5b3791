"""How far a long part of a run is: a bar on a terminal, messages to the pipeline that started it, plain lines elsewhere."""

import contextlib
import json
import os
import sys
import time

from tqdm import tqdm

TO_PIPELINE = "PROGRESS_TO_PIPELINE"  # environment variable that the pipeline sets for its stages
LIVE = "live"  # its value where the pipeline shows a bar; any other: messages, and plain lines too
MARK = "\x02"  # begins a message to it on standard output; no other line does
# Of other lines that it reads: how that of a run with nothing to do begins, and what that of a stopped run says.
FINISHED_BEFORE, INTERRUPTED, GOES_ON = "finished already", "interrupted; ", "goes on from there"
SHOWN_AFTER = 2.0  # s: what is over sooner is not shown
EVERY_MESSAGE, EVERY_LINE = 0.5, 60.0  # s between messages, and between plain lines

open_parts = []  # of this process, outermost first


def shown_live():
    """Whether somebody sees progress as it happens, so that lines which only tell of it can be left out."""
    return os.environ.get(TO_PIPELINE, LIVE if sys.stderr.isatty() else "") == LIVE


def duration(seconds):
    """A time as people say it: 45 s, 12 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class Part:
    """A part of a run that is under way: `done` of `total` units.

    Args:
        total: Units in all.
        unit: Name of one, such as `image`.
        done: Units that an earlier run has done.
        lines: Whether to print plain lines where nothing is shown live; not where other lines tell of it already.
    """

    def __init__(self, total, unit, done, lines):
        self.total, self.unit, self.done, self.begun_with, self.note = total, unit, done, done, ""
        self.started, self.lines, self.bar = time.monotonic(), lines and not shown_live(), None
        self.message_due, self.line_due = self.started + SHOWN_AFTER, self.started + EVERY_LINE
        if TO_PIPELINE not in os.environ and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, unit=unit, delay=SHOWN_AFTER, smoothing=0.05, leave=False,
                            dynamic_ncols=True, file=sys.stderr)  # fmt: skip

    def advance(self, count=1):
        self.reach(self.done + count)

    def reach(self, done, note=None):
        """Be `done` units far. `note` says more, such as a loss."""
        step, self.done = done - self.done, done
        if note is not None:
            self.note = note
        if self.bar is not None:
            if note is not None:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(step)
        now = time.monotonic()
        if TO_PIPELINE in os.environ and now >= self.message_due:
            self.message_due = now + EVERY_MESSAGE
            parts = [[part.unit, part.done, part.total, part.note] for part in open_parts]
            print(MARK + json.dumps(parts), flush=True)
        if self.lines and now >= self.line_due:
            self.told()
            seconds, made = now - self.started, self.done - self.begun_with
            left = seconds / max(1, made) * (self.total - self.done)
            print(f"{self.unit} {self.done} of {self.total}, {duration(seconds)}, {duration(left)} left", flush=True)

    def told(self):
        """A line has told of it: the next plain one is not due before a minute has passed."""
        self.line_due = time.monotonic() + EVERY_LINE


@contextlib.contextmanager
def progress(total, unit, done=0, lines=False):
    """Show how far a part of a run is within the block, and yield it: see `Part`. Parts may lie within one another."""
    part = Part(total, unit, done, lines)
    open_parts.append(part)
    try:
        yield part
    finally:
        open_parts.remove(part)
        if part.bar is not None:
            part.bar.close()


def each(items, unit, total=None, size=lambda item: 1):
    """The items of an iterable, with progress.

    Args:
        items: The iterable.
        unit: Name of what an item holds one of, or `size(item)` of.
        total: Units in all, if not one for each item of a sequence.
    """
    with progress(len(items) if total is None else total, unit) as part:
        for item in items:
            yield item
            part.advance(size(item))


def close_bars():
    """Take the bars off the terminal, for a last line."""
    for part in open_parts:
        if part.bar is not None:
            part.bar.close()


def write_above_bars(stream):
    """A context in which a line may be written to a terminal that shows bars."""
    return tqdm.external_write_mode(file=stream) if any(part.bar for part in open_parts) else contextlib.nullcontext()
