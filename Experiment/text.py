"""Names as plain text."""


def shown(name):
    """A name as one line of plain text: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name))
