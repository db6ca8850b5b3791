"""Names and lists as plain text."""

import re


def shown(name):
    """A name as one line of plain text: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name))


def plain(name, most=None):
    """A name as a label: as it is written, without a meaning for Matplotlib, which takes what two dollars enclose for a formula."""
    return shown(name)[:most].replace("$", r"\$")


def one_line(text):
    """A text, of an error for instance, in one line."""
    return " ".join(str(text).split())


def markdown(text):
    """A text for a card, in one line in which Markdown finds nothing; `_` within a word is left to be read."""
    return re.sub(r"([\\`*<>|~&!\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))


def first_ten(texts, separator="; "):
    """The first ten of some texts, and how many more there are."""
    texts = list(texts)
    return separator.join(texts[:10]) + (f"{separator}and {len(texts) - 10} more" if len(texts) > 10 else "")
