"""One source by one route, from the timing data to a stored record: what ``timing_compare`` runs for each."""

from __future__ import annotations

import contextlib
import json
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sbi_flows import __version__
from sbi_flows._files import write_atomic
from sbi_flows.diagnostics.chi_squared import LOOKED_AT
from sbi_flows.flow_sampling import FlowSampler
from sbi_flows.physics.pta.timing import timing_likelihood
from sbi_flows.physics.pta.timing_arrays import PulsarArray
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_misfit import judged, misfit
from sbi_flows.physics.pta.timing_npe import TimingNPE
from sbi_flows.physics.pta.timing_refine import refined
from sbi_flows.physics.pta.timing_sweeps import PulsarSweeps
from sbi_flows.results import Evidence, Reliability, WeightedSamples

ROUTES = ("npe", "sampler", "importance")
_STARTS = 2000  # weighted draws from which chains start
_CHAINS = 64  # they start nearly where they should, and each more has a warm-up to pay
LAYOUT = 3  # raise when a record changes meaning: older ones are then computed anew


@dataclass(frozen=True)
class RouteEffort:
    """How much one source's run spends: effective draws wanted by either route, and the most draws of the network."""

    n_effective: int = 4000
    max_draws: int = 100_000
    block: int = 5000


@dataclass(frozen=True)
class TimingJob:
    """What one source's run by one route depends on.

    Attributes
    ----------
    model, route : str
    array : PulsarArray
    correlation : str
    n_bins, seed : int
    effort : RouteEffort
    folder : Path or None
        Where the record and the draws go.
    network : TimingNPE or None
        Fitted, for the route "npe".
    """

    model: str
    route: str
    array: PulsarArray
    correlation: str
    n_bins: int
    seed: int
    effort: RouteEffort
    folder: Path | None
    network: TimingNPE | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data that decide the result."""
        return {
            "layout": LAYOUT,
            "sbi_flows": __version__,
            "pulsars": list(self.array.names),
            "data": self.array.digest(),
            "correlation": self.correlation,
            "n_bins": self.n_bins,
            "seed": self.seed,
            "effort": asdict(self.effort),
            "network": None if self.network is None else self.network.description(),
        }

    @property
    def model_seed(self) -> int:
        return int(np.random.SeedSequence([self.seed, zlib.crc32(self.model.encode())]).generate_state(1)[0])


@dataclass(frozen=True)
class RouteResult:
    """What is stored of one source by one route.

    Attributes
    ----------
    model, route : str
    settings : dict
    log_z, log_z_err : float
        ln Z relative to the data without any signal.
    method : str
    ess : float
        Effective independent draws of the posterior.
    share, pareto_k : float
        Of the weights behind ln Z: effective share of the draws, and shape of the tail.
    n_evaluations : int
        Of the exact likelihood.
    seconds, cpu_seconds : float
    reliable : bool
    reasons, notes : list of str
    names : list of str
    """

    model: str
    route: str
    settings: dict[str, Any]
    log_z: float
    log_z_err: float
    method: str
    ess: float
    share: float
    pareto_k: float
    n_evaluations: int
    seconds: float
    cpu_seconds: float
    reliable: bool
    reasons: list[str]
    notes: list[str]
    names: list[str]

    @property
    def evidence(self) -> Evidence:
        """As :func:`sbi_flows.compare_models` and :func:`sbi_flows.report` take it."""
        row = {"log_z": self.log_z, "log_z_err": self.log_z_err, "ess": self.share, "pareto_k": self.pareto_k}
        table = pd.DataFrame([{**row, "n_evaluations": self.n_evaluations}], index=[self.method])
        verdict = Reliability.from_reasons(self.reasons, self.notes)
        return Evidence(self.log_z, self.log_z_err, self.method, self.share, self.pareto_k, verdict, table, tuple(self.names))


@dataclass(frozen=True)
class RouteDraws:
    """Draws ``(n, d)`` with log-weights ``(n,)``, zero for those of chains, and the number of independent draws they are worth."""

    samples: np.ndarray
    log_weights: np.ndarray
    ess: float

    @property
    def weights(self) -> np.ndarray:
        top = np.exp(self.log_weights - self.log_weights.max())
        return top / top.sum()


def run_route(job: TimingJob, stage: Callable[[str], None]) -> tuple[RouteResult, RouteDraws]:
    """Everything for one source by one route; ``stage`` is told what is being done."""
    began, cpu = time.perf_counter(), time.process_time()
    found = _by_sampler(job, stage) if job.route == "sampler" else _by_weights(job, stage)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    values, draws, names = found
    result = RouteResult(
        model=job.model,
        route=job.route,
        settings=job.settings,
        **values,
        ess=float(draws.ess),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        names=list(names),
    )
    if job.folder is not None:
        _write(job.folder, result, draws)
    return result, draws


def _by_weights(job: TimingJob, stage: Callable[[str], None]) -> tuple[dict[str, Any], RouteDraws, tuple[str, ...]]:
    """Weighted draws in blocks until they are worth enough, each block with seeds and proposals of its own."""
    effort = job.effort
    source = None if job.network is None else job.network.unjudged(job.model, job.array).reliability
    blocks: list[WeightedSamples] = []
    while True:
        stage(f"weighing draws, {len(blocks) * effort.block} so far")
        blocks.append(_weighted(job, effort.block, job.model_seed + len(blocks)))
        whole = WeightedSamples(
            np.concatenate([block.samples for block in blocks]),
            np.concatenate([block.log_weights for block in blocks]),
            blocks[0].names,
            source,
        )
        if whole.ess >= effort.n_effective or len(whole.samples) + effort.block > effort.max_draws:
            break
    n, whole = len(whole.samples), judged(whole, _cube(job).target)
    values = {
        "log_z": whole.log_z,
        "log_z_err": whole.log_z_err,
        "method": "importance",
        "share": whole.ess / n,
        "pareto_k": whole.pareto_k,
        "n_evaluations": n,
        "reliable": whole.reliability.ok,
        "reasons": list(whole.reliability.reasons),
        "notes": list(whole.reliability.notes),
    }
    # Draws of no weight to speak of would only fill the file.
    kept = whole.log_weights > whole.log_weights.max() - 30
    return values, RouteDraws(whole.samples[kept], whole.log_weights[kept], whole.ess), whole.names


def _weighted(job: TimingJob, n: int, seed: int) -> WeightedSamples:
    if job.route == "npe":
        if job.network is None:
            raise ValueError("Expected a fitted network for the route 'npe'; got None.")
        return job.network.refined(job.model, job.array, n, seed)
    return refined(_cube(job), n_samples=n, random_state=seed)


def _cube(job: TimingJob) -> Cube:
    target = timing_likelihood(job.array, job.correlation, job.model, n_bins=job.n_bins)
    return Cube(target, target.model.prior.features)


def _by_sampler(job: TimingJob, stage: Callable[[str], None]) -> tuple[dict[str, Any], RouteDraws, tuple[str, ...]]:
    stage("looking for starts")
    cube = _cube(job)
    target = cube.target
    start = refined(cube, n_samples=_STARTS, random_state=job.model_seed).resample(_STARTS, job.model_seed)
    stage("sampling with FlowSampler")
    # Gradients cost six evaluations, and correlations change little: sweeps without them mix in a few steps.
    sampler = FlowSampler(
        target=target,
        kernel=PulsarSweeps(target),
        n_effective=job.effort.n_effective,
        n_chains=_CHAINS,
        random_state=job.model_seed,
    ).fit(start)
    stage("computing the evidence")
    evidence = sampler.evidence()
    report = sampler.report_
    rows = sampler.chains_.samples.reshape(-1, target.features)
    few = torch.from_numpy(rows[np.random.default_rng(job.model_seed).integers(len(rows), size=LOOKED_AT)])
    verdicts = (report.reliability, evidence.reliability, Reliability.from_reasons(*misfit(target, few)))
    reasons = list(dict.fromkeys(reason for verdict in verdicts for reason in verdict.reasons))
    values = {
        "log_z": float(evidence.log_z),
        "log_z_err": float(evidence.log_z_err),
        "method": evidence.method,
        "share": float(evidence.ess),
        "pareto_k": float(evidence.pareto_k),
        "n_evaluations": int(report.n_evaluations),
        "reliable": not reasons,
        "reasons": reasons,
        "notes": list(dict.fromkeys(note for verdict in verdicts for note in verdict.notes)),
    }
    return values, RouteDraws(rows, np.zeros(len(rows)), float(report.ess)), target.names


# --- Files ------------------------------------------------------------------------------------------------------------------------


def _write(folder: Path, result: RouteResult, draws: RouteDraws) -> None:
    """Draws first, the record last: where it stands, the run is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / f"{result.route}.json"
    record.unlink(missing_ok=True)
    np.savez_compressed(folder / f"{result.route}.npz", samples=draws.samples.astype(np.float32), log_weights=draws.log_weights)
    write_atomic(record, json.dumps(asdict(result), indent=1).encode())


def finished(folder: Path, route: str) -> tuple[RouteResult, RouteDraws] | None:
    """What an earlier run finished in a source's folder; a damaged record, or one of another layout, is as good as absent."""
    path = folder / f"{route}.json"
    if not path.is_file():
        return None
    with contextlib.suppress(ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        result = RouteResult(**json.loads(path.read_text()))
        with (folder / f"{route}.npz").open("rb") as file, np.load(file) as archive:  # of a damaged file numpy leaves the handle open
            draws = RouteDraws(archive["samples"].astype(np.float64), archive["log_weights"], result.ess)
        if result.settings["layout"] == LAYOUT and np.isfinite(draws.log_weights).all() and len(draws.samples):
            return result, draws
    return None


def check_settings(folder: Path, stored: RouteResult, job: TimingJob) -> None:
    """Results of other settings are neither mixed nor overwritten: both would happen unseen."""
    now = json.loads(json.dumps(job.settings))
    differing = [key for key in now if stored.settings.get(key) != now[key]]
    if differing:
        raise ValueError(
            f"{folder} holds {job.model} by {job.route} with other settings ({', '.join(differing)}). Choose another --output, or "
            "remove that folder if its results are no longer wanted."
        )
