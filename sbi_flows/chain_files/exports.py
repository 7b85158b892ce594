"""Chains as the objects of other packages, and back. ArviZ and DataFrames are methods of ``Chains``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbi_flows.chain_files import arviz_file, emcee_file
from sbi_flows.chain_files.load import assemble, without_burn_in
from sbi_flows.chain_files.reading import Reading
from sbi_flows.chain_record import Chains
from sbi_flows.model_evidence import BIRTH, N_LIVE, live_points

_SOMEWHERE = Path("<memory>")


def to_getdist(chains: Chains) -> Any:
    """A ``getdist.MCSamples`` with weights, -ln posterior, labels, ranges and the chains kept apart.

    Without ``log_posterior`` its ``loglikes`` are None. Chains of an ensemble or of nested sampling are "uncorrelated" and "nested" to it.

    Raises
    ------
    ImportError
        If getdist is not installed.

    Examples
    --------
    >>> from sbi_flows import load_chains                                                        # doctest: +SKIP
    >>> samples = to_getdist(load_chains("chains/run"))                                          # doctest: +SKIP

    References
    ----------
    Lewis 2019, "GetDist: a Python package for analysing Monte Carlo samples", arXiv:1910.13970.
    """
    getdist = _needed("getdist")
    parts = chains.split()
    names = [*chains.names, *chains.derived]
    ends = {name: [None if np.isinf(end) else end for end in pair] for name, pair in chains.bounds.items()}
    return getdist.MCSamples(
        samples=[_columns(part) for part in parts],
        weights=None if chains.weights is None else [part.weights[0] for part in parts if part.weights is not None],
        loglikes=None if chains.log_posterior is None else [-part.log_posterior[0] for part in parts if part.log_posterior is not None],
        names=[*chains.names, *(f"{name}*" for name in chains.derived)],
        labels=[chains.labels.get(name, name) for name in names],
        ranges=ends,
        sampler="nested" if chains.independent else "mcmc",
        ignore_rows=0,
    )


def to_anesthetic(chains: Chains) -> Any:
    """An ``anesthetic.NestedSamples`` of nested sampling with births, else an ``anesthetic.MCMCSamples``; all chains in one table.

    Raises
    ------
    ImportError
        If anesthetic is not installed.

    Examples
    --------
    >>> from sbi_flows import load_chains                                                        # doctest: +SKIP
    >>> to_anesthetic(load_chains("polychord/run")).logZ()                                       # doctest: +SKIP

    References
    ----------
    Handley 2019, "anesthetic: nested sampling visualisation", JOSS 4, 1414.
    """
    anesthetic = _needed("anesthetic")
    names = [*chains.names, *chains.derived]
    labels = [f"${chains.labels[name]}$" if name in chains.labels else name for name in names]
    data = np.concatenate([_columns(part) for part in chains.split()])
    log_l = None if chains.log_likelihood is None else _flat(chains, chains.log_likelihood)
    if BIRTH in chains.stats and log_l is not None:
        return anesthetic.NestedSamples(data=data, columns=names, labels=labels, logL=log_l, logL_birth=_flat(chains, chains.stats[BIRTH]))
    frame = anesthetic.MCMCSamples(
        data=data, columns=names, labels=labels, logL=log_l, weights=None if chains.weights is None else _flat(chains, chains.weights)
    )
    if len(chains.samples) > 1:
        frame["chain", "chain"] = np.repeat(np.arange(len(chains.samples)), chains.lengths)
    return frame


def to_chainconsumer(chains: Chains, name: str = "chains") -> Any:
    """A ``chainconsumer.Chain`` (version 1) of all draws, columns named by their labels, to give to ``ChainConsumer.add_chain``.

    Raises
    ------
    ImportError
        If chainconsumer 1 is not installed.

    Examples
    --------
    >>> from chainconsumer import ChainConsumer                                                   # doctest: +SKIP
    >>> figure = ChainConsumer().add_chain(to_chainconsumer(chains, "run 1")).plotter.plot()      # doctest: +SKIP
    """
    package = _needed("chainconsumer")
    if not hasattr(package, "Chain"):
        raise ImportError("Expected chainconsumer 1.0 or newer, which has a class Chain: pip install 'chainconsumer>=1'.")
    frame = chains.to_dataframe()
    frame = frame.rename(columns={name: f"${label}$" for name, label in chains.labels.items() if name in chains.names})
    options = {}
    if chains.log_posterior is not None:
        frame = frame.assign(log_posterior=_flat(chains, chains.log_posterior))
        options["posterior_column"] = "log_posterior"
    return package.Chain(samples=frame, name=name, **options)


def to_corner(chains: Chains) -> dict[str, Any]:
    """What ``corner.corner`` takes of chains: ``corner.corner(**to_corner(chains))``.

    Returns
    -------
    dict
        ``data`` (n, d), ``labels`` and, where there are any, ``weights`` (n,).

    Examples
    --------
    >>> sorted(to_corner(Chains(np.zeros((1, 3, 1)), ("a",), labels={"a": "\\\\alpha"})).items())
    [('data', array([[0.],
           [0.],
           [0.]])), ('labels', ['$\\\\alpha$'])]
    """
    labels = [f"${chains.labels[name]}$" if name in chains.labels else name for name in chains.names]
    content = {"data": np.concatenate([part.samples[0] for part in chains.split()]), "labels": labels}
    return content if chains.weights is None else content | {"weights": _flat(chains, chains.weights)}


def as_chains(source: Any, *, burn: float = 0, parameters: Sequence[str] | None = None) -> Chains:
    """Chains of an object of another package: an emcee sampler or backend, ArviZ data, ``getdist.MCSamples``, anesthetic's samples.

    A log-density is taken over where the package defines it (emcee's is ln posterior, getdist's ``loglikes`` are -ln posterior,
    anesthetic's ``logL`` is ln likelihood, ArviZ's ``lp`` where we wrote it) and left out elsewhere.

    Parameters
    ----------
    source
    burn : float
        What to leave out at the start of each chain, as in :func:`load_chains`: below one a fraction of its rows, else a whole number
        of rows.
    parameters : sequence of str, optional
        Which columns are parameters, the others being derived: anesthetic cannot tell.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        For a sampler that has not run, or a ``burn`` that leaves nothing.

    Examples
    --------
    >>> chains = Chains(np.random.default_rng(0).normal(size=(2, 10, 1)), ("a",), bounds={"a": (-9.0, 9.0)})
    >>> back = as_chains(chains.to_arviz())
    >>> bool((back.samples == chains.samples).all()), back.bounds
    (True, {'a': (-9.0, 9.0)})
    """
    return without_burn_in(_assembled(source, parameters), burn)


def _assembled(source: Any, parameters: Sequence[str] | None) -> Chains:
    if hasattr(source, "get_chain") and hasattr(source, "get_log_prob"):
        return assemble(_from_emcee(source), None, parameters)
    if hasattr(source, "posterior"):
        return assemble(arviz_file.reading(source, _SOMEWHERE), "none" if _is_foreign(source) else None, parameters)
    if hasattr(source, "getSeparateChains"):
        return assemble(_from_getdist(source), None, parameters)
    if hasattr(source, "get_labels_map") and hasattr(source, "get_weights"):
        return assemble(_from_anesthetic(source), None, parameters)
    raise TypeError(
        f"Expected an emcee sampler, ArviZ data, getdist.MCSamples or samples of anesthetic; got {type(source).__name__}. Arrays and "
        "DataFrames go into evidence and plots as they are; files into load_chains."
    )


def _is_foreign(data: Any) -> bool:
    from sbi_flows.chain_record import ARVIZ_MARK

    return ARVIZ_MARK not in data.posterior.attrs


def _from_emcee(source: Any) -> Reading:
    """Its arrays are (draw, walker, d) and (draw, walker)."""
    backend = getattr(source, "backend", source)
    if not getattr(backend, "iteration", 1):
        raise ValueError("The emcee sampler has no steps yet: call its run_mcmc first.")
    chain, log_prob = np.swapaxes(source.get_chain(), 0, 1), np.swapaxes(source.get_log_prob(), 0, 1)
    return emcee_file.reading(chain, log_prob, _SOMEWHERE, getattr(source, "parameter_names", None))


def _from_getdist(source: Any) -> Reading:
    infos = source.paramNames.names
    parts = source.getSeparateChains() if source.chain_offsets is not None else [source]
    samples = [np.asarray(part.samples, dtype=np.float64) for part in parts]
    columns: dict[str, list[np.ndarray]] = {}
    weights = [np.ones(len(x)) if part.weights is None else np.asarray(part.weights) for part, x in zip(parts, samples, strict=True)]
    if any(np.any(w != 1) for w in weights):
        columns["weight"] = weights
    if source.loglikes is not None:
        columns["log_posterior"] = [-np.asarray(part.loglikes) for part in parts]
    ranges = source.ranges
    bounds = {}
    for info in infos:
        low, high = ranges.getLower(info.name), ranges.getUpper(info.name)
        if low is not None or high is not None:
            bounds[info.name] = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
    return Reading(
        format="getdist",
        files=[_SOMEWHERE],
        names=[info.name for info in infos],
        samples=samples,
        columns=columns,
        derived=[info.name for info in infos if info.isDerived],
        bounds=bounds,
        labels={info.name: info.label for info in infos if info.label and info.label != info.name},
        independent=source.sampler in ("nested", "uncorrelated"),
    )


_ANESTHETIC_OWN = ("logL", "logL_birth", "nlive", "insertion", "weights", "chain")


def _from_anesthetic(source: Any) -> Reading:
    plain = source.drop_labels()
    labels = {name: label.strip("$") for name, label in source.get_labels_map().items() if label.startswith("$")}
    names = [str(name) for name in plain.columns if name not in _ANESTHETIC_OWN]
    nested = "logL_birth" in plain.columns
    chain = plain["chain"].to_numpy() if "chain" in plain.columns else np.zeros(len(plain))
    starts = np.flatnonzero(np.diff(chain)) + 1

    def cut(values: Any) -> list[np.ndarray]:
        return np.split(np.asarray(values, dtype=np.float64), starts)

    columns = {}
    if nested or np.any(plain.get_weights() != 1):
        columns["weight"] = cut(plain.get_weights())
    if "logL" in plain.columns:
        columns["log_likelihood"] = cut(plain["logL"])
    if nested:
        birth = plain["logL_birth"].to_numpy(dtype=np.float64)
        columns |= {BIRTH: [birth], N_LIVE: [live_points(columns["log_likelihood"][0], birth).astype(np.float64)]}
    return Reading(
        format="anesthetic",
        files=[_SOMEWHERE],
        names=names,
        samples=cut(plain[names].to_numpy()),
        columns=columns,
        labels={name: label for name, label in labels.items() if name in names},
        independent=nested,
    )


def _columns(part: Chains) -> np.ndarray:
    """Parameters and derived quantities of a single chain, (n, k)."""
    return np.column_stack([part.samples[0], *(values[0] for values in part.derived.values())])


def _flat(chains: Chains, values: np.ndarray) -> np.ndarray:
    """One number a draw, chain after chain, without filling."""
    return np.concatenate([row[:length] for row, length in zip(values, chains.lengths, strict=True)])


def _needed(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise ImportError(f"This needs {package}: pip install 'sbi_flows[chains]'.") from None
