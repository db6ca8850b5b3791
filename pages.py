"""Pages for a browser: one file that needs no other, from strings. Every text is escaped; pictures are within the page.

A page is read on a phone, on a screen and on paper: wide tables scroll, nothing is hidden, there is no script.
"""

import base64
import html
import re
from pathlib import Path
from urllib.parse import quote

from Experiment.files import atomic_path

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1c2430; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 2rem 3rem; background: #fff; min-height: 100vh; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.4rem 0 0.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 0.6rem; padding-top: 0.8rem; border-top: 2px solid #e3e6ea; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 0.4rem; overflow-wrap: anywhere; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.lead { color: #5a6573; margin-top: 0; }
.scroll { overflow-x: auto; margin: 0.6rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #5a6573; padding-bottom: 0.3rem; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e6ea; }
th { font-weight: 600; border-bottom: 1.5px solid #9aa4b1; }
td.n, th.n { text-align: right; white-space: nowrap; }
figure { margin: 0.8rem 0 1.4rem; break-inside: avoid; }
figure img { max-width: 100%; max-height: 46rem; height: auto; }
td:first-child { min-width: 8rem; }
figcaption { color: #5a6573; font-size: 0.88rem; max-width: 46rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 1rem 0; }
.card { flex: 1 1 10.5rem; border: 1px solid #d7dbe0; border-radius: 6px; padding: 0.6rem 0.8rem; break-inside: avoid; }
.card b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: 0.85rem; color: #5a6573; overflow-wrap: anywhere; }
.warn { border-left: 4px solid #d55e00; background: #fdf3ec; padding: 0.5rem 0.9rem; margin: 0.8rem 0; }
.note { border-left: 4px solid #0072b2; background: #eef5fa; padding: 0.5rem 0.9rem; margin: 0.8rem 0; }
.warn p, .note p, .warn ul, .note ul { margin: 0.2rem 0; }
pre { overflow-x: auto; background: #f4f5f7; border: 1px solid #e3e6ea; border-radius: 6px; padding: 0.7rem 0.9rem; font-size: 0.82rem; line-height: 1.5; }
code { font-size: 0.88em; overflow-wrap: anywhere; }
a { color: #0060a0; }
footer { margin-top: 3rem; color: #5a6573; font-size: 0.85rem; }
@media (max-width: 40rem) { main { padding: 1rem 1rem 2rem; } h1 { font-size: 1.4rem; } }
@media print {
  body { background: #fff; font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  figure img { max-height: 13cm; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: 8.5pt; }
}
"""
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def text(value):
    return html.escape(str(value))


def paragraph(value, kind=""):
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def section(title, *parts):
    """A part of a page under a heading."""
    return "\n".join([f"<section><h2>{text(title)}</h2>", *parts, "</section>"])


def heading(title):
    return f"<h3>{text(title)}</h3>"


def items(values):
    """A list."""
    return "<ul>" + "".join(f"<li>{text(value)}</li>" for value in values) + "</ul>"


def box(*values, warning=False):
    """Sentences that stand out."""
    inside = paragraph(values[0]) if len(values) == 1 else items(values)
    return f'<div class="{"warn" if warning else "note"}">{inside}</div>'


NUMBER = re.compile(r"[-+\d.,%/ \u00b1]*\d[-+\d.,%/ \u00b1]*( to [-+\d.,% ]+)?( ?(s|min|h|px|[kMG]B))?")


def is_number(cell):
    """Whether a cell holds a number, an interval, or numbers with a unit; an empty one does not disturb."""
    return cell == "" or bool(NUMBER.fullmatch(str(cell)))


def table(header, rows, caption=""):
    """A table that scrolls where it is too wide; columns of numbers, but for the first, are set to the right."""
    rows = [list(row) for row in rows]
    right = [bool(i and rows) and all(is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(cells, tag):
        marked = (f'<{tag} class="n">{text(c)}</{tag}>' if n else f"<{tag}>{text(c)}</{tag}>" for c, n in zip(cells, right))
        return "<tr>" + "".join(marked) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    told = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{told}<thead>{line(header, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'


def cards(values):
    """Figures at a glance: [(value, what it is)]."""
    inside = "".join(f'<div class="card"><b>{text(value)}</b><span>{text(told)}</span></div>' for value, told in values)
    return f'<div class="cards">{inside}</div>'


def figure(path, caption):
    """A picture, within the page."""
    path = Path(path)
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:{KINDS[path.suffix.lower()]};base64,{content}" alt="{text(caption)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def figure_if_there(path, caption):
    """A picture, or nothing where there is no such file."""
    return figure(path, caption) if path.is_file() else ""


def code(lines):
    """Commands, as they are typed."""
    return f"<pre><code>{text(chr(10).join(lines))}</code></pre>"


def link(target, words):
    """A link to a file beside the page."""
    return f'<p><a href="{text(quote(target))}">{text(words)}</a></p>'


def page(title, lead, parts, foot):
    """The whole page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
<h1>{text(title)}</h1>
{paragraph(lead, "lead")}
{chr(10).join(parts)}
<footer>{text(foot)}</footer>
</main></body>
</html>
"""


def write_page(path, content):
    with atomic_path(path) as partial:
        Path(partial).write_text(content, encoding="utf-8", errors="backslashreplace")
    return Path(path)
