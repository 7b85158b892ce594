"""The exact Gaussian likelihood of pulsar timing: one background and every pulsar's own red noise, and the simulator of the same model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import randn
from sbi_flows._threads import each_on_a_thread
from sbi_flows._validation import positive
from sbi_flows.distributions import BoxUniform, Distribution, Product
from sbi_flows.physics.pta.embedded import DEFAULT_BINS, embedded_degrees_of_freedom, source_tables
from sbi_flows.physics.pta.models import Model, get_model
from sbi_flows.physics.pta.spectra import Background, log10_rho, power_law
from sbi_flows.physics.pta.timing_algebra import by_blocks, gram_and_log_det
from sbi_flows.physics.pta.timing_arrays import TEN, PulsarArray, ng15_pulsars
from sbi_flows.physics.pta.timing_correlations import apart, correlation_matrix
from sbi_flows.physics.pta.timing_correlations import correlation as correlation_of
from sbi_flows.targets import Target
from sbi_flows.targets.evaluation import where_inside

OWN = (("log10_A", -20.0, -11.0), ("gamma", 0.0, 7.0))  # of each pulsar's own red noise
_LOG10_UNIT = -7.0  # s: in units of 1e-7 s the numbers are of order one
_NULL = 1e-14  # of TNT's largest eigenvalue: below, a direction holds rounding and no data
LOUDEST = 9.0  # log10 of rho in s: thirty years of delay
_FEW = 8  # draws at once, where the matrix of all pulsars is made whole
_LOUD_SKY = 1e9  # of squared white data: rounding of ln L is 1e-10 of it at worst
_BLOCK_BYTES = 2**24  # of one block's matrices: rows beyond what stays near the cache gain nothing


class TimingTarget(Target):
    """ln L and prior of a source and every pulsar's own noise; :func:`timing_likelihood` makes it.

    Parameters
    ----------
    array : PulsarArray
    model : Model
    correlation : {"hd", "uncorrelated", "monopole", "dipole"}
    n_bins : int
        Lowest frequencies in which the background is heard.

    Attributes
    ----------
    array, model, correlation, n_bins
        As given.
    prior : Distribution
        The model's times that of the pulsars.
    factor, whitener : Tensor (p, 2 m, r), (p, r, 2 m)
        F with TNT = F F' in units of 1e-7 s, and the map from TNr to w = F' a + noise of unit variance.
    """

    prior: Distribution

    def __init__(self, array: PulsarArray, model: Model, correlation: str, n_bins: int):
        own = [(f"{name}_{parameter}", low, high) for name in array.names for parameter, low, high in OWN]
        low, high = [entry[1] for entry in own], [entry[2] for entry in own]
        prior = Product([model.prior, BoxUniform(low, high, names=[entry[0] for entry in own])])
        names = [*model.parameter_names, *(entry[0] for entry in own)]
        super().__init__(prior.features, names, prior.support, prior)
        self.array, self.model, self.correlation, self.n_bins = array, model, correlation, n_bins
        self._shared = correlation_of(correlation, array.positions)
        frequencies = torch.from_numpy(array.frequencies)
        self.degrees_of_freedom = embedded_degrees_of_freedom()
        self._all = Background(frequencies, self.degrees_of_freedom, {})
        tables = {} if model.table is None else source_tables(model.table, array.frequencies[:n_bins])
        self._heard = Background(frequencies[:n_bins], self.degrees_of_freedom, tables)
        self.factor, self.whitener = _factors(array.tnt)
        turn, self._low, self._low_rest, self._high = _high_first(self.factor, 2 * n_bins)
        self._reader = turn @ self.whitener
        self._white = self._whitened(torch.from_numpy(array.tnr)[None])
        self._constant = self._low_rest @ self._low_rest.mT
        pairs = self._high.unflatten(1, (-1, 2))
        self._outer = torch.einsum("pkcr,pkcs->pkrs", pairs, pairs).flatten(2)  # what variance in a frequency adds to the data's covariance

    @property
    def n_pulsars(self) -> int:
        return len(self.array)

    # --- Spectra -----------------------------------------------------------------------------------------------------------

    def log10_rho(self, theta: Tensor) -> Tensor:
        """log10 of the background's rho [s] in each of its bins, ``(n, n_bins)``."""
        omega = self.model.spectrum(theta[:, : self._split], self._heard)
        return log10_rho(omega, self._heard.frequencies, self.array.span)

    def own_log10_rho(self, theta: Tensor) -> Tensor:
        """log10 of each pulsar's own rho [s], ``(n, p, m)``."""
        own = theta[:, self._split :].reshape(-1, 2)
        rho = log10_rho(power_law(own, self._all), self._all.frequencies, self.array.span)
        return rho.reshape(len(theta), self.n_pulsars, -1)

    @property
    def _split(self) -> int:
        return self.model.prior.features

    # --- Likelihood --------------------------------------------------------------------------------------------------------

    def log_likelihood(self, x: Tensor) -> Tensor:
        """ln L ``(n,)`` of ``theta (n, d)``, up to a constant that no parameter changes: that of the data without any signal.

        Differentiable. -inf where the background or a pulsar's own noise exceeds 1e9 s in some bin; none at all is like any other.

        Raises
        ------
        ValueError
            For NaN in theta.
        """
        return self._by_blocks(self._numbers(x), self._white)

    def log_prob(self, x: Tensor) -> Tensor:
        """ln L + ln prior ``(n,)``; -inf outside the prior's support."""
        x = self._checked(x)
        log_prior = self.prior.log_prob(x)
        return log_prior + where_inside(self.log_likelihood, x, torch.isfinite(log_prior), "log_likelihood")

    def log_likelihood_of(self, theta: Tensor, tnr: Tensor) -> Tensor:
        """The same for other residuals: ``tnr (n, p, 2 m)`` in 1/s, one sky a row of theta, or ``(1, p, 2 m)`` for all."""
        return self._by_blocks(self._numbers(theta), self._whitened(torch.as_tensor(tnr, dtype=torch.float64)))

    def _numbers(self, theta: Tensor) -> Tensor:
        theta = self._checked(theta)
        if bool((rows := torch.isnan(theta).any(1)).any()):
            row = int(rows.nonzero()[0, 0])
            names = ", ".join(name for name, nan in zip(self.names or (), torch.isnan(theta[row]).tolist(), strict=False) if nan)
            raise ValueError(f"Expected parameters that are numbers; got NaN in {int(rows.sum())} rows, first in row {row}: {names}.")
        return theta

    def _whitened(self, tnr: Tensor) -> Tensor:
        return torch.einsum("prk,npk->npr", self._reader, tnr)

    def _by_blocks(self, theta: Tensor, white: Tensor) -> Tensor:
        """In blocks whose matrices stay near the cache, on as many threads as torch has."""
        p, low, high = self.n_pulsars, 2 * self.n_bins, self._high.shape[-1]
        size = low**2 * (p**2 if self.correlation == "hd" else p)
        block = max(1, _BLOCK_BYTES // (8 * (size + 2 * p * (high + low) ** 2)))
        return by_blocks(self._log_likelihood, theta, white, block)

    def _log_likelihood(self, theta: Tensor, white: Tensor) -> Tensor:
        root, own, deafening = self._deviations(theta)
        precision, information, log_high = self._without_high_bins(own[..., self.n_bins :], white)
        own, root = (x.repeat_interleave(2, dim=-1) for x in (own[..., : self.n_bins], root))
        log_low = self._shared.log_integral(precision, information, own, root)
        return torch.where(deafening, -math.inf, log_high.sum(-1) + log_low)

    def log_likelihood_apart(self, x: Tensor) -> Tensor:
        """ln L of each pulsar by itself ``(n, p)``, as if no other had heard the same background; they add up to "uncorrelated"."""
        x = self._numbers(x)
        block = max(1, _BLOCK_BYTES // (16 * self.n_pulsars * 4 * self.array.n_frequencies**2))
        with torch.no_grad():
            return torch.cat(each_on_a_thread(self._log_likelihood_apart, x.split(block), block))

    def _log_likelihood_apart(self, theta: Tensor) -> Tensor:
        root, own, deafening = self._deviations(theta)
        precision, information, log_high = self._without_high_bins(own[..., self.n_bins :], self._white)
        own, root = (x.repeat_interleave(2, dim=-1) for x in (own[..., : self.n_bins], root))
        return torch.where(deafening[:, None], -math.inf, log_high + apart(precision, information, own, root))

    def _deviations(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Background ``(n, n_bins)`` and own noise ``(n, p, m)`` in units of 1e-7 s, and where either is too loud ``(n,)``.

        A point that is too loud is computed at a harmless one, and its value dropped.
        """
        background, own = self.log10_rho(theta), self.own_log10_rho(theta)
        deafening = (background > LOUDEST).any(-1) | (own > LOUDEST).flatten(1).any(1)
        background, own = background.masked_fill(deafening[:, None], -99.0), own.masked_fill(deafening[:, None, None], -99.0)
        return _power_of_ten(background - _LOG10_UNIT), _power_of_ten(own - _LOG10_UNIT), deafening

    def _without_high_bins(self, own: Tensor, white: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K and c of what the data say of the low bins' coefficients, and ln L of none ``(n, p)``: own noise above is integrated out."""
        n, p, high = len(own), self.n_pulsars, self._high.shape[-1]
        k = self._low.shape[1]
        heard, rest = white[..., :high], white[..., high:]
        identity = torch.eye(high, dtype=torch.float64).flatten().expand(p, 1, high**2)
        # Pulsars lead here: each is one matrix product over all rows.
        covariance = torch.baddbmm(identity, own.square().transpose(0, 1), self._outer).unflatten(-1, (high, high))
        columns = own.new_empty(p, n, high, k + 1)
        columns[..., :k] = self._low[:, None].mT
        columns[..., k] = heard.transpose(0, 1)
        gram, log_det = gram_and_log_det(covariance, columns)
        log_high = 0.5 * (heard.square().sum(2) - (gram[..., k, k] + log_det).T)
        gram = gram.transpose(0, 1)
        information = gram[..., :k, k] + torch.einsum("pkr,npr->npk", self._low_rest, rest)
        return gram[..., :k, :k] + self._constant, information, log_high

    def chi_squared(self, theta: Tensor, tnr: Tensor | None = None) -> tuple[Tensor, int]:
        """w' C^-1 w ``(n,)`` of the white data under ``theta (n, d)``, and how many numbers they are: chi-squared where theta is true.

        For other residuals with ``tnr (n, p, 2 m)``, one sky a row of theta, or ``(1, p, 2 m)`` for all. NaN where ln L is -inf.
        """
        there = (self.factor.square().sum(1) > 0).reshape(-1)  # directions that the timing model took are neither data nor misfit
        theta = self._numbers(theta)
        tnr = torch.from_numpy(self.array.tnr)[None] if tnr is None else torch.as_tensor(tnr, dtype=torch.float64)
        white = self._whitened(tnr)
        with torch.no_grad():
            # 2 ln L is w'w - w' C^-1 w - ln |C|, and ln L has the fast algebra; in skies this loud the difference would be rounding.
            gain = self._by_blocks(theta, white) - self._by_blocks(theta, torch.zeros_like(white[:1]))
            values = (white.square().sum((1, 2)) - 2 * gain).clamp(min=0.0)
            loud = (white.square().sum((1, 2)) > _LOUD_SKY).expand(len(theta)) & torch.isfinite(gain)
            if bool(loud.any()):
                rows = torch.einsum("prk,npk->npr", self.whitener, tnr).flatten(1).expand(len(theta), -1)[loud]
                pieces = zip(theta[loud].split(_FEW), rows.split(_FEW), strict=True)
                values[loud] = torch.cat([self._misfits(some, data) for some, data in pieces])
        return values, int(there.sum())

    def _misfits(self, theta: Tensor, white: Tensor) -> Tensor:
        own = _power_of_ten(2 * (self.own_log10_rho(theta) - _LOG10_UNIT)).repeat_interleave(2, dim=-1)
        shared = _power_of_ten(2 * (self.log10_rho(theta) - _LOG10_UNIT)).repeat_interleave(2, dim=-1)
        rank = self.factor.shape[-1]
        heard = self.factor[:, : 2 * self.n_bins]
        gamma = torch.from_numpy(correlation_matrix(self.correlation, self.array.positions))
        covariance = torch.einsum("ij,ika,nk,jkb->niajb", gamma, heard, shared, heard)
        each = torch.einsum("ika,nik,ikb->niab", self.factor, own, self.factor) + torch.eye(rank, dtype=torch.float64)
        covariance.diagonal(dim1=1, dim2=3).add_(each.permute(0, 2, 3, 1))
        return (torch.linalg.solve(covariance.flatten(3).flatten(1, 2), white) * white).sum(1)

    # --- Simulator ---------------------------------------------------------------------------------------------------------

    def simulate(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """TNr of one sky a row of ``theta (n, d)``, ``(n, p, 2 m)`` in 1/s, exactly as the likelihood has it.

        Coefficients a ~ N(0, phi(theta)), then TNr given a ~ N(TNT a, TNT), its noise by eigenvectors, as TNT is singular.

        Raises
        ------
        ValueError
            For a background or own noise beyond 1e9 s, and NaN in theta.
        """
        theta = self._numbers(theta)
        n, p, m = len(theta), self.n_pulsars, self.array.n_frequencies
        background = self.log10_rho(theta)
        if bool((background > LOUDEST).any()):
            raise ValueError(f"Expected a background below 1e{LOUDEST:g} s in every bin; got 1e{float(background.max()):.0f} s.")
        own = self.own_log10_rho(theta)
        if bool((own > LOUDEST).any()):
            raise ValueError(f"Expected own noise of every pulsar below 1e{LOUDEST:g} s in every bin; got 1e{float(own.max()):.0f} s.")
        root = _power_of_ten(own - _LOG10_UNIT).repeat_interleave(2, dim=-1)
        coefficients = root * randn((n, p, 2 * m), generator, dtype=torch.float64)
        shared = self._shared.draw(randn((n, p, 2 * self.n_bins), generator, dtype=torch.float64))
        coefficients[..., : 2 * self.n_bins] += shared * _power_of_ten(background - _LOG10_UNIT).repeat_interleave(2, dim=-1)[:, None]
        white = torch.einsum("pkr,npk->npr", self.factor, coefficients)
        white += randn(tuple(white.shape), generator, dtype=torch.float64)
        return torch.einsum("pkr,npr->npk", self.factor, white) * 10**-_LOG10_UNIT

    def with_data(self, tnr: np.ndarray) -> TimingTarget:
        """The same target given other residuals, ``tnr (p, 2 m)`` in 1/s."""
        return TimingTarget(self.array.with_data(tnr), self.model, self.correlation, self.n_bins)


def timing_likelihood(
    pulsars: PulsarArray | Sequence[str | int] | str = TEN,
    correlation: str = "hd",
    spectrum: str | Model = "power_law",
    *,
    n_bins: int = DEFAULT_BINS,
) -> TimingTarget:
    """The exact likelihood of a source and the pulsars' own noise, with its prior.

    Parameters
    ----------
    pulsars : PulsarArray, sequence of str or int, or "all"
        Names or numbers stand for pulsars of the NANOGrav 15-year data (:func:`ng15_pulsars`); by default ten of them.
    correlation : {"hd", "uncorrelated", "monopole", "dipole"}
        Of the background between pulsars: see :func:`correlation_matrix`.
    spectrum : str or Model
        One of :data:`MODELS`.
    n_bins : int
        Lowest frequencies in which the background is heard; each pulsar's own power law is in all of them.

    Returns
    -------
    TimingTarget
        Over theta = the source's parameters, then (log10_A, gamma) of each pulsar in order. ``log_likelihood`` is ln L relative to the data
        without any signal, ``log_prob`` adds the prior's density, ``simulate`` makes skies.

    Raises
    ------
    ValueError
        For an unknown pulsar, source or correlation, or more bins than the data have.
    ConnectionError
        Where the data cannot be reached.

    Examples
    --------
    >>> from sbi_flows.physics.pta import synthetic_pulsars
    >>> target = timing_likelihood(synthetic_pulsars(3, random_state=0))
    >>> target.names[:4]
    ('log10_A', 'gamma', 'S0000_log10_A', 'S0000_gamma')
    >>> theta = target.prior.sample(5, torch.Generator().manual_seed(0))
    >>> target.log_likelihood(theta).shape, target.simulate(theta).shape
    (torch.Size([5]), torch.Size([5, 3, 60]))

    References
    ----------
    van Haasteren & Vallisneri 2014, "New advances in the Gaussian-process approach to pulsar-timing data analysis", arXiv:1407.1838;
    Laal et al. 2023, "Exploring the capabilities of Gibbs sampling in pulsar timing arrays", arXiv:2305.12285.
    """
    array = pulsars if isinstance(pulsars, PulsarArray) else ng15_pulsars(pulsars)
    model = get_model(spectrum) if isinstance(spectrum, str) else spectrum
    positive("n_bins", n_bins, integer=True)
    if not 1 <= n_bins <= array.n_frequencies:
        raise ValueError(f"Expected n_bins from 1 to {array.n_frequencies}, the frequencies of the data; got {n_bins}.")
    return TimingTarget(array, model, correlation, int(n_bins))


def _factors(tnt: np.ndarray) -> tuple[Tensor, Tensor]:
    """F ``(p, 2 m, r)`` with TNT = F F' in units of 1e-7 s, and its pseudo-inverse ``(p, r, 2 m)`` that makes white data of TNr in 1/s.

    White data are w = F' a + noise of unit variance. Directions in which TNT is rounding are zero in both.
    """
    values, vectors = np.linalg.eigh(tnt)
    there = values > _NULL * values[:, -1:]
    root = np.sqrt(np.where(there, values, 0.0))
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=there)
    factor = vectors * root[:, None, :] * 10**_LOG10_UNIT
    whitener = np.swapaxes(vectors * inverse[:, None, :], 1, 2)
    return torch.from_numpy(factor), torch.from_numpy(np.ascontiguousarray(whitener))


def _high_first(factor: Tensor, low: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """White data turned so that the rows of F above the first ``low`` fill the first columns only: F Q' = [[low, rest], [high, 0]].

    Noise above the background's bins then enters a smaller matrix, and what it leaves untouched of the low bins is a constant.
    """
    high = factor.shape[1] - low
    q, r = torch.linalg.qr(torch.cat([factor[:, low:], factor[:, :low]], dim=1).mT)
    turned = r.mT
    return q.mT, turned[:, high:, :high].contiguous(), turned[:, high:, high:].contiguous(), turned[:, :high, :high].contiguous()


def _power_of_ten(x: Tensor) -> Tensor:
    return torch.exp(x * math.log(10))
