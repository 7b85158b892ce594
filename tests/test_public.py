"""Every public name says what it takes and gives, what goes wrong and where it is from, and its example runs."""

import doctest
import inspect
import re
import sys

import numpy as np
import pytest
import torch

import sbi_flows
from sbi_flows import _PUBLIC

# Names of no method of anybody's: records, and what only carries data from one place to another.
NO_SOURCE = {
    "Chains", "CountColumn", "Evidence", "FitHistory", "FreeEnergy", "MixedDensity", "Posterior", "Reliability", "SMCResult", "Target",
    "TemperedChains", "WeightedSamples", "load_chains", "report", "run_chains", "save_chains", "simulate",
}  # fmt: skip
# Examples measured to take less than a second of processor time; the others run with -m slow until they have been measured too.
QUICK = {
    "Chains", "ConditionalFlow", "CountColumn", "CountDensity", "Evidence", "FitHistory", "FlowDensity", "FreeEnergy", "MixedDensity",
    "RatioClassifier", "Reliability", "SMCResult", "Target", "TemperedChains", "WeightedSamples", "load_chains", "save_chains",
}  # fmt: skip


def example_params():
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in _PUBLIC]


@pytest.mark.parametrize("name", _PUBLIC)
def test_docstrings_say_what_a_user_must_know(name):
    thing = getattr(sbi_flows, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0].split()) >= 3, "a first line that says what it is"
    takes = list(inspect.signature(thing).parameters)
    if takes:
        assert "Parameters\n" in text or "Attributes\n" in text
        undocumented = [p for p in takes if not re.search(rf"\b{p}\b", text)]
        assert not undocumented, f"not in the docstring: {undocumented}"
    assert ">>>" in text, "an example"
    if inspect.isfunction(thing):
        assert "Returns\n" in text
        assert "Raises\n" in text or "Warns\n" in text
    if name not in NO_SOURCE:
        assert "arXiv" in text or "References\n" in text, "the paper"


@pytest.mark.parametrize("name", example_params())
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = getattr(sbi_flows, name)
    home = sys.modules[thing.__module__]
    names = {"np": np, "torch": torch, **vars(home)}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), names, name, home.__file__, 0)
    assert any(not example.options.get(doctest.SKIP) for example in test.examples), "an example that runs"
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not failed, "".join(said)
