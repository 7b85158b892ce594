"""Priors as plain data, where they are made of numbers only."""

from __future__ import annotations

from typing import Any

from sbi_flows.distributions.base import Distribution
from sbi_flows.distributions.priors import BoxUniform, Choice, MultivariateNormal, Product


def prior_to_data(prior: Distribution) -> dict[str, Any] | None:
    """A prior as numbers and lists, or None where it is code (functions, another library's object)."""
    names = None if prior.names is None else list(prior.names)
    if type(prior) is BoxUniform:
        return {"kind": "box", "low": prior.low.tolist(), "high": prior.high.tolist(), "names": names}
    if type(prior) is MultivariateNormal:
        return {"kind": "normal", "mean": prior.mean.tolist(), "cov": (prior.cholesky @ prior.cholesky.T).tolist(), "names": names}
    if type(prior) is Choice:
        return {"kind": "choice", "values": prior.values.tolist(), "probabilities": prior.probabilities.tolist(), "names": names}
    if type(prior) is Product:
        parts = [prior_to_data(part) for part in prior.parts]
        return None if None in parts else {"kind": "product", "parts": parts, "names": names}
    return None


def prior_from_data(data: dict[str, Any]) -> Distribution:
    """What :func:`prior_to_data` wrote.

    Examples
    --------
    >>> prior_from_data(prior_to_data(BoxUniform([0.0], [1.0]))).support
    [(0.0, 1.0)]
    """
    if data["kind"] == "box":
        return BoxUniform(data["low"], data["high"], names=data["names"])
    if data["kind"] == "normal":
        return MultivariateNormal(data["mean"], data["cov"], names=data["names"])
    if data["kind"] == "choice":
        return Choice(data["values"], data["probabilities"], names=data["names"])
    product = Product([prior_from_data(part) for part in data["parts"]])
    product.names = None if data["names"] is None else tuple(data["names"])
    return product
