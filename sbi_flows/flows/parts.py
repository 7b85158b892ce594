"""What every architecture needs: its call as plain data, and its base density."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import Columns, Distribution, NormalMixture, StandardNormal, StudentT, Torus


def spec_of(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The call as plain JSON-able data."""
    names = [name for name in inspect.signature(function).parameters if name != "generator"]
    spec = {"architecture": function.__name__, **{name: arguments[name] for name in names}}
    if spec["features"] < 1:
        raise ValueError(f"Expected at least one column; got features={spec['features']}.")
    if spec["layers"] < 1:
        raise ValueError(f"Expected at least one layer; got layers={spec['layers']}.")
    spec["hidden"] = [int(width) for width in spec["hidden"]]
    spec["support"] = [column.entry for column in parse_support(spec["support"], spec["features"])]
    if "base" in spec:
        spec["base"] = spec["base"] if isinstance(spec["base"], str) else dict(spec["base"])
    return spec


def base_for(choice, features: int, real: list[int], generator) -> Distribution:
    """The base density of ``features`` columns of which those in ``real`` are no angles; angles get the uniform torus."""
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("name", None)
    bases: dict[str, Callable[..., Distribution]] = {"normal": StandardNormal, "student-t": StudentT, "mixture": NormalMixture}
    if name not in bases:
        raise ValueError(f"Expected base {', '.join(map(repr, bases))} or a dict with one of these as its name; got {choice!r}.")
    if not real:
        return Torus(features)
    if name == "mixture":
        options["generator"] = generator
    own = bases[name](len(real), **options)
    angles = [i for i in range(features) if i not in real]
    return own if not angles else Columns([own, Torus(len(angles))], [real, angles])
