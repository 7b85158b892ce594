"""``ConditionalFlow``: pairs in, the density of one given the other out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import nn

from sbi_flows._random import RandomState
from sbi_flows._validation import check_finite, check_weights, positive
from sbi_flows.estimators.base import FlowEstimator
from sbi_flows.estimators.censoring import beyond, check_censored
from sbi_flows.estimators.columns import check_condition, check_names, names_of
from sbi_flows.estimators.files import complete, load_estimator, save_estimator
from sbi_flows.results import FitHistory, Reliability

_FLOATS = [np.float64, np.float32]


class ConditionalFlow(FlowEstimator):
    """The conditional density p(y | X), by a normalizing flow: X is the condition, y is what is modelled.

    Parameters
    ----------
    embedding : "auto", None, nn.Module or dict
        Network ``(n, c) -> (n, k)`` from the condition, standardised per column, to what the flow sees; trained jointly with it.
        It must act row by row. "auto" and None pass the columns of X as they are. A dict is the spec of one of :mod:`sbi_flows.embeddings`,
        such as ``{"embedding": "set", "shape": (10, 2)}``: every member of an ensemble then starts with weights of its own.
    support : optional
        Where the columns of y live, in the grammar of :class:`FlowDensity`.
    flow, layers, hidden, bins, n_members, max_epochs, batch_size, learning_rate, schedule, validation_fraction, patience, weight_decay
        As in :class:`FlowDensity`.
    device, dtype
        As in :class:`FlowDensity`.
    random_state, progress, callbacks, checkpoint, warm_start
        As in :class:`FlowDensity`.

    Attributes
    ----------
    flow_ : nn.Module
        The fitted density: ``log_prob(y, X)``, ``sample(n, X)`` on tensors.
    history_ : FitHistory
    held_out_ : ndarray of int
        Rows (of those with weight) that judged the fit and were not trained on.
    n_features_in_, n_targets_ : int
        Columns of X and of y.
    feature_names_in_, target_names_ : ndarray of str
        When fitted on DataFrames.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import ConditionalFlow
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 2))
    >>> y = X[:, :1] + 0.1 * rng.normal(size=(500, 1))
    >>> model = ConditionalFlow(layers=1, max_epochs=2, random_state=0).fit(X, y)
    >>> model.log_prob(X[:3], y[:3]).shape, model.sample(X[:3], 10, random_state=0).shape
    ((3,), (3, 10, 1))

    References
    ----------
    Papamakarios et al. 2021, "Normalizing flows for probabilistic modeling and inference", JMLR 22(57).
    """

    target_called = "y"  # in messages; others who fit one to their own arrays call it otherwise

    def __init__(
        self,
        *,
        flow: str | nn.Module | Callable[[int, int], nn.Module] = "nsf",
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        embedding: str | nn.Module | Mapping[str, Any] | None = "auto",
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
        super().__init__(
            flow=flow,
            layers=layers,
            hidden=hidden,
            bins=bins,
            support=support,
            n_members=n_members,
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            validation_fraction=validation_fraction,
            patience=patience,
            weight_decay=weight_decay,
            device=device,
            dtype=dtype,
            random_state=random_state,
            progress=progress,
            callbacks=callbacks,
            checkpoint=checkpoint,
            warm_start=warm_start,
        )
        self.embedding = embedding

    def fit(self, X, y, sample_weight=None, censored=None):
        """Fit the density of y given X.

        Parameters
        ----------
        X : array_like or DataFrame (n, c)
            The condition.
        y : array_like, Series or DataFrame (n, d) or (n,)
            What is modelled.
        sample_weight : array_like (n,), optional
            Non-negative; rows of weight zero are as good as absent.
        censored : array_like (n,), optional
            For y of one column: 0 or False where y was seen, 1 or True where the true value is only known to lie above it (a survival time
            cut short, a lower limit), -1 where it lies below (an upper limit). Limits must tell nothing beyond themselves of rows with the
            same X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinite values, constant or linearly dependent columns of y, values of y outside ``support``, fewer than
            two rows, bad weights, or limits in y of several columns or for a continuous flow.

        Warns
        -----
        UserWarning
            When the fit cannot be relied on, or a column of y is discrete or too coarse for float32, or rows are too few.
        """
        _check_width(X)
        names = names_of(y)
        X, y = validate_data(
            self, X, y, dtype=_FLOATS, ensure_all_finite=False, ensure_min_samples=2, multi_output=True, y_numeric=True
        )
        X, y = np.asarray(X, dtype=np.float64), self._modelled(y)
        check_finite(X, "X", self._names())
        check_finite(y, self.target_called, names)
        weights = None if sample_weight is None else check_weights(sample_weight, len(X))
        embedding = self.embedding
        if embedding is not None and not isinstance(embedding, nn.Module | Mapping) and embedding != "auto":
            raise ValueError(f"Expected embedding to be 'auto', None or a torch module, or the spec of an embedding; got {embedding!r}.")
        notes = check_condition(X, "X", self._names())
        self.n_targets_ = y.shape[1]
        self.target_names_ = None if names is None else np.array(names, dtype=object)
        kinds = None if censored is None else check_censored(censored, y, self.target_called)
        self._fit(y, X, weights, self.target_called, names, notes, None if isinstance(embedding, str) else embedding, kinds)
        if kinds is not None:
            self._tell_of_limits(X, y, kinds)
        return self

    def log_prob(self, X, y) -> np.ndarray:
        """Natural log of p(y | X) row by row, ``(n,)``, per unit volume of y; -inf where y is outside the support."""
        X = self._condition(X)
        if np.ndim(y) == 0:
            raise ValueError(f"Expected y of shape ({len(X)}, {self.n_targets_}), one row for each of X; got the single value {y!r}.")
        check_names(y, self._target_names(), "y")
        y = self._modelled(check_array(y, dtype=_FLOATS, ensure_2d=False, ensure_all_finite=False, input_name="y"))
        if y.shape != (len(X), self.n_targets_):
            raise ValueError(f"Expected y of shape ({len(X)}, {self.n_targets_}), one row for each of X; got {y.shape}.")
        check_finite(y, "y", self._target_names())
        return self._log_prob(y, X)

    def cdf(self, X, y) -> np.ndarray:
        """The mass p(Y <= y | X) below values of one column, exactly; small ones keep their digits.

        Parameters
        ----------
        X : array_like (n, c)
        y : array_like (n,) or (n, k)
            One or several values for each row of X. The result has the same shape.

        Raises
        ------
        ValueError
            If several columns are modelled, or one that is an angle or discrete.
        """
        return self._mass(X, y)[0]

    def survival(self, X, y) -> np.ndarray:
        """The mass p(Y > y | X) above values of one column; arguments, shapes and errors as of :meth:`cdf`."""
        return self._mass(X, y)[1]

    def score(self, X, y, censored=None) -> float:
        """Mean of :meth:`log_prob`: higher is better, so that model selection works. Rows that ``censored`` marks as limits, as in
        :meth:`fit`, count with the log of the mass beyond them."""
        log_prob = self.log_prob(X, y)
        kinds = None if censored is None else check_censored(censored, np.reshape(y, (len(log_prob), -1)), "y")
        if kinds is not None:
            below, above = self._mass(X, np.reshape(y, -1))
            with np.errstate(divide="ignore"):  # a limit without mass beyond it is as bad as a value without density
                log_prob = np.where(kinds > 0, np.log(above), np.where(kinds < 0, np.log(below), log_prob))
        return float(np.mean(log_prob))

    def sample(self, X, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Draws of y for every row of X, ``(len(X), n_samples, d)``; the last axis is in the order of ``target_names_``."""
        X = self._condition(X)
        positive("n_samples", n_samples, integer=True)
        drawn = self._sample(len(X) * int(n_samples), np.repeat(X, n_samples, axis=0), random_state)
        return drawn.reshape(len(X), n_samples, self.n_targets_)

    def save(self, path: str | Path) -> None:
        """Write the fitted density to one file (safetensors with a JSON header; no pickle).

        An embedding's weights are in the file; its code is not, unless it is one of :mod:`sbi_flows.embeddings`. Parameters that are code
        (a flow function, callbacks, an embedding) are left out.
        """
        save_estimator(path, "ConditionalFlow", self.flow_, self.history_, self.get_params(deep=False), self.facts())

    @classmethod
    def load(cls, path: str | Path, embedding: nn.Module | None = None) -> ConditionalFlow:
        """Read a file of :meth:`save`, onto the CPU; its ``log_prob`` is the same to the bit. Loading runs no code.

        Parameters
        ----------
        path : str or Path
        embedding : nn.Module, optional
            The network it was fitted with, if it was one of your own; its weights are replaced by those in the file.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, truncated, altered, newer than this package, or its embedding is not given.
        """
        if embedding is not None and not isinstance(embedding, nn.Module):
            raise ValueError(f"Expected embedding to be a torch module or None; got {embedding!r}.")
        with complete(path):
            flow, history, parameters, facts = load_estimator(path, "ConditionalFlow", embedding)
            return cls.from_facts(flow, history, parameters, facts, embedding)

    def facts(self) -> dict[str, Any]:
        """What a file must hold besides flow, history and parameters: columns and their names."""
        check_is_fitted(self)
        return {
            "names": self._names(),
            "n_features_in": self.n_features_in_,
            "target_names": self._target_names(),
            "n_targets": self.n_targets_,
        }

    @classmethod
    def from_facts(
        cls, flow: Any, history: FitHistory, parameters: dict[str, Any], facts: dict[str, Any], embedding: nn.Module | None = None
    ) -> ConditionalFlow:
        """The fitted estimator again from the parts of a file."""
        model = cls(**parameters if embedding is None else {**parameters, "embedding": embedding})
        model.flow_, model.history_ = flow, history
        model.n_features_in_, model.n_targets_ = facts["n_features_in"], facts["n_targets"]
        model.target_names_ = None if facts["target_names"] is None else np.array(facts["target_names"], dtype=object)
        if facts["names"] is not None:
            model.feature_names_in_ = np.array(facts["names"], dtype=object)
        return model

    def _mass(self, X, y) -> tuple[np.ndarray, np.ndarray]:
        """Below and above, in the shape of y."""
        X = self._condition(X)
        y = np.asarray(y, dtype=np.float64)
        if self.n_targets_ != 1:
            raise ValueError(f"Expected a model of one column, as only there mass lies below or above y; this one has {self.n_targets_}.")
        if y.ndim not in (1, 2) or len(y) != len(X):
            raise ValueError(f"Expected y of shape ({len(X)},) or ({len(X)}, k), one row for each of X; got {y.shape}.")
        if np.isnan(y).any():
            raise ValueError(f"Expected y without NaN; got {int(np.isnan(y).sum())}. Drop those rows.")
        below, above = self._tails(y.reshape(-1, 1), np.repeat(X, y[0].size, axis=0))
        return below.reshape(y.shape), above.reshape(y.shape)

    def _tell_of_limits(self, X: np.ndarray, y: np.ndarray, kinds: np.ndarray) -> None:
        seen = y[kinds == 0]
        below, above = (self._tails(np.full_like(y, edge), X)[side] for side, edge in enumerate((seen.min(), seen.max())))
        own = self.history_.reliability
        notes = [*own.notes, *beyond(kinds, y, below, above, self.target_called)]
        self.history_ = dataclasses.replace(self.history_, reliability=Reliability.from_reasons(own.reasons, notes))

    def _condition(self, X) -> np.ndarray:
        check_is_fitted(self)
        _check_width(X, self.n_features_in_)
        X = validate_data(self, X, dtype=_FLOATS, ensure_all_finite=False, reset=False)
        X = np.asarray(X, dtype=np.float64)
        check_finite(X, "X", self._names())
        return X

    def _modelled(self, y) -> np.ndarray:
        y = np.asarray(y, dtype=np.float64)
        return y[:, None] if y.ndim == 1 else y

    def _names(self) -> list[str] | None:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]

    def _target_names(self) -> list[str] | None:
        return None if self.target_names_ is None else [str(name) for name in self.target_names_]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags


def _check_width(X: Any, width: int = 1) -> None:
    """One condition is a column too, and one row of several is a row."""
    shape = np.shape(X) if isinstance(X, list | tuple) else tuple(getattr(X, "shape", ()))
    if len(shape) != 1:
        return
    column = "X.to_frame()" if hasattr(X, "to_frame") else "X[:, None]"
    way = f"For one condition pass {column}." if width == 1 else "For one row pass X[None]."
    raise ValueError(f"Expected X of shape (n, c), a row of conditions for each y; got {shape}. {way}")
