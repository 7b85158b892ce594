"""Measured distances over the sound horizon, and the files they come in."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbi_flows import datasets

KINDS = {
    "DV_over_rs": "D_V / r_d, with D_V = (z D_M^2 D_H)^(1/3)",
    "DM_over_rs": "D_M / r_d, across the line of sight",
    "DH_over_rs": "D_H / r_d = c / (H r_d), along it",
}
_MEAN, _COV = (f"desi_dr2_bao/desi_gaussian_bao_ALL_GCcomb_{what}.txt" for what in ("mean", "cov"))


@dataclass(frozen=True, eq=False)
class BAOData:
    """Distances over the sound horizon at the drag epoch, with Gaussian errors.

    Attributes
    ----------
    redshifts : ndarray (k,)
    kinds : tuple of str (k,)
        Of :data:`KINDS`.
    values : ndarray (k,)
        Without units.
    covariance : ndarray (k, k)

    Examples
    --------
    >>> BAOData([0.5, 0.5], ("DM_over_rs", "DH_over_rs"), [13.6, 21.9], [[0.03, 0.0], [0.0, 0.2]]).values
    array([13.6, 21.9])
    """

    redshifts: np.ndarray
    kinds: tuple[str, ...]
    values: np.ndarray
    covariance: np.ndarray

    def __post_init__(self):
        for name in ("redshifts", "values", "covariance"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "kinds", tuple(self.kinds))
        k = len(self.kinds)
        if k == 0 or self.redshifts.shape != (k,) or self.values.shape != (k,) or self.covariance.shape != (k, k):
            raise ValueError(
                f"Expected redshifts ({k},), values ({k},) and covariance ({k}, {k}) for {k} kinds of distance; got "
                f"{self.redshifts.shape}, {self.values.shape} and {self.covariance.shape}."
            )
        for kind in self.kinds:
            if kind not in KINDS:
                near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.3)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Unknown kind of distance {kind!r}; expected one of {', '.join(KINDS)}.{hint}")
        if not (np.isfinite(self.values).all() and np.isfinite(self.redshifts).all() and (self.redshifts > 0).all()):
            raise ValueError("Expected finite values at positive redshifts; got others. Leave such rows out, of the covariance too.")
        self._check_covariance()

    def _check_covariance(self) -> None:
        if not np.isfinite(self.covariance).all() or not np.allclose(self.covariance, self.covariance.T, rtol=1e-8, atol=0):
            raise ValueError("Expected a finite symmetric covariance; got one that is not. The file may be cut, or hold another matrix.")
        smallest = np.linalg.eigvalsh(self.covariance)[0]
        if smallest <= 0:
            raise ValueError(f"Expected a positive definite covariance; its smallest eigenvalue is {smallest:.3g}.")

    @classmethod
    def from_files(cls, mean: str | Path, covariance: str | Path) -> BAOData:
        """Read the two text files in which cobaya's likelihoods keep such data: rows ``z value kind``, and the matrix.

        Raises
        ------
        ValueError
            With the line that is not as expected.
        """
        rows = []
        for number, line in enumerate(Path(mean).read_text().splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                z, value, kind = words
                rows.append((float(z), float(value), kind))
            except ValueError:
                raise ValueError(f"{mean}, line {number}: expected 'redshift value kind'; got {line.strip()!r}.") from None
        if not rows:
            raise ValueError(f"{mean} holds no rows 'redshift value kind'.")
        redshifts, values, kinds = zip(*rows, strict=True)
        try:
            matrix = np.loadtxt(covariance, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{covariance}: expected a square matrix of numbers; {error}.") from None
        return cls(np.array(redshifts), kinds, np.array(values), matrix)


def desi_dr2_bao() -> BAOData:
    """The 13 distances of DESI's second data release, seven redshifts from .295 to 2.33, from the registry.

    Raises
    ------
    ConnectionError
        Where no copy can be reached; the message names the entry and the variable ``SBI_FLOWS_DATA``.

    Examples
    --------
    >>> desi_dr2_bao().values.shape                                                                         # doctest: +SKIP
    (13,)

    References
    ----------
    DESI Collaboration 2025, "DESI DR2 results II", arXiv:2503.14738.
    """
    return BAOData.from_files(datasets.fetch(_MEAN), datasets.fetch(_COV))
