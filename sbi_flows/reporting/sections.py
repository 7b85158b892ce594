"""What a page says of each kind of result; the one place where kinds are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_flows import plots
from sbi_flows.diagnostics import ChainComparison, Diagnosis
from sbi_flows.flow_sampling import FlowSampler, SamplerReport
from sbi_flows.reporting import html
from sbi_flows.results import Chains, Evidence, FitHistory, Reliability, SMCResult, TemperedChains, WeightedSamples
from sbi_flows.samplers import convergence

if TYPE_CHECKING:
    import pandas

_MOST_IN_CORNER = 6
_UNJUDGED = "judged here, by R-hat and effective sizes of what was given: nothing is known of how the draws were made"
_WORDS_OF_INFO = {
    "sampler": "sampler",
    "random_state": "random_state (the seed)",
    "n_evaluations": "evaluations of the density, all there were",
    "n_gradients": "of these with gradient",
    "seconds": "wall time [s]",
    "n_warmup": "warm-up steps a chain",
    "n_burn_in": "burn-in steps",
    "n_steps": "steps",
}
_ARVIZ = "Vehtari et al. 2021, Bayesian Analysis 16(2) (R-hat and effective sample size); Kumar et al. 2019, JOSS 4, 1143 (ArviZ)"
_CITATIONS = {
    "emcee": "Foreman-Mackey, Hogg, Lang & Goodman 2013, PASP 125, 306 (emcee)",
    "dynesty": "Speagle 2020, MNRAS 493, 3132 (dynesty); Skilling 2006, Bayesian Analysis 1 (nested sampling)",
    "NUTS": "Hoffman & Gelman 2014, JMLR 15 (NUTS)",
    "HMC": "Duane, Kennedy, Pendleton & Roweth 1987, Phys. Lett. B 195 (hybrid Monte Carlo)",
    "RandomWalk": "Haario, Saksman & Tamminen 2001, Bernoulli 7 (adaptive Metropolis)",
}


_CITATIONS_OF_METHODS = {
    "mixed": "Gabrié, Rotskoff & Vanden-Eijnden 2022, PNAS 119 (Monte Carlo with flow proposals)",
    "latent": "Hoffman et al. 2019, arXiv:1903.03704 (sampling in the latent space of a flow)",
    "stochastic-flow": "Wu, Köhler & Noé 2020, arXiv:2002.06707 (stochastic normalizing flows)",
    "diffusion": "Vargas, Grathwohl & Doucet 2023, arXiv:2302.13834 (denoising diffusion samplers)",
}


@dataclass(frozen=True)
class Section:
    """A part of a page: its verdict goes to the top, its parts below its title.

    Attributes
    ----------
    title, words : str
        The words are the verdict's.
    reliability : Reliability
    parts : list of str
        HTML.
    cite : tuple of str
    """

    title: str
    words: str
    reliability: Reliability
    parts: list[str] = field(repr=False)
    cite: tuple[str, ...] = ()


def sections_of(result: Any) -> list[Section]:
    """Every section that a result asks for; ``TypeError`` for one of no known kind."""
    for kind, write in _KINDS:
        if isinstance(result, kind):
            return write(result)
    known = ", ".join(kind.__name__ for kind, _ in _KINDS)
    raise TypeError(f"Expected a result to report on, one of {known}, or a mapping of these by name; got {type(result).__name__}.")


def _chains(chains: Chains) -> list[Section]:
    chains = chains.unweighted(0).rectangular()
    judged = convergence(chains.samples, chains.names)
    summary = _summary(chains.to_dataframe(), None).assign(
        **{"R-hat": judged.rhat, "ESS bulk": judged.ess_bulk, "ESS tail": judged.ess_tail}
    )
    n_chains, n_draws, _ = chains.samples.shape
    known = {"walkers of one ensemble" if chains.ensemble else "chains": n_chains, "draws a chain": n_draws, **_info(chains.info)}
    means = {f"mean {name.replace('_', ' ')} a draw": float(np.mean(values)) for name, values in chains.stats.items()}
    parts = [html.facts({**known, **means}), html.heading("Parameters", 3), html.table(summary)]
    parts += [*_corner(chains.samples.reshape(-1, chains.features), chains.names, float(np.nan_to_num(judged.ess_bulk).min()))]
    own = judged.reliability
    verdict = chains.reliability or Reliability.from_reasons(own.reasons, [*own.notes, _UNJUDGED])
    parts.append(html.picture(plots.traces(replace(chains, reliability=verdict)), "Traces of the chains, and what each drew"))
    words = "reliable" if verdict.ok else "NOT RELIABLE"
    return [Section("Chains", words, verdict, parts, (_ARVIZ, *_cited(chains.info)))]


def _comparison(comparison: ChainComparison) -> list[Section]:
    table, joint = comparison.table, comparison.c2st
    per_run = [column for column in table.columns if column.endswith(tuple(f"_{label}" for label in comparison.labels))]
    numbers = {
        "smallest p-value times their number": None if comparison.unfit else comparison.p_value,
        "joint Hellinger distance, by neighbours": comparison.hellinger_joint,
        "the same between halves of one sample": comparison.hellinger_joint_floor,
        "accuracy of a classifier, 0.5 for equal": None if joint is None else joint.accuracy,
    }
    parts = [
        html.facts(numbers),
        html.heading("Differences", 3),
        html.table(table.drop(columns=per_run)),
        html.heading("Each run", 3),
        html.table(table[per_run]),
        html.heading("Cost", 3),
        html.table(comparison.efficiency),
        html.picture(plots.compare_chains(comparison), "Marginals of both runs; H is the Hellinger distance"),
    ]
    title = f"{comparison.labels[0]} and {comparison.labels[1]}"
    return [Section(title, comparison.verdict, comparison.reliability, parts, (_ARVIZ,))]


def _evidence(evidence: Evidence) -> list[Section]:
    known = {
        "ln Z": f"{evidence.log_z:.4f} ± {evidence.log_z_err:.2g}",
        "by": evidence.method,
        "effective share of the draws": evidence.ess,
        "Pareto k": "no tail" if evidence.pareto_k == -np.inf else evidence.pareto_k,
        "parameters": ", ".join(evidence.names),
        **_info(evidence.info),
    }
    words = f"ln Z = {evidence.log_z:.3f} ± {evidence.log_z_err:.2g}, {'reliable' if evidence.reliability.ok else 'NOT RELIABLE'}"
    parts = [html.facts(known), html.heading("Estimators", 3), html.table(evidence.by_method, "estimator")]
    return [Section("Evidence", words, evidence.reliability, parts, _cited(evidence.info))]


def _weighted(draws: WeightedSamples) -> list[Section]:
    known = {
        "draws": len(draws.samples),
        "effective number": draws.ess,
        **_mean_weight(draws),
        **_info(draws.info),
    }
    frame = draws.to_dataframe()
    summary = _summary(frame.drop(columns="weight"), draws.weights)
    parts = [html.facts(known), html.heading("Parameters", 3), html.table(summary)]
    parts += _corner(draws.resample(10_000, random_state=0), draws.names, min(draws.ess, 1e4))
    words = "reliable" if draws.reliability.ok else "NOT RELIABLE"
    vehtari = ("Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72) (Pareto k)",) if draws.evidence is None else ()
    return [Section("Weighted draws", words, draws.reliability, parts, (*vehtari, *_cited(draws.info)))]


def _mean_weight(draws: WeightedSamples) -> dict[str, Any]:
    if draws.evidence is not None:
        return {"ln Z": f"{draws.log_z:.4f} ± {draws.log_z_err:.2g}", "by": draws.evidence.method}
    return {"Pareto k": "no tail" if draws.pareto_k == -np.inf else draws.pareto_k, "ln of the mean weight": draws.log_z}


def _smc(result: SMCResult) -> list[Section]:
    known = {
        "powers of the likelihood": result.powers,
        "mean acceptance or efficiency at each": result.acceptances,
    }
    return _between(result, "Sequential Monte Carlo", known, [*_evidence(result.evidence), *_weighted(result.samples)])


def _tempered(result: TemperedChains) -> list[Section]:
    known = {
        "powers of the likelihood": result.powers,
        "exchanges accepted between neighbours": result.swap_rates,
    }
    return _between(result, "Parallel tempering", known, [*_evidence(result.evidence), *_chains(result.chains)])


def _between(result: SMCResult | TemperedChains, title: str, known: Mapping[str, Any], parts: list[Section]) -> list[Section]:
    """The run as a whole with its own verdict, then its evidence and its draws with theirs."""
    facts = html.facts({**known, "evaluations of the likelihood, all there were": result.n_evaluations})
    words = "reliable" if result.reliability.ok else "NOT RELIABLE"
    return [Section(title, words, result.reliability, [facts]), *parts]


def _history(history: FitHistory) -> list[Section]:
    known = {
        "loss": history.loss,
        "epochs": len(history.learning_rate),
        "members": history.train_loss.shape[1],
        "kept epoch of each": tuple(int(epoch) for epoch in history.best_epoch),
        "optimiser steps": history.n_steps,
        "of these skipped, the loss not being finite": history.n_skipped,
        "wall time [s]": history.seconds,
        "ended by": history.stopped,
    }
    parts = [html.facts(known), html.picture(plots.losses(history), "Mean loss a row; the dot is the epoch that was kept")]
    return [Section("Fit", "reliable" if history.reliability.ok else "NOT RELIABLE", history.reliability, parts)]


def _diagnosis(diagnosis: Diagnosis) -> list[Section]:
    caption = "Ranks, expected coverage and the checks of the observation"
    parts = [html.table(diagnosis.table, "check"), html.picture(plots.diagnosis(diagnosis), caption)]
    return [Section("Calibration", diagnosis.verdict, diagnosis.reliability, parts)]


def _sampler_report(record: SamplerReport) -> list[Section]:
    import pandas as pd

    purposes = list(dict.fromkeys([*record.seconds, *record.evaluations]))
    cost = pd.DataFrame(
        {
            "evaluations": [record.evaluations.get(name, 0) for name in purposes],
            "with gradient": [record.gradients.get(name, 0) for name in purposes],
            "seconds": [record.seconds.get(name, np.nan) for name in purposes],
            "of these in the density": [record.target_seconds.get(name, np.nan) for name in purposes],
        },
        index=pd.Index(purposes, name="purpose"),
    )
    known = {
        "method": record.method,
        "local kernel": record.local_kernel,
        "chains": record.n_chains,
        "draws a chain": record.n_draws,
        "independent draws they are worth": float(np.min(record.ess_bulk)),
        "evaluations of the density, all there were": record.n_evaluations,
        "of these with gradient": record.n_gradients,
        "flow proposals accepted": record.flow_acceptance,
        "training steps of the flow": record.training_steps,
    }
    parts = [html.facts(known), html.heading("Why", 3), html.bullets(record.reasons), html.heading("Cost", 3), html.table(cost)]
    if record.modes is not None:
        found = {"mass": record.modes.mass, "error": record.modes.error, "about": record.modes.places()}
        modes = pd.DataFrame(found, index=range(1, len(record.modes.mass) + 1))
        parts += [html.heading("Modes", 3), html.table(modes, "mode")]
    words = "reliable" if record.reliability.ok else "NOT RELIABLE"
    helped = _CITATIONS_OF_METHODS.get(record.method)
    cite = (*_cited({"sampler": record.local_kernel}), *([] if helped is None else [helped]))
    return [Section("What the sampler did", words, record.reliability, parts, cite)]


def _sampler(sampler: FlowSampler) -> list[Section]:
    if not hasattr(sampler, "report_"):
        raise ValueError("Expected a fitted FlowSampler; this one has not been: call fit first.")
    seed = sampler.random_state if isinstance(sampler.random_state, int) else "not given as a number"
    first, *rest = _sampler_report(sampler.report_)
    rest += _chains(sampler.chains_)
    if sampler.evidence_ is not None:
        rest += _evidence(sampler.evidence_)
    return [replace(first, parts=[html.facts({_WORDS_OF_INFO["random_state"]: seed}), *first.parts]), *rest]


_KINDS: tuple[tuple[type, Callable[[Any], list[Section]]], ...] = (
    (Chains, _chains),
    (ChainComparison, _comparison),
    (Evidence, _evidence),
    (WeightedSamples, _weighted),
    (SMCResult, _smc),
    (TemperedChains, _tempered),
    (FitHistory, _history),
    (Diagnosis, _diagnosis),
    (SamplerReport, _sampler_report),
    (FlowSampler, _sampler),
)


# --- Pieces that several share ------------------------------------------------------------------------------------------------


def _info(info: Mapping[str, Any]) -> dict[str, Any]:
    known = {_WORDS_OF_INFO.get(name, name.replace("_", " ")): value for name, value in info.items()}
    if "random_state" in info and info["random_state"] is None:
        known[_WORDS_OF_INFO["random_state"]] = "not given as a number"
    return known


def _cited(info: Mapping[str, Any]) -> tuple[str, ...]:
    sampler = str(info.get("sampler", ""))
    return tuple(reference for name, reference in _CITATIONS.items() if sampler.startswith(name))


def _summary(frame: pandas.DataFrame, weights: np.ndarray | None) -> pandas.DataFrame:
    import pandas as pd

    rows = []
    for name in frame.columns:
        x = frame[name].to_numpy()
        mean = float(np.average(x, weights=weights))
        sd = float(np.sqrt(np.average((x - mean) ** 2, weights=weights)))
        low, middle, high = _quantiles(x, weights)
        rows.append({"mean": mean, "sd": sd, "5 %": low, "median": middle, "95 %": high})
    return pd.DataFrame(rows, index=pd.Index(frame.columns, name="parameter"))


def _quantiles(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    wanted = [0.05, 0.5, 0.95]
    if weights is None:
        return np.quantile(x, wanted)
    order = np.argsort(x)
    return np.interp(wanted, np.cumsum(weights[order]) - 0.5 * weights[order], x[order])


def _corner(rows: np.ndarray, names: tuple[str, ...], ess: float) -> list[str]:
    moving = [j for j in range(rows.shape[1]) if np.ptp(rows[:, j]) > 0][:_MOST_IN_CORNER]
    if not moving:
        return []
    shown = [names[j] for j in moving]
    figure = plots.corner({"draws": rows[:, moving]}, shown, ess={"draws": max(ess, 1.0)})
    more = f" of the first {len(moving)} of {rows.shape[1]} parameters" if len(moving) < rows.shape[1] else ""
    return [html.picture(figure, f"Marginals{more}; contours hold 68 % and 95 % of the draws")]
