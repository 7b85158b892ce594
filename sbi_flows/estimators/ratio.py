"""``RatioClassifier``: pairs in, the likelihood-to-evidence ratio out."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sbi_flows._random import RandomState, seed_from
from sbi_flows._threads import CALL, threads_for
from sbi_flows._validation import as_float, as_rows, check_finite, choose, positive, resolve_device, torch_dtype
from sbi_flows.bijections.support import parse_support
from sbi_flows.embeddings import build_embedding
from sbi_flows.estimators.base import split_rows
from sbi_flows.estimators.columns import check_condition, check_names, check_support, names_of
from sbi_flows.estimators.files import complete
from sbi_flows.estimators.ratio_files import load_ratio, save_ratio
from sbi_flows.estimators.ratio_net import RatioEnsemble, RatioNet
from sbi_flows.losses import Loss
from sbi_flows.losses.ratio import LOSSES, contrastive
from sbi_flows.results import FitHistory, Reliability
from sbi_flows.training import ArraySource, train

_ROWS_AT_ONCE = 65536


class RatioClassifier(BaseEstimator):
    """``ln p(x | theta) / p(x)``, learned by telling pairs (theta, x) that belong together from pairs that do not.

    Parameters
    ----------
    loss : {"contrastive", "balanced"}
        :func:`sbi_flows.losses.ratio.contrastive` is the more accurate; :func:`~sbi_flows.losses.ratio.balanced` errs towards ratios that
        are too flat, that is posteriors that are too wide.
    n_contrasts : int
        Other parameters that each x is compared with, for "contrastive".
    hidden : sequence of int
        Widths of the hidden layers, residual where equal.
    embedding : "auto", None, nn.Module or dict
        Network ``(n, c) -> (n, k)`` from x, standardised per column; trained jointly. "auto" and None pass the columns as they are, a dict
        is the spec of one of :mod:`sbi_flows.embeddings`.
    support : optional
        Where the columns of theta live, in the grammar of :class:`FlowDensity`; outside the log ratio is -inf.
    n_members : int
        Networks that are trained together; their ratios are averaged.
    max_epochs, batch_size, learning_rate, schedule, validation_fraction, patience, device, dtype
        As in :class:`FlowDensity`.
    random_state, progress, callbacks, checkpoint
        As in :class:`FlowDensity`.
    warm_start : bool
        Whether ``fit`` goes on from the weights of the fit before.

    Attributes
    ----------
    net_ : nn.Module
        ``log_ratio(theta, x)`` on tensors.
    history_ : FitHistory
    held_out_ : ndarray of int
        Rows that judged the fit and were not trained on.
    n_features_in_, n_conditions_ : int
        Columns of theta and of x.
    feature_names_in_, condition_names_ : ndarray of str
        Of theta and of x, when fitted on DataFrames; columns in another order are refused then.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows.estimators import RatioClassifier
    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(500, 1))
    >>> x = theta + 0.5 * rng.normal(size=(500, 1))
    >>> model = RatioClassifier(max_epochs=2, random_state=0).fit(theta, x)
    >>> model.log_ratio(theta[:3], x[:3]).shape
    (3,)

    References
    ----------
    Hermans, Begy & Louppe 2020, "Likelihood-free MCMC with amortized approximate ratio estimators", arXiv:1903.04057; Miller, Weniger
    & Forre 2022, arXiv:2210.06170; Delaunoy et al. 2022, arXiv:2208.13624.
    """

    net_: Any
    history_: FitHistory

    def __init__(
        self,
        *,
        loss: str = "contrastive",
        n_contrasts: int = 10,
        hidden: Sequence[int] = (64, 64),
        embedding: str | nn.Module | Mapping[str, Any] | None = "auto",
        support: Any = None,
        n_members: int = 1,
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float = 1e-2,
        schedule: str = "one-cycle",
        validation_fraction: float = 0.1,
        patience: int = 20,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        random_state: RandomState = None,
        progress: bool = False,
        callbacks: Sequence[Callable] = (),
        checkpoint: str | Path | None = None,
        warm_start: bool = False,
    ):
        self.loss = loss
        self.n_contrasts = n_contrasts
        self.hidden = hidden
        self.embedding = embedding
        self.support = support
        self.n_members = n_members
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.progress = progress
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.warm_start = warm_start

    def fit(self, theta, x) -> RatioClassifier:
        """Learn from pairs that belong together.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
            Parameters. The ratio's evidence p(x) is that of whatever distribution they come from.
        x : array_like or DataFrame (n, c)
            What each of them led to.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinite values, lengths that differ, values of theta outside ``support``, or settings out of range.
        """
        loss = self._loss()
        goes_on = bool(self.warm_start) and hasattr(self, "net_")
        if goes_on:
            self._check_names(theta, x)
        tables, names = (theta, x), names_of(theta)
        theta, x = as_rows(theta, "theta").double(), as_rows(x, "x").double()
        if len(theta) != len(x) or len(theta) < 2:
            raise ValueError(f"Expected at least two rows, as many of theta as of x; got {len(theta)} and {len(x)}.")
        check_finite(theta.numpy(), "theta", names)
        check_finite(x.numpy(), "x")
        members, seeds = self._members(theta, x, names)
        notes = check_condition(x.numpy(), "x", None) + check_support(theta.numpy(), members[0].support.support, "theta", names)
        training, validation = split_rows(np.hstack([theta.numpy(), x.numpy()]), self.validation_fraction, int(seeds[0]))
        device = resolve_device(self.device)
        history = train(
            [member.to(device) for member in members],
            ArraySource(theta, x, train_rows=training, validation_rows=validation),
            loss=loss,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            patience=self.patience,
            callbacks=self.callbacks,
            checkpoint=self.checkpoint,
            progress=self.progress,
            random_state=torch.Generator(device).manual_seed(int(seeds[1])),
        )
        own = history.reliability
        self.history_ = dataclasses.replace(history, reliability=Reliability.from_reasons(own.reasons, [*own.notes, *notes]))
        self.held_out_ = validation
        self.net_ = (members[0] if len(members) == 1 else RatioEnsemble(members)).requires_grad_(False).eval()
        self.n_features_in_, self.n_conditions_ = theta.shape[1], x.shape[1]
        if not goes_on:
            self._keep_names(*map(names_of, tables))
        for message in own.reasons:
            warnings.warn(message, UserWarning, stacklevel=2)
        return self

    @torch.no_grad()
    def log_ratio(self, theta, x) -> np.ndarray:
        """``ln p(x | theta) / p(x)`` row by row, ``(n,)``; -inf outside the support of theta.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
        x : array_like or DataFrame (n, c) or (1, c)
            One row serves all of theta.

        Raises
        ------
        ValueError
            For other shapes, NaN or infinite values, or DataFrames whose columns are not those of the fit in their order.
        """
        check_is_fitted(self, "net_")
        self._check_names(theta, x)
        theta = as_rows(theta, "theta", self.n_features_in_).double()
        x = as_rows(x, "x", self.n_conditions_).double()
        if len(x) not in (1, len(theta)):
            raise ValueError(f"Expected x with one row, or one for each of the {len(theta)} rows of theta; got {len(x)}.")
        check_finite(theta.numpy(), "theta")
        check_finite(x.numpy(), "x")
        return self.log_ratio_tensor(theta, x.expand(len(theta), -1)).cpu().numpy()

    def log_ratio_tensor(self, theta: Tensor, x: Tensor) -> Tensor:
        """The same for float64 tensors of equal length, differentiable."""
        parameters = list(self.net_.parameters())
        size = sum(parameter.numel() for parameter in parameters)
        pieces = []
        for rows in torch.arange(len(theta)).split(_ROWS_AT_ONCE):
            one = slice(int(rows[0]), int(rows[-1]) + 1)
            with threads_for(size * len(rows), CALL):
                pieces.append(self.net_.log_ratio(theta[one].to(parameters[0].device), x[one].to(parameters[0].device)))
        return torch.cat(pieces).to(theta) if pieces else theta.new_zeros(0)

    def save(self, path: str | Path) -> None:
        """Write the fitted networks to one file (safetensors with a JSON header; no pickle). An embedding's code is not in it."""
        check_is_fitted(self, "net_")
        save_ratio(path, "RatioClassifier", self.net_, self.history_, self.get_params(deep=False), self.facts())

    @classmethod
    def load(cls, path: str | Path, embedding: nn.Module | None = None) -> RatioClassifier:
        """Read a file of :meth:`save`, onto the CPU. Loading runs no code.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, truncated, altered, newer than this package, or its embedding is not given.
        """
        with complete(path):
            return cls.from_facts(*load_ratio(path, "RatioClassifier", embedding), embedding)

    def facts(self) -> dict[str, Any]:
        """What a file must hold besides networks, history and parameters."""
        return {
            "n_features_in": self.n_features_in_,
            "n_conditions": self.n_conditions_,
            "names": _listed(self, "feature_names_in_"),
            "condition_names": _listed(self, "condition_names_"),
        }

    @classmethod
    def from_facts(
        cls, net: Any, history: FitHistory, parameters: dict[str, Any], facts: dict[str, Any], embedding: nn.Module | None = None
    ) -> RatioClassifier:
        """The fitted classifier again from the parts of a file."""
        model = cls(**parameters if embedding is None else {**parameters, "embedding": embedding})
        model.net_, model.history_ = net, history
        model.n_features_in_, model.n_conditions_ = facts["n_features_in"], facts["n_conditions"]
        model._keep_names(facts.get("names"), facts.get("condition_names"))  # absent from files of before they were kept
        return model

    def _check_names(self, theta: Any, x: Any) -> None:
        check_names(theta, _listed(self, "feature_names_in_"), "theta")
        check_names(x, _listed(self, "condition_names_"), "x")

    def _keep_names(self, theta: Sequence[str] | None, x: Sequence[str] | None) -> None:
        for attribute, names in (("feature_names_in_", theta), ("condition_names_", x)):
            if names is not None:
                setattr(self, attribute, np.array(names, dtype=object))
            elif hasattr(self, attribute):
                delattr(self, attribute)

    def _loss(self) -> Loss:
        choose("loss", self.loss, list(LOSSES))
        positive("n_contrasts", self.n_contrasts, integer=True)
        positive("n_members", self.n_members, integer=True)
        return contrastive(self.n_contrasts) if self.loss == "contrastive" else LOSSES[self.loss]()

    def _members(self, theta: Tensor, x: Tensor, names: Sequence[str] | None) -> tuple[list[Any], np.ndarray]:
        seeds = np.random.SeedSequence(seed_from(self.random_state)).generate_state(self.n_members + 2)
        if self.warm_start and hasattr(self, "net_"):
            return self._continued(theta.shape[1], x.shape[1]), seeds
        embedding = self.embedding
        if embedding is not None and not isinstance(embedding, nn.Module | Mapping) and embedding != "auto":
            raise ValueError(f"Expected embedding to be 'auto', None or a torch module, or the spec of an embedding; got {embedding!r}.")
        support = parse_support(self.support, theta.shape[1], names)
        members = []
        for seed in seeds[2:]:
            generator = torch.Generator().manual_seed(int(seed))
            own = copy.deepcopy(embedding) if isinstance(embedding, nn.Module) else None
            if isinstance(embedding, Mapping):
                own = build_embedding(embedding, generator)
            net = RatioNet(support, x.shape[1], tuple(self.hidden), own, generator)
            net.to(torch_dtype(self.dtype)).fit_scaling(as_float(theta, "theta"), x)
            members.append(net)
        return members, seeds

    def _continued(self, d: int, c: int) -> list[Any]:
        members = list(self.net_.nets) if isinstance(self.net_, RatioEnsemble) else [self.net_]
        if (d, c, self.n_members) != (self.n_features_in_, self.n_conditions_, len(members)):
            raise ValueError(
                f"Expected data and n_members like those of the first fit to go on from it: {self.n_features_in_} columns of theta, "
                f"{self.n_conditions_} of x, {len(members)} members; got {d}, {c} and {self.n_members}. "
                "Set warm_start=False to start afresh."
            )
        return [copy.deepcopy(member).requires_grad_(True).train() for member in members]


def _listed(model: RatioClassifier, attribute: str) -> list[str] | None:
    names = getattr(model, attribute, None)
    return None if names is None else [str(name) for name in names]
