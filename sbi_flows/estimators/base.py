"""What the two estimators share: parameters, the fit itself, and evaluation in pieces."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sbi_flows import flows
from sbi_flows._random import RandomState, own_seed, seed_from
from sbi_flows._threads import CALL, threads_for
from sbi_flows._validation import as_float, choose, positive, resolve_device, torch_dtype
from sbi_flows.bijections.continuous import Continuous
from sbi_flows.bijections.support import ColumnSupport, parse_support
from sbi_flows.embeddings import build_embedding
from sbi_flows.estimators.censoring import check_trainable, log_tails, with_kinds
from sbi_flows.estimators.columns import check_modelled, check_support
from sbi_flows.estimators.copies import row_keys
from sbi_flows.estimators.ensemble import EmbeddedFlow, FlowEnsemble, data_dtype, draw
from sbi_flows.losses import Loss, censored_nll, denoising_score_matching, flow_matching, nll, nll_through_solver
from sbi_flows.results import Reliability
from sbi_flows.training import ArraySource, train
from sbi_flows.training.lengths import auto_epochs

NAMED_FLOWS = ("nsf", "nsf-coupling", "maf", "realnvp", "cnf", "score")
_ROWS_AT_ONCE = 65536
_RATE = 1e-2  # see training.train
# A flow follows what its embedding makes of the data while that changes: on sets of trials this left a quarter of the divergence from the
# truth that the higher rate left (tests/inference/test_npe_embeddings.py).
_RATE_WITH_EMBEDDING = 3e-3
# Of continuous flows: on two moons, 5000 rows, held-out log-densities were .18 nats better than with 1e-2, elsewhere within .07.
_RATE_OF_MATCHING = 3e-3
# Times as many epochs: a further .36 nats there, and still falling.
_LENGTH_OF_MATCHING = 3
_ROWS_FOR_STEPS = 512
_VALIDATION_DRAWS = 4096
_WITHOUT_NOISE = (nll, nll_through_solver, censored_nll)


class FlowEstimator(BaseEstimator):
    """Base of :class:`FlowDensity` and :class:`ConditionalFlow`; the parameters are documented there."""

    flow_: Any  # a module with the methods of Flow
    held_out_: np.ndarray

    def __init__(
        self,
        *,
        flow: str | nn.Module | Callable[[int, int], nn.Module] = "nsf",
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        support: Any = None,
        n_members: int = 1,
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float | str = "auto",
        schedule: str = "one-cycle",
        validation_fraction: float = 0.1,
        patience: int = 20,
        weight_decay: float = 0.1,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        random_state: RandomState = None,
        progress: bool = False,
        callbacks: Sequence[Callable] = (),
        checkpoint: str | Path | None = None,
        warm_start: bool = False,
    ):
        self.flow = flow
        self.layers = layers
        self.hidden = hidden
        self.bins = bins
        self.support = support
        self.n_members = n_members
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.weight_decay = weight_decay
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.progress = progress
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.warm_start = warm_start

    # --- Fitting -----------------------------------------------------------------------------------------------------------

    def _fit(
        self,
        y: np.ndarray,
        context: np.ndarray | None,
        weights: np.ndarray | None,
        name: str,
        names: Sequence[str] | None,
        notes: list[str],
        embedding: nn.Module | Mapping[str, Any] | None = None,
        censored: np.ndarray | None = None,
    ) -> None:
        """Fit a density of ``y (n, d)`` given ``context (n, c)``, float64 and finite; ``name`` is what the user calls y.

        ``censored (n,)`` marks limits, see :mod:`sbi_flows.estimators.censoring`.
        """
        dtype, device = torch_dtype(self.dtype), resolve_device(self.device)
        self._check_settings()
        if weights is not None:
            used = weights > 0
            if not used.all():
                notes = [*notes, f"{(~used).sum()} rows of zero weight were left out"]
            y, weights = y[used], weights[used]
            context = None if context is None else context[used]
            censored = None if censored is None else censored[used]
        seeds = np.random.SeedSequence(seed_from(self.random_state)).generate_state(self.n_members + 2)
        widths = y.shape[1], 0 if context is None else context.shape[1]
        goes_on = bool(self.warm_start) and hasattr(self, "flow_")
        members: list[Any] = (
            self._continued(*widths)
            if goes_on
            else [self._build(*widths, names, embedding, int(seed)).to(dtype) for seed in seeds[2:]]
        )
        density = members[0].flow if isinstance(members[0], EmbeddedFlow) else members[0]
        if censored is not None:
            check_trainable(density)
        seen = y if censored is None else y[censored == 0]
        reasons, more = _look_at(seen, name, names, density)
        notes = [*notes, *more, *check_support(y, _support_of(density), name, names)]
        training, validation = split_rows(
            y if context is None else np.hstack([y, context]), self.validation_fraction, int(seeds[0])
        )
        parts = [None if part is None else as_float(part, name) for part in (y, context, weights)]
        for member in members:
            if not goes_on:
                member.fit_scaling(*parts)
            member.to(device)
        x, given, row_weights = as_float(y, name), *parts[1:]
        loss, rows = (self._loss(density), x) if censored is None else (censored_nll, with_kinds(x, censored))
        # The noise in such a loss is averaged over several draws a held-out row.
        held_out = validation if loss in _WITHOUT_NOISE else np.tile(validation, _draws_a_row(len(validation)))
        history = train(
            members,
            ArraySource(rows, given, row_weights, train_rows=training, validation_rows=held_out),
            loss=loss,
            max_epochs=self._epochs(loss, len(training)),
            batch_size=self.batch_size,
            learning_rate=peak_rate(self.learning_rate, members[0]),
            schedule=self.schedule,
            patience=self.patience,
            weight_decay=self.weight_decay,
            callbacks=self.callbacks,
            checkpoint=self.checkpoint,
            progress=self.progress,
            random_state=torch.Generator(device).manual_seed(int(seeds[1])),
        )
        self._choose_steps(members, x, given)
        own = history.reliability
        reliability = Reliability.from_reasons([*own.reasons, *reasons], [*own.notes, *notes])
        self.history_ = dataclasses.replace(history, reliability=reliability)
        self.held_out_ = validation
        self.flow_ = members[0] if len(members) == 1 else FlowEnsemble(members)
        self.flow_.requires_grad_(False).eval()
        for message in reliability.reasons:
            warnings.warn(message, UserWarning, stacklevel=3)

    def _loss(self, density: Any) -> Loss:
        """Continuous flows are trained without integrating them, unless they ask for it."""
        if not (isinstance(density, flows.Flow) and isinstance(density.bijection, Continuous)):
            return nll
        if density.spec.get("objective") == "likelihood":
            return nll_through_solver
        return denoising_score_matching if isinstance(self.flow, str) and self.flow == "score" else flow_matching

    def _epochs(self, loss: Loss, n_rows: int) -> int | str:
        """Noise in the loss wants a longer fit than likelihood does."""
        if self.max_epochs != "auto" or loss in (nll, censored_nll):
            return self.max_epochs
        return _LENGTH_OF_MATCHING * auto_epochs(n_rows, self.batch_size)

    @staticmethod
    def _choose_steps(members: Sequence[Any], x: Tensor, context: Tensor | None) -> None:
        """Let continuous flows choose their integration steps on rows spread evenly over the data."""
        rows = torch.linspace(0, len(x) - 1, min(len(x), _ROWS_FOR_STEPS)).round().long()
        for member in members:
            anchor = next(member.parameters())
            inner = member.flow if isinstance(member, EmbeddedFlow) else member
            if isinstance(inner, flows.Flow):
                some = [None if part is None else part[rows].to(anchor.device, data_dtype(member)) for part in (x, context)]
                member.choose_steps(*some)

    def _continued(self, features: int, context: int) -> list[Any]:
        """Copies of the fitted members, to be trained further; their standardisation stays that of the first fit."""
        members = list(self.flow_.flows) if isinstance(self.flow_, FlowEnsemble) else [self.flow_]
        fitted = members[0].features, members[0].context_features, len(members)
        if fitted != (features, context, self.n_members):
            raise ValueError(
                f"Expected data and n_members like those of the first fit to go on from it: {fitted[0]} modelled columns, {fitted[1]} "
                f"of the condition, {fitted[2]} members; got {features}, {context} and {self.n_members}. "
                "Set warm_start=False to start afresh."
            )
        return [copy.deepcopy(member).requires_grad_(True).train() for member in members]

    def _build(self, features: int, context: int, names: Sequence[str] | None, embedding: Any, seed: int) -> Any:
        if embedding is None:
            return self._build_flow(features, context, names, seed)
        if isinstance(embedding, Mapping):
            network: nn.Module = build_embedding(embedding, torch.Generator().manual_seed(seed))
        else:
            network = copy.deepcopy(embedding)
        parameter = next(network.parameters(), torch.zeros(()))
        with torch.no_grad():
            width = network(torch.zeros(2, context, dtype=parameter.dtype)).shape
        if len(width) != 2 or width[0] != 2:
            raise ValueError(f"Expected an embedding from (n, {context}) to (n, k); for n = 2 it gave {tuple(width)}.")
        return EmbeddedFlow(self._build_flow(features, width[1], names, seed), network, context)

    def _build_flow(self, features: int, context: int, names: Sequence[str] | None, seed: int) -> Any:
        if isinstance(self.flow, str | flows.MixedDensity | flows.CountDensity):
            support = [column.entry for column in parse_support(self.support, features, names)]
            settings: dict[str, Any] = {"layers": int(self.layers), "hidden": tuple(self.hidden), "support": support}
            settings["generator"] = torch.Generator().manual_seed(seed)
            if isinstance(self.flow, flows.MixedDensity):
                return self.flow(features, context, **settings)
            if isinstance(self.flow, flows.CountDensity):
                return self.flow(features, context, bins=int(self.bins), **settings)
            choose("flow", self.flow, NAMED_FLOWS)
            if self.flow in ("cnf", "score"):
                path = "straight" if self.flow == "cnf" else "variance-preserving"
                return flows.cnf(features, context, path=path, **settings)
            settings["bins"] = int(self.bins)
            if self.flow.startswith("nsf"):
                return flows.nsf(features, context, autoregressive=self.flow == "nsf", **settings)
            return (flows.maf if self.flow == "maf" else flows.realnvp)(features, context, **settings)
        if isinstance(self.flow, nn.Module):
            if self.n_members > 1:
                raise ValueError(
                    "Expected flow to be a name or a function of (features, context) for n_members > 1, so that members start "
                    f"apart; got one {type(self.flow).__name__}."
                )
            built: Any = copy.deepcopy(self.flow)
        else:
            built = self.flow(features, context)
        if built.features != features or built.context_features != context:
            raise ValueError(
                f"Expected a flow of {features} features and {context} context features to match the data; "
                f"got one of {built.features} and {built.context_features}."
            )
        if self.support is not None and parse_support(self.support, features, names) != _support_of(built):
            raise ValueError(
                f"Expected no support= beside a flow that is built already, unless its own is the same; got {self.support!r} and "
                f"{[column.entry for column in _support_of(built)]}. Give the support to the function: nsf(..., support=...)."
            )
        return built

    def _check_settings(self) -> None:
        positive("n_members", self.n_members, integer=True)
        fraction = self.validation_fraction
        if isinstance(fraction, bool) or not (isinstance(fraction, Real) and 0 <= fraction < 1):
            raise ValueError(f"Expected validation_fraction in [0, 1); got {fraction!r}.")
        if isinstance(self.flow, str | flows.MixedDensity | flows.CountDensity):
            positive("layers", self.layers, integer=True)
            positive("bins", self.bins, integer=True)
            if isinstance(self.hidden, str) or np.ndim(self.hidden) != 1:
                raise ValueError(
                    f"Expected hidden to be a sequence of widths such as (64, 64); got {self.hidden!r}. For one layer pass (16,)."
                )
            for width in self.hidden:
                positive("hidden widths", width, integer=True)
        if self.checkpoint is not None and not isinstance(self.random_state, int | np.integer):
            raise ValueError(
                "Expected random_state to be an int where checkpoint= is given: a resumed fit must split and shuffle as before; "
                f"got {self.random_state!r}."
            )

    # --- Evaluation --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _log_prob(self, y: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """float64 ``(n,)``."""
        pieces = []
        for start in range(0, len(y), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            given = None if context is None else self._tensor(context[rows])
            with self._threads(len(y[rows])):
                pieces.append(self.flow_.log_prob(self._tensor(y[rows]), given).double().cpu().numpy())
        return np.concatenate(pieces)

    @torch.no_grad()
    def _tails(self, y: np.ndarray, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mass below and above ``y (n, 1)``, float64, each ``(n,)``."""
        pieces = []
        for start in range(0, len(y), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            with self._threads(len(y[rows])):
                logs = log_tails(self.flow_, self._tensor(y[rows]), self._tensor(context[rows]))
            pieces.append([side.double().exp().cpu().numpy() for side in logs])
        below, above = zip(*pieces, strict=True)
        return np.concatenate(below), np.concatenate(above)

    @torch.no_grad()
    def _sample(self, n: int, context: np.ndarray | None, random_state: RandomState) -> np.ndarray:
        """float64 ``(n, d)``; a context has n rows."""
        anchor = next(self.flow_.parameters())
        generator = torch.Generator(anchor.device).manual_seed(own_seed(random_state))
        pieces = []
        for start in range(0, n, _ROWS_AT_ONCE):
            size = min(_ROWS_AT_ONCE, n - start)
            given = None if context is None else self._tensor(context[start : start + size])
            with self._threads(size):
                pieces.append(draw(self.flow_, size, given, generator).double().cpu().numpy())
        return np.concatenate(pieces) if pieces else np.empty((0, self.flow_.features))

    def _threads(self, rows: int) -> AbstractContextManager[None]:
        return threads_for(rows * sum(parameter.numel() for parameter in self.flow_.parameters()), CALL)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return as_float(array, "X").to(next(self.flow_.parameters()).device, data_dtype(self.flow_))


def _look_at(y: np.ndarray, name: str, names: Sequence[str] | None, density: Any) -> tuple[list[str], list[str]]:
    """Reasons and notes on the columns modelled as continuous."""
    dtype = str(data_dtype(density)).removeprefix("torch.")
    if not isinstance(density, flows.PartlyDiscrete):
        return check_modelled(y, name, names, dtype)
    if not density.rest:
        return [], []
    reasons, notes = check_modelled(y[:, density.rest], name, None if names is None else [names[j] for j in density.rest], dtype)
    return reasons, notes


def peak_rate(learning_rate: float | str, density: Any) -> float:
    """The number that "auto" stands for; anything else as it is."""
    if learning_rate != "auto":
        return learning_rate  # type: ignore[return-value]
    if isinstance(density, EmbeddedFlow):
        return _RATE_WITH_EMBEDDING
    return _RATE_OF_MATCHING if isinstance(density, flows.Flow) and isinstance(density.bijection, Continuous) else _RATE


def _support_of(flow: Any) -> tuple[ColumnSupport, ...]:
    """Where the columns of a flow live; a flow that is not ours is taken to live everywhere."""
    if isinstance(flow, flows.PartlyDiscrete):
        return flow.columns
    return flow.support.support if isinstance(flow, flows.Flow) else parse_support(None, flow.features)


def _draws_a_row(n_validation: int) -> int:
    return max(1, min(16, _VALIDATION_DRAWS // max(n_validation, 1)))


def split_rows(rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation row numbers; rows that are copies of each other stay on one side.

    With the same seed, rows appended to the data leave nearly all others on their side, so that a fit that goes on with more data is
    judged by rows it was not trained on.
    """
    n = len(rows)
    n_validation = min(max(round(fraction * n), 1), n - 1) if fraction > 0 else 0
    keys = row_keys(rows, seed)
    _, first, group, size = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    # More copies than there are to be validation rows all train, and the others are shared out: drawn first, the copies would leave next
    # to nothing to learn from.
    many = size > n_validation
    if n_validation and not many.all():
        n_validation = min(max(round(fraction * int(size[~many].sum())), 1), n - 1)
    # Each group draws its lot at its first row: neither the units of the data nor rows appended later change the lots of others.
    order = (np.random.default_rng(seed).random(n)[first] + many)[group]
    ranked = np.argsort(order, kind="stable")
    if 0 < n_validation < n:
        # Move the cut to the next border between groups.
        sorted_groups = order[ranked]
        while n_validation < n - 1 and sorted_groups[n_validation] == sorted_groups[n_validation - 1]:
            n_validation += 1
    return np.sort(ranked[n_validation:]), np.sort(ranked[:n_validation])
