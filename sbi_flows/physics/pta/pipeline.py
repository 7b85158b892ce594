"""One model from prior to verdict: reference chains, flow, distance, evidence, files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbi_flows import __version__
from sbi_flows._files import write_atomic
from sbi_flows.diagnostics import hellinger, hellinger_floor
from sbi_flows.estimators import FlowDensity
from sbi_flows.model_evidence import evidence
from sbi_flows.physics.pta.embedded import pta_target
from sbi_flows.physics.pta.figures import BAND_QUANTILES
from sbi_flows.physics.pta.flow_run import run_flow_sampler
from sbi_flows.physics.pta.free_spectrum import FreeSpectrum
from sbi_flows.physics.pta.models import MODELS
from sbi_flows.physics.pta.reference import ReferenceRun, run_reference
from sbi_flows.physics.pta.target import FreeSpectrumTarget
from sbi_flows.plots import corner, save_figure
from sbi_flows.results import Evidence

LAYOUT = 2  # raise when result.json changes meaning: older results are then computed anew

# What draws the posterior, by the name of the job's setting and by that of figures and footnotes.
SAMPLERS = {"emcee": "emcee", "flow": "FlowSampler"}


@dataclass(frozen=True)
class Job:
    """What one model's run depends on.

    Attributes
    ----------
    model : str
    data : FreeSpectrum or None
        None is the embedded NANOGrav 15-year summary.
    n_bins, seed : int
    quick : bool
        Fewer draws, for a first look: errors are about three times larger.
    folder : Path or None
        Where this model's files go; None writes nothing.
    sampler : {"emcee", "flow"}
    """

    model: str
    data: FreeSpectrum | None
    n_bins: int
    seed: int
    quick: bool
    folder: Path | None
    sampler: str = "emcee"

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data that decide the result; results of other settings do not share a folder."""
        return {
            "layout": LAYOUT,
            "sbi_flows": __version__,
            "model": self.model,
            "n_bins": self.n_bins,
            "seed": self.seed,
            "quick": self.quick,
            "sampler": self.sampler,
            "data": "embedded" if self.data is None else _digest(self.data),
        }

    @property
    def model_seed(self) -> int:
        """A seed for this model whatever other models run beside it."""
        return int(np.random.SeedSequence([self.seed, zlib.crc32(self.model.encode())]).generate_state(1)[0])


@dataclass(frozen=True)
class Effort:
    """How much work a run spends."""

    n_walkers: int
    min_ess: float
    max_draws: int
    flow_epochs: int
    n_flow_draws: int


FULL = Effort(n_walkers=500, min_ess=20_000, max_draws=40_000, flow_epochs=10, n_flow_draws=50_000)
QUICK = Effort(n_walkers=200, min_ess=3_000, max_draws=10_000, flow_epochs=10, n_flow_draws=20_000)


@dataclass(frozen=True)
class ModelResult:
    """What is stored of one model.

    Attributes
    ----------
    model : str
    settings : dict
        See :attr:`Job.settings`.
    log_z, log_z_err : float
        Natural-log evidence and one standard error.
    reliable : bool
    reasons : list of str
    hellinger_mean, hellinger_max, hellinger_floor : float
        Over the parameters' marginals, flow against the sampler's chains; the floor is what two samples of one distribution show.
    seconds : float
    n_evaluations : int
        Of the log-posterior, by the sampler and, with ``sampler="flow"``, by the evidence too.
    n_draws, ess, acceptance, n_steps, n_burn_in : int or float
        Of the reference chains.
    tau : list of float
        Autocorrelation times in steps, one a parameter.
    method : str
        The estimator of ln Z that was trusted.
    bands : list of lists
        Posterior quantiles of log10 rho [s] in each bin, (5, n_bins).
    """

    model: str
    settings: dict[str, Any]
    log_z: float
    log_z_err: float
    reliable: bool
    reasons: list[str]
    hellinger_mean: float
    hellinger_max: float
    hellinger_floor: float
    seconds: float
    n_evaluations: int
    n_draws: int
    ess: float
    acceptance: float
    n_steps: int
    n_burn_in: int
    tau: list[float]
    method: str
    bands: list[list[float]]


def run_model(job: Job, stage: Callable[[str], None]) -> ModelResult:
    """Everything for one model; ``stage`` is told what is being done."""
    began = time.perf_counter()
    effort = QUICK if job.quick else FULL
    seeds = np.random.SeedSequence(job.model_seed).generate_state(4).tolist()
    stage("reading")
    target = pta_target(job.model, job.data, job.n_bins)
    reference, result = _sampled(job, target, effort, seeds, stage)
    draws = reference.chains.samples.reshape(-1, target.features)
    stage("fitting the flow")
    flow = _flow(target, seeds[1], effort).fit(draws)
    flow_draws = np.asarray(flow.sample(effort.n_flow_draws, random_state=seeds[2]))
    distances = hellinger(draws, flow_draws)
    stage("writing")
    summary = _summary(job, target, reference, result, distances, len(flow_draws), time.perf_counter() - began)
    if job.folder is not None:
        _write(job, job.folder, target, reference, draws, flow_draws, summary)
    return summary


def _sampled(
    job: Job, target: FreeSpectrumTarget, effort: Effort, seeds: list[int], stage: Callable[[str], None]
) -> tuple[ReferenceRun, Evidence]:
    """The posterior and its evidence, by the sampler asked for."""
    if job.sampler == "flow":
        stage("sampling with FlowSampler")
        return run_flow_sampler(target, min_ess=effort.min_ess, max_draws=effort.max_draws, random_state=seeds[0])
    stage("sampling with emcee")
    reference = run_reference(
        target, n_walkers=effort.n_walkers, min_ess=effort.min_ess, max_draws=effort.max_draws, random_state=seeds[0]
    )
    stage("computing the evidence")
    chains = replace(reference.chains, reliability=None)  # whose verdict stands beside that of the evidence in the summary
    return reference, evidence(chains, target.log_posterior, prior=target.prior, random_state=seeds[3])


def _flow(target: FreeSpectrumTarget, seed: int, effort: Effort) -> FlowDensity:
    """A flow small enough to fit in seconds; its marginals already lie at the floor of the Hellinger distance."""
    return FlowDensity(
        layers=3,
        hidden=(32, 32),
        support=target.support,
        max_epochs=effort.flow_epochs,
        batch_size=512,
        learning_rate=4e-3,
        random_state=seed,
    )


def finished_results(folder: Path) -> dict[str, ModelResult]:
    """What earlier runs finished in ``folder/models``, by model; damaged results and those of another layout are as good as absent."""
    found = {}
    for name in MODELS:
        path = folder / "models" / name / "result.json"
        if not path.is_file():
            continue
        with contextlib.suppress(ValueError, TypeError, KeyError):
            result = ModelResult(**json.loads(path.read_text()))
            if result.model == name and result.settings["layout"] == LAYOUT:
                found[name] = result
    return found


def _summary(
    job: Job,
    target: FreeSpectrumTarget,
    reference: ReferenceRun,
    result: Evidence,
    distances: np.ndarray,
    n_flow_draws: int,
    seconds: float,
) -> ModelResult:
    draws = reference.chains.samples.reshape(-1, target.features)
    with torch.inference_mode():
        log10_rho = target.log10_rho(torch.from_numpy(draws)).numpy()
    reasons = [*(f"{SAMPLERS[job.sampler]}: {reason}" for reason in reference.reliability.reasons), *result.reliability.reasons]
    return ModelResult(
        model=job.model,
        settings=job.settings,
        log_z=float(result.log_z),
        log_z_err=float(result.log_z_err),
        reliable=reference.reliability.ok and result.reliability.ok,
        reasons=reasons,
        hellinger_mean=float(distances.mean()),
        hellinger_max=float(distances.max()),
        hellinger_floor=hellinger_floor(min(reference.ess, len(draws)), n_flow_draws),
        seconds=seconds,
        n_evaluations=reference.n_evaluations,
        n_draws=len(draws),
        ess=float(reference.ess),
        acceptance=reference.acceptance,
        n_steps=reference.n_steps,
        n_burn_in=reference.n_burn_in,
        tau=[float(t) for t in reference.tau],
        method=result.method,
        bands=np.quantile(log10_rho, BAND_QUANTILES, axis=0).tolist(),
    )


def _write(
    job: Job, folder: Path, target: FreeSpectrumTarget, reference: ReferenceRun, draws, flow_draws, summary: ModelResult
) -> None:
    """Chains and figure first, ``result.json`` last: where it stands, the model is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    with warnings.catch_warnings():
        # ArviZ announces its own next version at import, and takes an ensemble's walkers for chains that are too many.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="More chains", category=UserWarning)
        data = reference.chains.to_arviz()
        model = MODELS[summary.model]
        data.attrs.update(
            model=model.name,
            citation=model.citation,
            log_z=summary.log_z,
            log_z_err=summary.log_z_err,
            reliable=int(summary.reliable),
        )
        partial = folder / ".posterior.partial.nc"
        data.to_netcdf(str(partial))
        partial.replace(folder / "posterior.nc")
    labels = [parameter.label for parameter in target.model.parameters]
    # Both smoothed as the chains need it: what differs is then the draws and not the smoothing.
    sets = {SAMPLERS[job.sampler]: draws, "flow fitted to them": flow_draws}
    figure = corner(sets, labels, title=target.model.title, ess=dict.fromkeys(sets, reference.ess))
    save_figure(figure, folder / "corner.png")
    write_atomic(folder / "result.json", json.dumps(asdict(summary), indent=1).encode())


def _digest(data: FreeSpectrum) -> str:
    digest = hashlib.sha256()
    for array in (data.frequencies, data.grid, data.log_density):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
