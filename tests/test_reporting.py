"""Reports: well-formed, self-contained, escaped, the verdict first, for every kind of result."""

import re
from html.parser import HTMLParser
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from sbi_flows import report
from sbi_flows.diagnostics import compare_chains
from sbi_flows.flow_sampling import FlowSampler, SamplerReport
from sbi_flows.results import Chains, Evidence, FitHistory, Reliability, SMCResult, TemperedChains, WeightedSamples

EVIL = '<script>alert("x")</script> & co'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed in its place, and keeps what matters."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text, self.verdicts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.sources += [values[name] for name in ("src", "href", "action", "data") if name in values]
        if "verdict" in values.get("class", ""):
            self.verdicts.append(values["class"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data):
        self.text.append(data)


def chains(names=("mass", "spin"), **kwargs):
    rng = np.random.default_rng(0)
    return Chains(rng.normal(size=(4, 300, len(names))), names, **kwargs)


def evidence(ok=True):
    table = pd.DataFrame(
        {"log_z": [-1.25, -1.3], "log_z_err": [0.03, 0.1], "ess": [0.6, 0.2], "pareto_k": [0.1, -np.inf], "n_evaluations": [100, 0]},
        index=["bridge", "harmonic"],
    )
    verdict = Reliability(True) if ok else Reliability(False, ("prior draws find mass the chains never visited",))
    return Evidence(-1.25, 0.03, "bridge", 0.6, 0.1, verdict, table, ("mass", EVIL))


def sampler_report():
    return SamplerReport(
        method="mixed", local_kernel="NUTS", reasons=("two modes lie apart", EVIL), n_chains=64, n_draws=40,
        ess_bulk=np.array([1234.0, 2345.0]),
        evaluations={"warm-up": 1000, "draws": 12_345}, gradients={"draws": 345}, seconds={"warm-up": 1.0, "draws": 2.0, "training": 3.0},
        target_seconds={"draws": 0.5}, flow_acceptance=0.6, training_steps=800, modes=None, reliability=Reliability(True),
    )


def history(ok=True):
    loss = np.linspace(3, 1, 10)[:, None]
    verdict = Reliability(True) if ok else Reliability(False, ("the loss still falls",))
    return FitHistory(loss, loss + 0.1, np.full(10, 1e-3), np.array([9]), 100, 2, 1.5, "early stopping", verdict)


RESULTS = {
    "chains": lambda: chains(info={"sampler": "emcee 3.1.6", "random_state": 17, "n_evaluations": 123_456, "seconds": 2.5}),
    "evil chains": lambda: chains((EVIL, "b"), reliability=Reliability(False, (EVIL,), (EVIL,)), info={"sampler": EVIL}),
    "many columns, one constant": lambda: Chains(np.random.default_rng(0).normal(size=(2, 50, 8)) * ([1] * 7 + [0]), tuple("abcdefgh")),
    "comparison": lambda: compare_chains(chains(), chains(), labels=(EVIL, "b"), random_state=0),
    "evidence": evidence,
    "weighted": lambda: WeightedSamples(np.random.default_rng(0).normal(size=(500, 2)), np.zeros(500), ("a", EVIL)),
    "smc": lambda: SMCResult(
        WeightedSamples(np.random.default_rng(0).normal(size=(500, 2)), np.zeros(500), ("a", EVIL)),
        evidence(), np.array([0.1, 1.0]), np.array([0.4, 0.3]), 4321, Reliability(True),
    ),
    "tempered": lambda: TemperedChains(chains((EVIL, "b")), evidence(), np.array([0.0, 1.0]), np.array([0.5]), 4321, Reliability(True)),
    "fit": history,
    "sampler": sampler_report,
    "several": lambda: MappingProxyType({EVIL: chains(), "and its evidence": evidence(ok=False)}),
}


@pytest.mark.parametrize("name", RESULTS)
def test_pages_are_well_formed_and_need_nothing_else(name, tmp_path):
    path = report(RESULTS[name](), tmp_path / "page.html", title=EVIL)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert "script" not in page.tags and EVIL in page.text  # as text, not as a tag
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"(url\(|@import|https?://)", text)
    assert len(page.verdicts) == {"several": 2, "smc": 3, "tempered": 3}.get(name, 1)
    assert text.index('class="verdict') < text.index("<h2>")
    assert sum(tag == "table" for tag in page.tags) >= 1
    assert list(tmp_path.iterdir()) == [path]


def said(result, tmp_path):
    return " ".join(Page(report(result, tmp_path / "page.html").read_text(encoding="utf-8")).text)


def test_what_is_known_is_said(tmp_path):
    text = said(RESULTS["chains"](), tmp_path)
    for known in ("judged here", "123 456", "17", "emcee 3.1.6", "Foreman-Mackey", "R-hat", "mass", "torch", "sbi_flows 0."):
        assert known in text
    text = said(sampler_report(), tmp_path)
    for known in ("13 345", "two modes lie apart", "training", "0.6", "NUTS", "1234"):
        assert known in text
    assert "ln Z = -1.250 ± 0.03, NOT RELIABLE" in said(evidence(ok=False), tmp_path)
    assert "never visited" in said({"a": chains(), "b": evidence(ok=False)}, tmp_path)
    for name in ("smc", "tempered"):
        assert all(known in said(RESULTS[name](), tmp_path) for known in ("4 321", "powers of the likelihood", "ln Z = -1.250"))
    draws = WeightedSamples(np.random.default_rng(0).normal(size=(500, 1)), np.zeros(500), ("a",), evidence=evidence())
    assert "-1.2500 ± 0.03" in said(draws, tmp_path) and "Pareto" not in said(draws, tmp_path)
    assert "NOT RELIABLE" in said(history(ok=False), tmp_path) and "reliable" in said(history(), tmp_path)


def test_a_fitted_sampler_is_told_of_with_its_seed(tmp_path):
    sampler = FlowSampler(lambda x: -0.5 * x.square().sum(-1), [(0, 1)], random_state=4321)
    sampler._report, sampler._chains, sampler._evidence = sampler_report(), chains(), None
    text = said(sampler, tmp_path)
    assert "ln Z" not in text
    sampler._evidence = Evidence(-12.3456, 0.021, "bridge", 0.5, 0.1, Reliability.from_reasons(["made up"]), pd.DataFrame(), ("a",))
    assert "-12.3456" in said(sampler, tmp_path) and "made up" in said(sampler, tmp_path)
    for known in ("4321", "13 345", "two modes lie apart", "mass", "Gabri", "Hoffman & Gelman"):
        assert known in text or known.replace("4321", "4 321") in text


def test_bad_verdicts_look_bad(tmp_path):
    good, bad = (Page(report(history(ok), tmp_path / "page.html").read_text(encoding="utf-8")).verdicts for ok in (True, False))
    assert good == ["verdict good"] and bad == ["verdict bad"]


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(TypeError, match=r"one of Chains, ChainComparison.*got ndarray"):
        report(np.zeros(3), tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"ends in \.html; got 'page.pdf'"):
        report(chains(), tmp_path / "page.pdf")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report(chains(), tmp_path / "nowhere" / "page.html")
    with pytest.raises(ValueError, match="mapping is empty"):
        report({}, tmp_path / "page.html")
    with pytest.raises(ValueError, match="call fit first"):
        report(FlowSampler(lambda x: -x.square().sum(-1), [(0, 1)]), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_bare_chains_are_judged_on_their_page(tmp_path):
    """An array as Chains, in two modes that no chain leaves: not "not judged" beside its R-hat."""
    rng = np.random.default_rng(0)
    apart = np.concatenate([rng.normal(size=(4, 100, 1)) + 6, rng.normal(size=(4, 100, 1)) - 6])
    text = report(Chains(apart, ("mass",)), tmp_path / "apart.html").read_text()
    assert "NOT RELIABLE" in text and "chains disagree about 1 of 1 parameters" in text and "not judged" not in text


def test_the_text_of_a_page_does_not_run_together(tmp_path):
    """With the tags taken out, no two entries of a list, a table or a box touch."""
    chains = Chains(np.random.default_rng(0).normal(size=(4, 500, 2)), ("mass", "spin"), reliability=Reliability(True, (), ("a note",)))
    text = report(chains, tmp_path / "page.html").read_text()
    assert not re.findall(r"</(?:li|td|th|strong|p|h1|h2|h3|figcaption|div)><(?:li|td|th|ul|p|table|figure|figcaption|div)", text)
    plain = re.sub(r"<[^>]+>", "", text.split("<body>")[1])
    assert "note: a note" in plain and re.search(r"mass -?0\.", plain)
