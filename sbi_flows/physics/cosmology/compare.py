"""Is dark energy a constant? Evidences of flat universes by several routes, each with its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sbi_flows._files import write_atomic
from sbi_flows._validation import positive
from sbi_flows.chain_files import save_chains
from sbi_flows.flow_sampling import FlowSampler
from sbi_flows.model_evidence import compare_models, evidence
from sbi_flows.physics.cosmology.data import BAOData, desi_dr2_bao
from sbi_flows.physics.cosmology.grid import grid_evidence
from sbi_flows.physics.cosmology.models import MODELS, get_cosmology
from sbi_flows.physics.cosmology.parameters import BestFit, Moments, as_draws, best_fit, likeliest, moments
from sbi_flows.physics.cosmology.target import BAOTarget, bao_target
from sbi_flows.results import Chains, Evidence, Reliability, WeightedSamples
from sbi_flows.samplers import run_dynesty, run_emcee, smc

if TYPE_CHECKING:
    import pandas

REFERENCE = "lcdm"
_FAR = 4  # joint errors between two routes
_EXACT = 0.01  # nats within which a grid must agree with a coarser one


@dataclass(frozen=True)
class BAOComparison:
    """Evidences and parameters of models by routes.

    Attributes
    ----------
    evidences : dict of (route, model) to Evidence
    seconds : dict of (route, model) to float
        Of the whole route, sampling included.
    chains : dict of model to Chains
        Of ``FlowSampler`` or emcee, where one of them was run.
    moments : dict of (route, model) to Moments
        Posterior means and standard deviations of the parameters.
    best_fits : dict of model to BestFit
        The smallest chi-squared found, searched for from what every route found likeliest.
    draws : dict of (route, model) to Chains
        Of the posterior, with their weights where they have any; quadrature has none.
    """

    evidences: Mapping[tuple[str, str], Evidence]
    seconds: Mapping[tuple[str, str], float]
    chains: Mapping[str, Chains] = field(repr=False)
    moments: Mapping[tuple[str, str], Moments] = field(default_factory=dict, repr=False)
    best_fits: Mapping[str, BestFit] = field(default_factory=dict)
    draws: Mapping[tuple[str, str], Chains] = field(default_factory=dict, repr=False)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a route and model: ``route, model, log_z, log_z_err, log_bf, log_bf_err, reliable, reasons, seconds``.

        ``log_bf`` is ln of the Bayes factor against flat LCDM by the same route, NaN where that was not run.
        """
        import pandas as pd

        rows = []
        for route in dict.fromkeys(route for route, _ in self.evidences):
            own = {model: found for (by, model), found in self.evidences.items() if by == route}
            against = compare_models(own, REFERENCE) if REFERENCE in own else None
            for model, found in own.items():
                factor = (np.nan, np.nan) if against is None else tuple(against.loc[model, ["log_bf", "log_bf_err"]])
                reasons = "; ".join(found.reliability.reasons)
                rows.append(
                    (route, model, found.log_z, found.log_z_err, *factor, found.reliability.ok, reasons, self.seconds[route, model])
                )
        columns = ["route", "model", "log_z", "log_z_err", "log_bf", "log_bf_err", "reliable", "reasons", "seconds"]
        return pd.DataFrame(rows, columns=columns)

    def parameters(self) -> pandas.DataFrame:
        """One row a route, model and parameter: ``route, model, parameter, mean, sd, best_fit, chi2, n_data, reliable``.

        ``best_fit`` is where the model's smallest ``chi2`` over ``n_data`` distances lies, ``reliable`` the route's verdict.
        """
        import pandas as pd

        rows = []
        for (route, model), found in self.moments.items():
            best = self.best_fits[model]
            for (name, value), mean, std in zip(best.parameters.items(), found.mean, found.std, strict=True):
                verdict = self.evidences[route, model].reliability.ok
                rows.append((route, model, name, mean, std, value, best.chi2, best.n_data, verdict))
        columns = ["route", "model", "parameter", "mean", "sd", "best_fit", "chi2", "n_data", "reliable"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def reliability(self) -> Reliability:
        """Not ok where a route's evidence is not, or where two routes disagree by more than four joint errors.

        Each alone may have missed the same thing without knowing. By normal errors, two right routes would differ as much once in 16000.
        """
        reasons = [
            f"{model} by {route}: {reason}" for (route, model), found in self.evidences.items() for reason in found.reliability.reasons
        ]
        for (route, model), found in self.evidences.items():
            for (other, same), reference in self.evidences.items():
                if same != model or not route < other:
                    continue
                apart, error = found.log_z - reference.log_z, np.hypot(found.log_z_err, reference.log_z_err)
                if not abs(apart) <= _FAR * error:
                    reasons.append(
                        f"ln Z of {model} by {route} and by {other} differ by {apart:.3f}, {abs(apart) / error:.1f} joint errors: one has "
                        "missed part of the posterior"
                    )
        return Reliability.from_reasons(reasons)

    def write(self, folder: str | Path) -> Path:
        """``bao.csv``, ``parameters.csv`` and ``draws-MODEL-ROUTE.csv`` in a folder that is made where it is not there; the first's path.

        Draws are as :func:`sbi_flows.save_chains` writes them, and :func:`sbi_flows.load_chains` reads them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for (route, model), draws in self.draws.items():
            save_chains(draws, folder / f"draws-{model}-{route}.csv")
        write_atomic(folder / "parameters.csv", self.parameters().to_csv(index=False).encode())
        write_atomic(folder / "bao.csv", self.to_dataframe().to_csv(index=False).encode())
        return folder / "bao.csv"


def compare_bao(
    models: Sequence[str] = tuple(MODELS),
    data: BAOData | None = None,
    *,
    routes: Sequence[str] = ("sampler", "grid"),
    n_effective: int = 4000,
    random_state: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> BAOComparison:
    """Evidences and parameters of flat universes given distances from baryon acoustic oscillations.

    Parameters
    ----------
    models : sequence of str
        Of ``lcdm``, ``wcdm``, ``w0wacdm``; their priors are those of :func:`bao_target`, and a Bayes factor is as good as they are.
    data : BAOData, optional
        DESI's second release by default.
    routes : sequence of str
        ``sampler``: ``FlowSampler`` and its own evidence. ``chains``: :func:`sbi_flows.evidence` of its chains from their recorded
        log-densities alone, as of chains from a file. ``emcee``: emcee's chains and :func:`sbi_flows.evidence`, which may evaluate the
        posterior again. ``smc``: from the prior, no Markov chain through the posterior. ``dynesty``: nested sampling, if installed.
        ``grid``: quadrature (:func:`grid_evidence`), exact, by which the others are judged.
    n_effective : int
        What chains should be worth, in independent draws.
    random_state : int
    on_stage : callable, optional
        Told what is being done.

    Returns
    -------
    BAOComparison

    Raises
    ------
    ValueError
        For an unknown model or route.
    ConnectionError
        If the data are not at hand; the message names the registry entry and ``SBI_FLOWS_DATA``.

    Examples
    --------
    >>> result = compare_bao(["lcdm", "wcdm"])                                                             # doctest: +SKIP
    >>> result.to_dataframe(), result.parameters(), result.best_fits["lcdm"].chi2                          # doctest: +SKIP

    References
    ----------
    DESI Collaboration 2025, "DESI DR2 results II", arXiv:2503.14738.
    """
    unknown = [route for route in routes if route not in ROUTES]
    if unknown or not routes:
        raise ValueError(f"Expected routes among {', '.join(ROUTES)}; got {', '.join(map(repr, unknown)) or 'none'}.")
    names = list(dict.fromkeys(get_cosmology(name).name for name in models))
    if not names:
        raise ValueError(f"Expected at least one model; the models are {', '.join(MODELS)}.")
    positive("n_effective", n_effective, integer=True)
    data = desi_dr2_bao() if data is None else data
    evidences, seconds, kept, found, draws, best = {}, {}, {}, {}, {}, {}
    for name in names:
        target = bao_target(name, data)
        run = _Run(target, n_effective, random_state)
        for route in dict.fromkeys(routes):
            if on_stage is not None:
                on_stage(f"{name} by {route}")
            began = time.perf_counter()
            evidences[route, name], posterior = ROUTES[route](run)
            if isinstance(posterior, Moments):
                found[route, name] = posterior
            else:
                draws[route, name] = as_draws(posterior, target)
                found[route, name] = moments(draws[route, name])
            seconds[route, name] = time.perf_counter() - began + (run.sampling_seconds if route == "chains" else 0.0)
        if run.chains is not None:
            kept[name] = run.chains
        starts = [own.mean for (_, model), own in found.items() if model == name]
        starts += [likeliest(own) for (_, model), own in draws.items() if model == name]
        best[name] = best_fit(target, starts)
    return BAOComparison(evidences, seconds, kept, found, best, draws)


class _Run:
    """One model: what routes share."""

    def __init__(self, target: BAOTarget, n_effective: int, seed: int):
        self.target, self.n_effective, self.seed = target, n_effective, seed
        self.chains: Chains | None = None
        self.sampling_seconds = 0.0
        self._sampler: FlowSampler | None = None

    def sampler(self) -> FlowSampler:
        """``FlowSampler``, fitted once."""
        if self._sampler is None:
            began = time.perf_counter()
            # A flow is needed for the evidence in any case, and a choice by measured seconds would not repeat to the bit.
            self._sampler = FlowSampler(target=self.target, n_effective=self.n_effective, method="mixed", random_state=self.seed).fit()
            self.sampling_seconds = time.perf_counter() - began
            self.chains = self._sampler.chains_
        return self._sampler

    def log_posterior(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.target.log_prob(torch.as_tensor(x)).numpy()


_Posterior = Chains | WeightedSamples | Moments


def _by_sampler(run: _Run) -> tuple[Evidence, _Posterior]:
    found = run.sampler().evidence()
    # The evidence may have taken flows from the prior to help, and its chains are new then.
    run.chains = run.sampler().chains_
    return found, run.chains


def _by_chains(run: _Run) -> tuple[Evidence, _Posterior]:
    chains = run.sampler().chains_
    return evidence(chains, prior=run.target.prior, random_state=run.seed + 1), chains


def _by_emcee(run: _Run) -> tuple[Evidence, _Posterior]:
    chains = run_emcee(run.target, min_ess=run.n_effective, random_state=run.seed)
    if run.chains is None:
        run.chains = chains
    found = evidence(chains, run.log_posterior, prior=run.target.prior, max_evaluations=20_000, random_state=run.seed + 1)
    return found, chains


def _by_smc(run: _Run) -> tuple[Evidence, _Posterior]:
    found = smc(run.target, random_state=run.seed)
    return found.evidence, found.samples


def _by_dynesty(run: _Run) -> tuple[Evidence, _Posterior]:
    draws, found = run_dynesty(run.target, random_state=run.seed)
    return found, draws


def _by_grid(run: _Run) -> tuple[Evidence, _Posterior]:
    import pandas as pd

    found = grid_evidence(run.target)
    row = {"log_z": found.log_z, "log_z_err": found.error, "ess": 1.0, "pareto_k": -np.inf, "n_evaluations": found.n_points}
    table = pd.DataFrame([row], index=["quadrature"])
    rough = f"the grid is too coarse for this posterior: another of three quarters as many points is {found.error:.2g} nats away"
    verdict = Reliability.from_reasons([] if found.error < _EXACT else [rough])
    result = Evidence(found.log_z, found.error, "quadrature", 1.0, -np.inf, verdict, table, run.target.names)
    return result, Moments(found.mean, found.std)


ROUTES: dict[str, Callable[[_Run], tuple[Evidence, _Posterior]]] = {
    "sampler": _by_sampler,
    "chains": _by_chains,
    "emcee": _by_emcee,
    "smc": _by_smc,
    "dynesty": _by_dynesty,
    "grid": _by_grid,
}
