"""What is shown of a long part of a run: a bar on a terminal, messages to the pipeline, plain lines elsewhere."""

import io
import json
import sys

import pytest

from cli.process import TerminalHandler
from Experiment import progress as module
from Experiment.progress import LIVE, MARK, TO_PIPELINE, duration, each, open_parts, progress, shown_live
from tests.tiny_networks import one_layer


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def at_once(monkeypatch):
    for name in ("SHOWN_AFTER", "EVERY_MESSAGE", "EVERY_LINE"):
        monkeypatch.setattr(module, name, 0.0)


def test_plain_lines_where_they_are_asked_for(at_once, capsys):
    with progress(4, "image", done=1, lines=True) as part:
        part.advance()
        part.advance(2)
    with progress(4, "step") as part:  # Keras's own lines tell of it
        part.advance()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["image 2 of 4, 0 s, 0 s left", "image 4 of 4, 0 s, 0 s left"] and not shown_live()


def test_a_part_that_is_over_soon_says_nothing(capsys):
    list(each(range(3), "image"))
    assert capsys.readouterr() == ("", "")


def test_messages_to_the_pipeline_name_all_open_parts(at_once, monkeypatch, capsys):
    monkeypatch.setenv(TO_PIPELINE, LIVE)
    with progress(3, "trial", 1) as trials:
        assert list(each(["ab", "c"], "image", 3, len)) == ["ab", "c"]
        trials.reach(2, "best 0.5")
    assert shown_live()
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(MARK) for line in lines)
    assert [json.loads(line[1:]) for line in lines] == [
        [["trial", 1, 3, ""], ["image", 2, 3, ""]], [["trial", 1, 3, ""], ["image", 3, 3, ""]], [["trial", 2, 3, "best 0.5"]],
    ]  # fmt: skip


def test_a_pipeline_without_a_terminal_gets_messages_and_lines(at_once, monkeypatch, capsys):
    monkeypatch.setenv(TO_PIPELINE, "with lines")
    with progress(4, "image", done=1, lines=True) as part:
        part.advance()
    assert not shown_live()
    assert capsys.readouterr().out.splitlines() == [MARK + '[["image", 2, 4, ""]]', "image 2 of 4, 0 s, 0 s left"]


def test_a_bar_on_a_terminal_and_lines_above_it(at_once, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    handler = TerminalHandler(sys.stdout)
    with progress(4, "step") as part:
        part.reach(2, "loss 0.5")
        part.bar.refresh()
        import logging

        handler.emit(logging.makeLogRecord({"msg": "a line"}))
    shown = sys.stderr.getvalue()
    assert "2/4" in shown and "loss 0.5" in shown and shown.endswith("\r")  # the bar is gone
    assert sys.stdout.getvalue() == "a line\n" and not open_parts


def test_a_part_ends_with_what_goes_wrong_in_it():
    with pytest.raises(ValueError), progress(4, "step"):
        raise ValueError
    assert not open_parts


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def few_images(monkeypatch):
    """A classifier of two classes, and 12 images: two steps an epoch of batches of 6."""
    import numpy as np

    from Models.classifier import Classifier
    from Models.classifiers import CLASSIFIERS

    monkeypatch.setitem(CLASSIFIERS, "one", one_layer)
    rng = np.random.default_rng(0)
    return Classifier("one", 8, 2), (rng.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 2)


def test_the_steps_of_a_fit_are_counted_over_epochs(monkeypatch, capsys, at_once, few_images):
    monkeypatch.setenv(TO_PIPELINE, LIVE)
    classifier, data = few_images
    classifier.fit(data, data, epochs=2, batch_size=6, seed=1, patience=(5, 5))
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith(MARK) for line in lines)  # Keras says nothing itself
    told = [json.loads(line[1:])[0] for line in lines]
    assert [done for _, done, _, _ in told] == [0, 1, 2, 2, 3, 4] and told[-1][:3] == ["step", 4, 4]
    assert told[-1][3].startswith("epoch 2, loss ") and "val_accuracy" in told[-1][3]
    classifier.fit(data, data, epochs=1, batch_size=6, seed=1, patience=(5, 5), verbose=0)
    assert capsys.readouterr().out == ""


def test_an_epoch_of_more_than_a_minute_has_lines_of_its_own(monkeypatch, capsys, few_images):
    classifier, data = few_images
    how = {"epochs": 2, "batch_size": 6, "seed": 1, "patience": (5, 5)}
    classifier.fit(data, data, **how)
    assert "Epoch 2/2" in (said := capsys.readouterr().out) and " of 4, " not in said
    monkeypatch.setattr(module, "EVERY_LINE", 0.0)
    classifier.fit(data, data, **how)
    said = capsys.readouterr().out
    assert said.index("Epoch 1/2") < said.index("step 1 of 4, ") < said.index("Epoch 2/2") < said.index("step 3 of 4, ")
