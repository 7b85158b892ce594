"""Estimators as files: parameters, architecture, history and weights; what is code is left out and passed back in."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sbi_flows import flows
from sbi_flows._files import check_shapes, load_tensors, save_tensors
from sbi_flows._validation import torch_dtype
from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.embeddings import OWN, Embedding, ShapedEmbedding, build_embedding
from sbi_flows.estimators.ensemble import EmbeddedFlow, FlowEnsemble
from sbi_flows.results import FitHistory, Reliability

VERSION = 1
_HISTORY_ARRAYS = ("train_loss", "validation_loss", "learning_rate", "best_epoch")


def save_estimator(path: str | Path, kind: str, flow: Any, history: FitHistory, parameters: dict, facts: dict) -> None:
    """Write one file; ``facts`` is whatever else the estimator needs to be itself again."""
    members = list(flow.flows) if isinstance(flow, FlowEnsemble) else [flow]
    inner = members[0].flow if isinstance(members[0], EmbeddedFlow) else members[0]
    if not isinstance(inner, flows.Flow | flows.PartlyDiscrete | flows.MeanFlow) or not inner.spec:
        raise TypeError(
            f"Expected a flow built by sbi_flows.flows (it has a spec to write down); got a {type(inner).__name__}. "
            "Save its state_dict yourself."
        )
    header = {
        "parameters": data_parameters(parameters),
        "spec": plain(inner.spec),
        "members": len(members),
        "embedded": isinstance(members[0], EmbeddedFlow),
        "embedding": embedding_spec(getattr(members[0], "embedding", None)),
        "dtype": str(next(inner.parameters()).dtype).removeprefix("torch."),
        "history": plain(dataclasses.asdict(history)),
        "facts": facts,
    }
    tensors = {f"{m}.{name}": value for m, member in enumerate(members) for name, value in member.state_dict().items()}
    save_tensors(path, tensors, header, kind=kind, version=VERSION)


def load_estimator(path: str | Path, kind: str, embedding: nn.Module | None = None) -> tuple[Any, FitHistory, dict, dict]:
    """The density, history, parameters and facts of a file."""
    tensors, header = load_tensors(path, kind=kind, version=VERSION)
    spec = header.get("embedding")  # absent from files written before embeddings had specs
    if spec is not None and embedding is None and spec["embedding"] != OWN:
        header["parameters"]["embedding"] = spec
    embedding = embedding_from(spec, embedding)
    if header["embedded"] and embedding is None:
        raise ValueError(
            f"{path} was fitted with an embedding network, which is code and not in the file: pass it as embedding=."
        )
    if embedding is not None and not header["embedded"]:
        raise ValueError(f"{path} was fitted without an embedding network: load it without embedding=.")
    dtype = torch_dtype(header["dtype"])
    members: list[nn.Module] = []
    for m in range(header["members"]):
        member: nn.Module = flows.build(header["spec"], generator=torch.Generator().manual_seed(0)).to(dtype)
        own = {name.removeprefix(f"{m}."): value for name, value in tensors.items() if name.startswith(f"{m}.")}
        if embedding is not None:
            member = EmbeddedFlow(member, copy.deepcopy(embedding).to(dtype), len(own["location"]))
        check_shapes(path, own, member.state_dict())
        member.load_state_dict(own)
        members.append(member.requires_grad_(False).eval())
    history = read_history(header["history"])
    return members[0] if len(members) == 1 else FlowEnsemble(members), history, header["parameters"], header["facts"]


def read_history(record: Mapping[str, Any]) -> FitHistory:
    """The history that a header holds as plain data."""
    reliability = record["reliability"]
    verdict = Reliability(reliability["ok"], tuple(reliability["reasons"]), tuple(reliability["notes"]))
    arrays = {name: np.asarray(record[name]) for name in _HISTORY_ARRAYS}
    return FitHistory(**{**record, **arrays, "reliability": verdict})


def data_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an estimator's parameters that JSON gives back, as plain data."""
    return {name: value for name, value in plain(parameters).items() if _is_data(value)}


def embedding_spec(network: nn.Module | None) -> dict | None:
    """What an embedding is made from, where that is data."""
    return plain(network.spec) if isinstance(network, Embedding) else None


def embedding_from(spec: Mapping[str, Any] | None, given: nn.Module | None) -> nn.Module | None:
    """The network of a spec: built from it, or around the module given where the network is somebody's own."""
    if spec is None:
        return given
    if spec["embedding"] != OWN:
        return build_embedding(spec, torch.Generator().manual_seed(0)) if given is None else given
    return given if given is None or isinstance(given, Embedding) else ShapedEmbedding(given, spec["shape"], spec["missing"])


@contextlib.contextmanager
def complete(path: str | Path) -> Iterator[None]:
    """Within it, whatever the header lacks or has of the wrong kind means a damaged file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: its header is incomplete or not what save() writes ({type(error).__name__}: {error}). Save it again."
        ) from error


def plain(value: Any) -> Any:
    """``value`` with numbers, arrays, tensors, paths, devices and dtypes inside it as JSON would have them; the rest as it is."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, ColumnSupport):
        return value.entry
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _is_data(value: Any) -> bool:
    """Whether JSON gives the value back: numbers, strings, None, and lists and dicts of these."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_data(item) for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(_is_data(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)
