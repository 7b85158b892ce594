"""The few pieces of HTML that a report is made of; every string of a user's is escaped here."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows.results import Reliability

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_STYLE = """
:root { --ink: #1c1f24; --soft: #5d6570; --line: #d8dce2; --good: #14683a; --good-back: #e8f4ec; --bad: #9a3412; --bad-back: #fdf0e7; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; }
body { margin: 2.5rem auto; max-width: 62rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.verdict { border-left: 6px solid; padding: .7rem 1rem; margin: .6rem 0 1rem; }
.verdict.good { border-color: var(--good); background: var(--good-back); }
.verdict.bad { border-color: var(--bad); background: var(--bad-back); }
.verdict p { margin: 0; } .verdict strong { font-size: 1.1rem; } .good strong { color: var(--good); } .bad strong { color: var(--bad); }
.verdict ul { margin: .4rem 0 0; padding-left: 1.2rem; } .note { color: var(--soft); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; }
td.words { text-align: left; white-space: normal; } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, footer { color: var(--soft); font-size: .88rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
"""


def page(title: str, parts: Iterable[str], footer: Iterable[str]) -> str:
    """The whole document, which needs nothing beyond itself."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n<footer>\n"
        + "\n".join(footer)
        + "\n</footer>\n</body>\n</html>\n"
    )


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def bullets(items: Iterable[str]) -> str:
    rows = "\n".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>\n{rows}\n</ul>" if rows else ""


def verdict(words: str, reliability: Reliability) -> str:
    """The box at the top: the words, the reasons, and the notes."""
    items = [f"<li>{escape(reason)}</li>" for reason in reliability.reasons]
    items += [f'<li class="note">note: {escape(note)}</li>' for note in reliability.notes]
    listed = "<ul>\n{}\n</ul>\n".format("\n".join(items)) if items else ""
    return f'<div class="verdict {"good" if reliability.ok else "bad"}">\n<p><strong>{escape(words)}</strong></p>\n{listed}</div>'


def table(frame: pandas.DataFrame, corner: str = "") -> str:
    """A data frame with its index as the first column."""
    head = _row("th", (corner or frame.index.name or "", *frame.columns))
    rows = zip(frame.index, frame.itertuples(index=False, name=None), strict=True)
    body = "\n".join(_row("td", (label, *map(number, row))) for label, row in rows)
    return f'<div class="scroll"><table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _row(cell: str, values: Iterable[Any]) -> str:
    """A space between cells, so that text taken out of the page does not run together."""
    return "<tr>{}</tr>".format(" ".join(f"<{cell}>{escape(value)}</{cell}>" for value in values))


def facts(entries: Mapping[str, Any]) -> str:
    """Names and values, one a row."""
    rows = [f'<tr><td>{escape(name)}:</td> <td class="words">{escape(number(value))}</td></tr>' for name, value in entries.items()]
    return '<div class="scroll"><table>\n<tbody>\n{}\n</tbody>\n</table></div>'.format("\n".join(rows))


def number(value: Any) -> str:
    """Four digits of a float, all of an integer; what is not known is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.4g}"
    if isinstance(value, tuple | list | np.ndarray):
        return ", ".join(number(each) for each in value)
    return str(value)


def picture(figure: Figure, caption: str) -> str:
    """A figure inside the page itself."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" alt="{escape(caption)}">\n<figcaption>{escape(caption)}</figcaption>\n</figure>'
    )
