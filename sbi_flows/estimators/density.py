"""``FlowDensity``: samples in, a density out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted, validate_data

from sbi_flows._random import RandomState
from sbi_flows._validation import check_finite, check_weights, positive
from sbi_flows.estimators.base import FlowEstimator
from sbi_flows.estimators.files import complete, load_estimator, save_estimator

_FLOATS = [np.float64, np.float32]


class FlowDensity(FlowEstimator):
    """The density p(X) of rows, by a normalizing flow.

    Parameters
    ----------
    flow : {"nsf", "nsf-coupling", "maf", "realnvp", "cnf", "score"}, Flow or callable
        A name, an untrained flow (copied), or a function ``flow(features, context)`` that builds one. "nsf" is the best fit;
        "nsf-coupling" samples faster in many dimensions. "cnf" is a continuous flow trained by flow matching, "score" one trained by
        denoising score matching; ``history_`` then holds the values of that loss, which are no nats.
    layers : int
        Transformations of a named flow.
    hidden : tuple of int
        Widths of the hidden layers inside each transformation of a named flow; two of them for a continuous one.
    bins : int
        Bins of each spline of a named flow. Fewer are smoother: better for conditional densities of few rows.
    support : optional
        Where columns live: one entry for all, one a column, or a dict by column name. An entry is "real", "heavy", "circular"
        (period 2 pi on [-pi, pi)), ("circular", low, high), (low, high), (low, inf) or (-inf, high). No draw leaves the support.
        A flow that is given as a module or a function has its own.
    n_members : int
        Flows trained together on different shuffles from different starts; the density is the mean of theirs. Three cost less
        than three fits and beat one where data are few.
    max_epochs : int or "auto"
        Length of the training schedule; "auto" goes by the number of rows, and is three times as long for a continuous flow.
    batch_size : int or "auto"
    learning_rate : float or "auto"
        Peak of the schedule; "auto" is 1e-2, and 3e-3 with an embedding network or for a continuous flow.
    schedule : {"one-cycle", "cosine", "constant"}
    validation_fraction : float
        Share of the rows, in [0, 1), on which the best weights are chosen. Rows that are copies of each other stay together.
    patience : int
        Epochs without improvement on those rows that end the fit.
    weight_decay : float
        Decoupled, as in AdamW. It steadies a fit to few rows and holds up a fit to a sharp density, which 0 lets go on.
    device : str or torch.device
        "auto" takes a GPU where there is one.
    dtype : {"float32", "float64"}
    random_state : int, generator or None
        An int gives the same fit every time on one machine.
    progress : bool
        Show a progress bar.
    callbacks : sequence of callable
        Called after every epoch with an ``EpochReport``; returning True ends the fit.
    checkpoint : path, optional
        File in which the running fit is kept. A killed fit started again the same way resumes from it, to the same bits.
    warm_start : bool
        Whether ``fit`` on a fitted estimator goes on from its weights. The standardisation then stays that of the first fit, and with the
        same ``random_state`` rows that were held out before still are.

    Attributes
    ----------
    flow_ : nn.Module
        The fitted density: ``log_prob``, ``sample``, ``sample_and_log_prob`` on tensors.
    history_ : FitHistory
        What happened, with the verdict ``history_.reliability``.
    held_out_ : ndarray of int
        Rows (of those with weight) that judged the fit and were not trained on.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        When fitted on a DataFrame; draws then come as a DataFrame too.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import FlowDensity
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> density = FlowDensity(layers=1, max_epochs=2, random_state=0).fit(X)
    >>> density.log_prob(X[:3]).shape, density.sample(4, random_state=0).shape
    ((3,), (4, 2))

    References
    ----------
    Durkan, Bekasov, Murray & Papamakarios 2019, "Neural spline flows", arXiv:1906.04032.
    """

    def fit(self, X, y=None, sample_weight=None):
        """Fit the density.

        Parameters
        ----------
        X : array_like or DataFrame (n, d)
        y : ignored
        sample_weight : array_like (n,), optional
            Non-negative; rows of weight zero are as good as absent.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinite values, constant or linearly dependent columns, values outside ``support``, fewer than two rows,
            or bad weights.

        Warns
        -----
        UserWarning
            When the fit cannot be relied on, or a column is discrete, too coarse for float32, or rows are too few.
        """
        X = validate_data(self, X, dtype=_FLOATS, ensure_all_finite=False, ensure_min_samples=2)
        X = np.asarray(X, dtype=np.float64)
        names = self._names()
        check_finite(X, "X", names)
        weights = None if sample_weight is None else check_weights(sample_weight, len(X))
        self._fit(X, None, weights, "X", names, [])
        return self

    def log_prob(self, X) -> np.ndarray:
        """Natural log of the density at the rows of ``X (n, d)``, ``(n,)``, per unit volume of X; -inf outside the support."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, ensure_all_finite=False, reset=False)
        X = np.asarray(X, dtype=np.float64)
        check_finite(X, "X", self._names())
        return self._log_prob(X, None)

    def score_samples(self, X) -> np.ndarray:
        """The same as :meth:`log_prob`, by scikit-learn's name for it."""
        return self.log_prob(X)

    def score(self, X, y=None) -> float:
        """Mean log density of the rows: higher is better, so that model selection works."""
        return float(np.mean(self.log_prob(X)))

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray | pd.DataFrame:
        """``(n_samples, d)`` draws; a DataFrame with the fitted columns when fitted on one."""
        check_is_fitted(self)
        positive("n_samples", n_samples, integer=True)
        drawn = self._sample(int(n_samples), None, random_state)
        names = self._names()
        return drawn if names is None else pd.DataFrame(drawn, columns=names)

    def save(self, path: str | Path) -> None:
        """Write the fitted density to one file (safetensors with a JSON header; no pickle).

        Parameters that are code (a flow function, callbacks) are left out and are at their defaults after loading.
        """
        check_is_fitted(self)
        facts = {"names": self._names(), "n_features_in": self.n_features_in_}
        save_estimator(path, "FlowDensity", self.flow_, self.history_, self.get_params(deep=False), facts)

    @classmethod
    def load(cls, path: str | Path) -> FlowDensity:
        """Read a file of :meth:`save`, onto the CPU; its ``log_prob`` is the same to the bit. Loading runs no code.

        Raises
        ------
        FileNotFoundError, ValueError
            If the file is missing, truncated, altered, or newer than this package.
        """
        with complete(path):
            flow, history, parameters, facts = load_estimator(path, "FlowDensity")
            density = cls(**parameters)
            density.flow_, density.history_, density.n_features_in_ = flow, history, facts["n_features_in"]
            if facts["names"] is not None:
                density.feature_names_in_ = np.array(facts["names"], dtype=object)
        return density

    def _names(self) -> list[str] | None:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else [str(name) for name in names]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type = "density_estimator"
        tags.target_tags.required = False
        return tags
