"""From the shape of simulations to how they are scaled and which network summarises them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from sbi_flows.embeddings import Embedding, ShapedEmbedding, build_embedding, choose_embedding, is_curve
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.relevance import idle_columns
from sbi_flows.inference.trials import Trials, find_trials


def read_observations(
    x: np.ndarray,
    names: Sequence[str] | None,
    embedding: str | nn.Module | None,
    estimators_own: str | nn.Module | Mapping[str, Any] | None = "auto",
    *,
    theta: np.ndarray | None = None,
    from_prior: bool = True,
) -> tuple[Observations, nn.Module | Mapping[str, Any] | None]:
    """Fit the scaling of simulations and settle their embedding.

    Parameters
    ----------
    x : ndarray (n, ...)
    names : sequence of str or None
    embedding : str, nn.Module or None
        What the user asked for, as in :class:`sbi_flows.NPE`.
    estimators_own : str, nn.Module, dict or None
        The estimator's own parameter ``embedding``, which stands where ``embedding`` is "auto".
    theta : ndarray (n, d), optional
        Parameters of the simulations: with them, idle columns and exchangeable trials are looked for among those that "auto" would pass on.
    from_prior : bool
        Whether these are draws of one prior. If not, as in rounds, columns passed on get no map that they do not need given theta.

    Returns
    -------
    observations : Observations
    network : nn.Module, dict or None
        What the estimator is to be given as ``embedding``.

    Raises
    ------
    ValueError
        Where both embeddings are given, or one does not fit the shape of x.
    """
    shape, given = x.shape[1:], None if from_prior else theta
    if isinstance(estimators_own, nn.Module | Mapping):
        if isinstance(embedding, nn.Module) or embedding not in ("auto", None):
            raise ValueError("Expected an embedding in one place; got embedding= here and one in the estimator. Give it here only.")
        return Observations(keep_layout=True).fit(x, names), estimators_own
    if embedding is None:
        return Observations().fit(x, names, given=given), None
    if isinstance(embedding, Embedding):
        observations = _laid_out(embedding).fit(x, names)
        if embedding.shape != shape or embedding.missing != observations.missing:
            raise ValueError(
                f"Expected an embedding of shape={shape}, missing={_short(observations.missing)} to match x; got one of "
                f"shape={embedding.shape}, missing={_short(embedding.missing)}. Give its name, and both are read from x."
            )
        return observations, embedding
    if isinstance(embedding, nn.Module):
        observations = Observations(keep_layout=True).fit(x, names)
        return observations, ShapedEmbedding(embedding, shape, observations.missing)
    spec, notes = choose_embedding(shape, embedding, x=x)
    if spec is None:
        flat = x.reshape(len(x), -1)
        idle = np.zeros(flat.shape[1], dtype=bool) if theta is None else idle_columns(theta, flat)
        repeats = None if theta is None else find_trials(theta, flat[:, ~idle])
        if repeats is not None or not is_curve(flat):
            return _few_columns(x, names, repeats, idle, given), None
        spec = dict(build_embedding({"embedding": "spectrum", "shape": shape}).spec)
        notes = (f"x: {shape[0]} columns are read as a curve, since neighbours are alike; pass embedding=None if they are none",)
    observations = _laid_out(build_embedding(spec)).fit(x, names)
    observations.notes = (*observations.notes, *notes)
    return observations, {**spec, "missing": observations.missing}


def _few_columns(
    x: np.ndarray, names: Sequence[str] | None, repeats: Trials | None, idle: np.ndarray, given: np.ndarray | None
) -> Observations:
    observations = Observations(repeats=repeats, idle=np.flatnonzero(idle).tolist()).fit(x, names, given=given)
    if repeats is not None:
        k, p = repeats.columns.shape
        columns = np.flatnonzero(~idle)[repeats.columns]
        which = "; ".join(", ".join(map(str, trial)) for trial in columns[:4]) + ("; ..." if k > 4 else "")
        note = (
            f"x: columns are read as {k} exchangeable trials of {p} values each ({which}), since nothing tells one from another: what they "
            "hold is used without their order. Pass embedding=None if the order means something"
        )
        observations.notes = (*observations.notes, note)
    return observations


def _laid_out(embedding: Embedding) -> Observations:
    return Observations(keep_layout=True, shared=embedding.shared, trials=embedding.exchangeable)


def _short(columns: list[int]) -> str:
    return str(columns) if len(columns) <= 6 else f"{len(columns)} columns"
