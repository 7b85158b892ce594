"""Rank sources on the timing data themselves, by the amortised network, by the sampler, or by both beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows._files import write_atomic
from sbi_flows._validation import choose
from sbi_flows.diagnostics import hellinger, hellinger_floor
from sbi_flows.model_evidence import compare_models
from sbi_flows.physics.pta.embedded import DEFAULT_BINS
from sbi_flows.physics.pta.models import DEFAULT_MODELS, MODELS, get_model
from sbi_flows.physics.pta.timing import timing_likelihood
from sbi_flows.physics.pta.timing_arrays import TEN, PulsarArray, ng15_pulsars
from sbi_flows.physics.pta.timing_correlations import CORRELATIONS
from sbi_flows.physics.pta.timing_npe import Effort, TimingNPE
from sbi_flows.physics.pta.timing_run import (
    ROUTES,
    RouteDraws,
    RouteEffort,
    RouteResult,
    TimingJob,
    check_settings,
    finished,
    run_route,
)
from sbi_flows.physics.pta.workers import Outcome, run_here, run_jobs
from sbi_flows.plots import corner, evidence_bars, save_figure
from sbi_flows.reporting import report
from sbi_flows.results import Reliability, WeightedSamples

if TYPE_CHECKING:
    import pandas

REFERENCE = "smbhb"
BOTH = ("npe", "sampler")
QUICK = Effort(n_simulations=2000, max_epochs=5, hidden=32, width=16, n_classified=2000), RouteEffort(500, 5000, 1000)
FULL = Effort(), RouteEffort()


@dataclass(frozen=True)
class TimingComparison:
    """Finished sources by each route, and what was left out.

    Attributes
    ----------
    results : dict of (model, route) to RouteResult
    draws : dict of (model, route) to RouteDraws
    skipped : dict of (model, route) to str
        Why a source has no result by a route.
    probabilities : dict of str to float
        Of the sources, from the classifier that sees simulations only; empty without one.
    classifier : Reliability or None
        Whether these can be believed.
    network_seconds : dict of str to float
        What the network took, or had taken.
    """

    results: Mapping[tuple[str, str], RouteResult]
    draws: Mapping[tuple[str, str], RouteDraws] = field(repr=False)
    skipped: Mapping[tuple[str, str], str]
    probabilities: Mapping[str, float]
    network_seconds: Mapping[str, float]
    classifier: Reliability | None = None

    def distances(self, model: str) -> tuple[np.ndarray, float] | None:
        """Hellinger distance of each marginal between the two routes, and its floor; None where one is missing."""
        if not all((model, route) in self.draws for route in BOTH):
            return None
        a, b = (self.draws[model, route] for route in BOTH)
        return hellinger(a.samples, b.samples, weights_x=a.weights, weights_y=b.weights), hellinger_floor(a.ess, b.ess)

    def records(self) -> list[dict[str, Any]]:
        """One plain record a source and route; ``log_bf`` against black-hole binaries by the same route, None without them."""
        return [self._record(*key) for key in self.results]

    def _record(self, model: str, route: str) -> dict[str, Any]:
        result, reference = self.results[model, route], self.results.get((REFERENCE, route))
        distances = self.distances(model)
        record: dict[str, Any] = {
            "model": model,
            "route": route,
            "log_z": result.log_z,
            "log_z_err": result.log_z_err,
            "log_bf": None if reference is None else result.log_z - reference.log_z,
            "log_bf_err": None if reference is None else _joined_error(result, reference),
            "reliable": result.reliable,
            "reasons": result.reasons,
            "notes": result.notes,
            "hellinger_mean": None if distances is None else float(distances[0].mean()),
            "hellinger_max": None if distances is None else float(distances[0].max()),
            "hellinger_floor": None if distances is None else distances[1],
            "ess": result.ess,
            "share": result.share,
            "pareto_k": result.pareto_k,
            "n_evaluations": result.n_evaluations,
            "probability": self.probabilities.get(model),
            "probability_reliable": None if self.classifier is None else self.classifier.ok,
            "probability_reasons": [] if self.classifier is None else list(self.classifier.reasons),
            "seconds": result.seconds,
            "cpu_seconds": result.cpu_seconds,
        }
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}

    def to_dataframe(self) -> pandas.DataFrame:
        """The records as rows."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def write(self, folder: Path) -> None:
        """``timing.json`` and ``timing.csv`` into an existing folder, each replaced whole."""
        write_atomic(folder / "timing.json", json.dumps(self.records(), indent=1, allow_nan=False).encode())
        table = self.to_dataframe()
        if len(table):
            for column in ("reasons", "notes", "probability_reasons"):
                table[column] = table[column].map("; ".join)
        write_atomic(folder / "timing.csv", table.to_csv(index=False).encode())

    def write_figures(self, folder: Path) -> None:
        """A corner plot of each source's own parameters, bars of ln B by each route, and ``report.html``."""
        for model in dict.fromkeys(model for model, _ in self.results):
            routes = [route for route in ROUTES if (model, route) in self.draws]
            columns = MODELS[model].prior.features
            rows = {route: self._resampled(model, route)[:, :columns] for route in routes}
            labels = [parameter.label for parameter in MODELS[model].parameters]
            ess = {route: self.draws[model, route].ess for route in routes}
            save_figure(corner(rows, labels, title=MODELS[model].title, ess=ess), folder / "models" / model / "corner.png")
        for route in ROUTES:
            evidences = {model: result.evidence for (model, way), result in self.results.items() if way == route}
            if REFERENCE in evidences and len(evidences) > 1:
                table = compare_models(evidences, REFERENCE)
                titles = {name: MODELS[name].title for name in evidences}
                save_figure(evidence_bars(table, reference=MODELS[REFERENCE].title, titles=titles), folder / f"evidence_{route}.png")
        if self.results:
            report(self._page(), folder / "report.html", title="Pulsar timing: sources of the background")

    def _page(self) -> dict[str, Any]:
        page: dict[str, Any] = {}
        for (model, route), result in self.results.items():
            page[f"{MODELS[model].title} ({route}): evidence"] = result.evidence
            draws = self.draws[model, route]
            names = tuple(result.names)
            page[f"{MODELS[model].title} ({route}): draws"] = WeightedSamples(
                draws.samples, draws.log_weights, names, result.evidence.reliability, {"seconds": round(result.seconds, 1)}
            )
        return page

    def _resampled(self, model: str, route: str, n: int = 5000) -> np.ndarray:
        draws = self.draws[model, route]
        names = tuple(map(str, range(draws.samples.shape[1])))
        return WeightedSamples(draws.samples, draws.log_weights, names).resample(n, 0)


def compare_timing(
    models: Sequence[str] = DEFAULT_MODELS,
    pulsars: PulsarArray | Sequence[str | int] | str = TEN,
    *,
    route: str = "both",
    correlation: str = "hd",
    n_bins: int = DEFAULT_BINS,
    output: str | Path | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    quick: bool = False,
    effort: tuple[Effort, RouteEffort] | None = None,
    on_stage: Callable[[str, str], None] | None = None,
) -> TimingComparison:
    """Evidence of each source from the timing data, with the posterior of its parameters and of every pulsar's noise.

    Parameters
    ----------
    models : sequence of str
    pulsars : PulsarArray, sequence of str or int, or "all"
        As in :func:`timing_likelihood`.
    route : {"npe", "sampler", "importance", "both"}
        "npe" trains one network on simulations of all sources, betters its draws by the exact likelihood and weighs them by it;
        "importance" does the same from the prior, without a network; "sampler" runs :class:`sbi_flows.FlowSampler` on that likelihood;
        "both", the first and the last, also gives the Hellinger distance of every marginal between them.
    correlation : str
    n_bins : int
    output : path, optional
        Folder for the network, draws, tables, figures and ``report.html``; what runs of the same settings finished there is not run again.
    seed : int
    n_jobs : int
        Processes, one source each; the network is trained in this one. More than one need ``output``.
    quick : bool
        Far too little of everything, for a first look.
    effort : (Effort, RouteEffort), optional
        In place of what ``quick`` chooses.
    on_stage : callable, optional
        Told ``(what, stage)``.

    Returns
    -------
    TimingComparison

    Raises
    ------
    ValueError
        For an unknown source, pulsar, route or correlation, or an output folder with results of other settings.
    ConnectionError
        Where the timing data cannot be reached.
    KeyboardInterrupt
        Passed on after what is finished has been written.

    Examples
    --------
    >>> from sbi_flows.physics.pta.timing_compare import compare_timing
    >>> compare_timing(["smbhb", "power_law"], route="npe", quick=True).to_dataframe()  # doctest: +SKIP
    """
    names = list(dict.fromkeys(get_model(name).name for name in models))
    if not names:
        raise ValueError(f"Expected at least one model; the models are {', '.join(MODELS)}.")
    choose("route", route, [*ROUTES, "both"])
    choose("correlation", correlation, list(CORRELATIONS))
    if n_jobs < 1 or seed < 0:
        raise ValueError(f"Expected n_jobs of at least 1 and a seed of at least 0; got n_jobs={n_jobs}, seed={seed}.")
    array = pulsars if isinstance(pulsars, PulsarArray) else ng15_pulsars(pulsars)
    folder = None if output is None else Path(output)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    run = _Run(array, correlation, n_bins, seed, folder, effort or (QUICK if quick else FULL), on_stage or (lambda what, stage: None))
    return run.go(names, BOTH if route == "both" else (route,), n_jobs)


class _Run:
    """The results so far, and how they grow."""

    def __init__(self, array, correlation, n_bins, seed, folder, effort, tell):
        self.array, self.correlation, self.n_bins, self.seed, self.folder = array, correlation, n_bins, seed, folder
        self.effort, self.tell = effort, tell
        self.results: dict[tuple[str, str], RouteResult] = {}
        self.draws: dict[tuple[str, str], RouteDraws] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        self.network: TimingNPE | None = None
        self.probabilities: dict[str, float] = {}
        self.classifier: Reliability | None = None

    def go(self, names: Sequence[str], routes: Sequence[str], n_jobs: int) -> TimingComparison:
        names = self._reachable(names, routes)
        if "npe" in routes and names:
            self.network = TimingNPE(
                self.array, names, correlation=self.correlation, n_bins=self.n_bins, effort=self.effort[0], random_state=self.seed
            )
        # What is stored is looked at first: a run that must be refused neither trains nor replaces the network.
        jobs = [job for route in routes for name in names if (job := self._job(name, route)) is not None]
        if self.network is not None:
            self._fit(self.network)
        try:
            if n_jobs > 1 and self.folder is not None and len(jobs) > 1:
                run_jobs(_write_route, jobs, n_jobs, self._stage, self._receive)
            else:
                run_here(run_route, jobs, self._stage, self._receive)
        finally:
            if self.folder is not None:
                self.so_far(names).write(self.folder)
                self.so_far(names).write_figures(self.folder)
        return self.so_far(names)

    def so_far(self, names: Sequence[str]) -> TimingComparison:
        order = [(name, route) for route in ROUTES for name in names if (name, route) in self.results]
        seconds = {} if self.network is None else self.network.seconds_
        return TimingComparison(
            {key: self.results[key] for key in order},
            {key: self.draws[key] for key in order},
            self.skipped,
            self.probabilities,
            seconds,
            self.classifier,
        )

    def _reachable(self, names: Sequence[str], routes: Sequence[str]) -> list[str]:
        """Sources whose tables are at hand; settings that no source can be run with are errors of the call."""
        ready = []
        for name in names:
            try:
                timing_likelihood(self.array, self.correlation, name, n_bins=self.n_bins)
            except ConnectionError as error:
                self.skipped.update({(name, route): str(error) for route in routes})
            else:
                ready.append(name)
        return ready

    def _fit(self, network: TimingNPE) -> None:
        where = None if self.folder is None else self.folder / "network"
        if where is None or not network.restore(where):
            network.fit(lambda text: self.tell("network", text))
            if where is not None:
                network.save(where)
        self.tell("network", "done")
        if network.classifier_ is not None:
            found = network.probabilities(self.array)
            self.probabilities, self.classifier = dict(found.probabilities), found.reliability

    def _job(self, name: str, route: str) -> TimingJob | None:
        """What is left to do for a source; None where it has been done."""
        folder = None if self.folder is None else self.folder / "models" / name
        network = self.network if route == "npe" else None
        job = TimingJob(name, route, self.array, self.correlation, self.n_bins, self.seed, self.effort[1], folder, network)
        stored = None if folder is None else finished(folder, route)
        if stored is None or folder is None:
            return job
        check_settings(folder, stored[0], job)
        self.results[name, route], self.draws[name, route] = stored
        self.tell(f"{name} by {route}", "done (from an earlier run)")
        return None

    def _stage(self, job: TimingJob, text: str) -> None:
        self.tell(f"{job.model} by {job.route}", text)

    def _receive(self, outcome: Outcome[TimingJob]) -> None:
        job = outcome.job
        key = job.model, job.route
        if outcome.error is not None:
            self.skipped[key] = outcome.error
            self._stage(job, "skipped")
            return
        stored = outcome.result if outcome.result is not None else finished(job.folder, job.route) if job.folder else None
        if stored is None:
            self.skipped[key] = "its record could not be read back"
            return
        self.results[key], self.draws[key] = stored
        self._stage(job, "done")


def _write_route(job: TimingJob, stage: Callable[[str], None]) -> None:
    """For other processes: draws come back by the files they are written to."""
    run_route(job, stage)


def _joined_error(a: RouteResult, b: RouteResult) -> float:
    return 0.0 if a is b else math.hypot(a.log_z_err, b.log_z_err)
