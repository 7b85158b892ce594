"""Chains of whatever kind, read into :class:`Chains`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sbi_flows.model_evidence.inputs import unpack
from sbi_flows.model_evidence.layout import layout_reasons
from sbi_flows.results import Chains, SMCResult, TemperedChains, WeightedSamples

_SHARED = 0.05  # of the distinct draws
_FEW_VALUES = 200


def read_chains(source: Any, name: str) -> tuple[Chains, tuple[str, ...]]:
    """``Chains``, arrays ``(chain, draw, d)`` or ``(n, d)``, a list of chains, ArviZ, an emcee sampler, a DataFrame (which may have columns
    ``chain`` and ``draw``), weighted samples, what ``smc`` and ``parallel_tempering`` return, or a fitted sampler with ``chains_``
    and ``report_``; and what was done to them.

    Raises
    ------
    ValueError, TypeError
        When it is none of these, or holds NaN or infinities.
    """
    notes: list[str] = []
    if isinstance(source, TemperedChains):
        source = _told_by(source.chains, source)
    if isinstance(source, SMCResult):
        _check_independent(source.samples.samples, name)
        return _resampled(source.samples, name, source)
    if isinstance(source, WeightedSamples):
        return _resampled(source, name)
    if hasattr(source, "chains_"):
        source = _with_all_costs(source)
    if isinstance(source, Chains):
        chains = source.unweighted(0)
        if len(set(chains.lengths)) > 1:
            notes.append(f"{name}: chains were cut to the shortest, {chains.lengths.min()} draws")
            chains = chains.rectangular()
    else:
        blocks, names, ensemble = _blocks(source)
        shortest = min(map(len, blocks))
        lost = sum(len(block) - shortest for block in blocks)
        if lost:
            notes.append(f"{name}: chains were cut to the shortest, {shortest} draws, which left {lost} draws out")
        chains = Chains(np.stack([block[-shortest:] for block in blocks]), tuple(names), ensemble=ensemble)
    wrong = ~np.isfinite(chains.samples).all(axis=-1)
    if wrong.any():
        raise ValueError(
            f"Expected finite draws in {name}; {int(wrong.sum())} of {wrong.size} hold NaN or infinity. Remove them, or mend what wrote "
            "them."
        )
    return chains, tuple(notes)


def _told_by(chains: Chains, result: SMCResult | TemperedChains) -> Chains:
    """With the verdict and the evaluations of the whole result."""
    return replace(chains, reliability=result.reliability, info={**chains.info, "n_evaluations": result.n_evaluations})


def _check_independent(particles: np.ndarray, name: str) -> None:
    """Chains that move particles repeat them wherever they reject; draws of a flow do not repeat."""
    distinct = len(np.unique(particles, axis=0))
    if distinct < len(particles):
        raise ValueError(
            f"The particles of {name} were moved by chains and depend on each other ({distinct} of {len(particles)} are distinct): how "
            "many independent draws they are worth is not known, and p-values would be too small. Compare one with a flow (flow='auto'), or"
            " give as many rows as you vouch for: result.samples.resample(n)."
        )


def _resampled(draws: WeightedSamples, name: str, result: SMCResult | None = None) -> tuple[Chains, tuple[str, ...]]:
    """Equally weighted draws, as many as the weighted ones are worth; the seed is fixed, so that they are the same at each call."""
    size = int(draws.ess)
    note = f"{name}: {len(draws.samples)} weighted draws were resampled to their effective size, {size} (random_state=0)"
    chains = Chains(draws.resample(size, random_state=0)[None], draws.names, info=draws.info, reliability=draws.reliability)
    return chains if result is None else _told_by(chains, result), (note,)


def _with_all_costs(sampler: Any) -> Chains:
    """A sampler's chains with everything it spent, which its report counts by purpose: training and choice as well."""
    chains, told = sampler.chains_, getattr(sampler, "report_", None)
    if told is None:
        return chains
    spent = {"n_evaluations": told.n_evaluations, "n_gradients": told.n_gradients, "seconds": sum(told.seconds.values())}
    return replace(chains, info={**chains.info, **spent})


def _blocks(source: Any) -> tuple[list[np.ndarray], tuple[str, ...], bool]:
    if hasattr(source, "columns") and "chain" in source.columns:
        frame = source.sort_values(["chain", "draw"], kind="stable") if "draw" in source.columns else source
        rest = frame.drop(columns=[c for c in ("chain", "draw") if c in frame.columns])
        parts = [unpack(rest[(frame["chain"] == chain).to_numpy()]) for chain in frame["chain"].unique()]
        return [part[0][0] for part in parts], parts[0][1], False
    blocks, names, _, _, ensemble = unpack(source)
    return blocks, tuple(names), ensemble


def misread(chains: Chains) -> list[str]:
    """Why their array cannot be ``(chain, draw, d)``, if anything shows it."""
    length = chains.samples.shape[1]
    return layout_reasons(chains.samples.reshape(-1, chains.features), np.full(len(chains.samples), length), chains.names)


def common_columns(a: Chains, b: Chains, labels: tuple[str, str], unnamed: tuple[bool, bool]) -> tuple[Chains, Chains, tuple[str, ...]]:
    """Both with the same parameters in the same order: those of the same names, or, where one has none, as they come."""
    if a.features == b.features and (any(unnamed) or a.names == b.names):
        names = b.names if unnamed[0] else a.names
        return _take(a, range(a.features), names), _take(b, range(b.features), names), ()
    if any(unnamed):
        raise ValueError(
            f"Expected the same parameters in both; {labels[0]} has {a.features} columns and {labels[1]} {b.features}, and names are not "
            "known. Pass DataFrames, or Chains with names."
        )
    shared = [name for name in a.names if name in b.names]
    if not shared:
        raise ValueError(
            f"Expected parameters of the same names; {labels[0]} has {', '.join(a.names)}, {labels[1]} has {', '.join(b.names)}. "
            "Rename them."
        )
    left = [name for name in (*a.names, *b.names) if name not in shared]
    notes = (f"compared are the parameters of both; left out: {', '.join(dict.fromkeys(left))}",) if left else ()
    first, second = (_take(c, [c.names.index(name) for name in shared], tuple(shared)) for c in (a, b))
    return first, second, notes


def has_names(source: Any) -> bool:
    """Whether what a user gave names its parameters."""
    named = isinstance(source, Chains | WeightedSamples | SMCResult | TemperedChains)
    return named or any(hasattr(source, name) for name in ("columns", "posterior", "chains_"))


def cut_angles(a: Chains, b: Chains, periods: Mapping[str, float]) -> tuple[Chains, Chains]:
    """Angles moved into one period, cut opposite to the mean direction of both, where fewest draws are."""
    unknown = [name for name in periods if name not in a.names]
    if unknown:
        raise ValueError(f"Expected periods of the parameters {', '.join(a.names)}; got one for {', '.join(unknown)}.")
    samples = [a.samples.copy(), b.samples.copy()]
    for name, period in periods.items():
        j = a.names.index(name)
        turn = 2 * np.pi / period
        # Each set has one vote, however many draws it has.
        middle = np.angle(sum(np.exp(1j * turn * each[..., j]).mean() for each in samples)) / turn
        for each in samples:
            each[..., j] = middle + (each[..., j] - middle + period / 2) % period - period / 2
    return replace(a, samples=samples[0]), replace(b, samples=samples[1])


def without_fixed(a: Chains, b: Chains, labels: tuple[str, str]) -> tuple[Chains, Chains, list[str], list[str]]:
    """Both without the parameters that are one number in each; reasons where it is not the same one, and a note of those that agree.

    Where nothing else is left, both as they are: they may be stuck.
    """
    values = [each.samples.reshape(-1, each.features) for each in (a, b)]
    fixed = (np.ptp(values[0], axis=0) == 0) & (np.ptp(values[1], axis=0) == 0)
    if not fixed.any() or fixed.all():
        return a, b, [], []
    first, second = values[0][0], values[1][0]
    differ = fixed & (first != second)
    reasons = [
        f"{a.names[j]} is fixed at {first[j]:.6g} in {labels[0]} and at {second[j]:.6g} in {labels[1]}" for j in np.flatnonzero(differ)
    ]
    same = [a.names[j] for j in np.flatnonzero(fixed & ~differ)]
    notes = [f"fixed at one value in both, and left out: {', '.join(same)}"] if same else []
    left = np.flatnonzero(~fixed)
    names = tuple(a.names[j] for j in left)
    return _take(a, left, names), _take(b, left, names), reasons, notes


def same_draws(a: Chains, b: Chains, labels: tuple[str, str]) -> list[str]:
    """A note where draws of one are draws of the other: such sets agree whatever they are."""
    rows = [np.unique(each.samples.reshape(-1, each.features), axis=0) for each in (a, b)]
    both = len(rows[0]) + len(rows[1]) - len(np.unique(np.concatenate(rows), axis=0))
    share = both / min(map(len, rows))
    # Parameters that take a few values repeat by chance, with other draws than these few.
    if share < _SHARED or min(map(len, rows)) < _FEW_VALUES:
        return []
    which = "all" if share == 1 else f"{share:.0%} of the"
    pair = " and ".join(labels)
    return [f"{which} draws of one are draws of the other too: {pair} are no independent runs, and agreement shows nothing"]


def _take(chains: Chains, columns: Any, names: tuple[str, ...]) -> Chains:
    return replace(chains, samples=chains.samples[..., list(columns)], names=names)
