"""``report``: a result as one HTML page."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sbi_flows
from sbi_flows._files import write_atomic
from sbi_flows.reporting import html
from sbi_flows.reporting.sections import Section, sections_of

_VERSIONS = ("torch", "numpy", "scipy", "arviz")


def report(result: Any, path: str | Path, *, title: str | None = None) -> Path:
    """Write a result as one self-contained HTML page: figures inside it, nothing fetched from anywhere.

    At the top is the verdict in words; then tables and figures, the seed and what it cost where that is known, versions, and
    what to cite.

    Parameters
    ----------
    result
        ``Chains``, ``ChainComparison``, ``Evidence``, ``WeightedSamples``, ``SMCResult``, ``TemperedChains``, ``FitHistory``,
        ``Diagnosis``, a fitted ``FlowSampler`` or its ``report_``, or a mapping of several of these by the name that becomes their heading.
    path : path
        Ends in ``.html``; its folder must exist.
    title : str, optional

    Returns
    -------
    Path
        Where it was written, whole or not at all.

    Raises
    ------
    TypeError
        If there is no page for such a result.
    ValueError
        If the path does not end in ``.html``.
    FileNotFoundError
        If its folder does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> chains = sbi_flows.Chains(np.random.default_rng(0).normal(size=(4, 500, 2)), ("mass", "spin"))
    >>> report(chains, "chains.html", title="Two numbers")                                                  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"Expected a path that ends in .html; got {path.name!r}.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"Expected an existing folder to write {path.name} in; {path.absolute().parent} does not exist.")
    if isinstance(result, Mapping):
        if not result:
            raise ValueError("Expected at least one result to report on; the mapping is empty.")
        sections = [_named(section, str(name)) for name, part in result.items() for section in sections_of(part)]
    else:
        sections = sections_of(result)
    title = title or ("Report" if len(sections) > 1 else sections[0].title)
    parts = [html.verdict(_words(section, len(sections)), section.reliability) for section in sections]
    for section in sections:
        parts += [html.heading(section.title), *section.parts]
    write_atomic(path, html.page(title, parts, _footer(sections)).encode())
    return path


def _named(section: Section, name: str) -> Section:
    return Section(f"{name}: {section.title}", section.words, section.reliability, section.parts, section.cite)


def _words(section: Section, n_sections: int) -> str:
    return section.words if n_sections == 1 else f"{section.title}: {section.words}"


def _footer(sections: list[Section]) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    cite = dict.fromkeys(reference for section in sections for reference in section.cite)
    return [
        html.paragraph(f"Made {made} by sbi_flows {sbi_flows.__version__} with {versions}, Python {platform.python_version()}."),
        html.paragraph("Please cite, beside sbi_flows and its version:") if cite else "",
        html.bullets(cite),
    ]
