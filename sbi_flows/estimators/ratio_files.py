"""Ratio networks as files, in the manner of :mod:`sbi_flows.estimators.files`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sbi_flows._files import check_shapes, load_tensors, save_tensors
from sbi_flows._validation import torch_dtype
from sbi_flows.bijections.support import parse_support
from sbi_flows.estimators.files import data_parameters, embedding_from, embedding_spec, plain, read_history
from sbi_flows.estimators.ratio_net import RatioEnsemble, RatioNet
from sbi_flows.results import FitHistory

VERSION = 1


def save_ratio(path: str | Path, kind: str, net: Any, history: FitHistory, parameters: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write one file; ``facts`` is whatever else its owner needs to be itself again."""
    members: list[Any] = list(net.nets) if isinstance(net, RatioEnsemble) else [net]
    first = members[0]
    header = {
        "parameters": data_parameters(parameters),
        "support": [column.entry for column in first.support.support],
        "context": first.context_features,
        "hidden": list(first.net.widths),
        "members": len(members),
        "embedded": first.embedding is not None,
        "embedding": embedding_spec(first.embedding),
        "dtype": str(first._anchor.dtype).removeprefix("torch."),
        "history": plain(dataclasses.asdict(history)),
        "facts": dict(facts),
    }
    tensors = {f"{m}.{name}": value for m, member in enumerate(members) for name, value in member.state_dict().items()}
    save_tensors(path, tensors, header, kind=kind, version=VERSION)


def load_ratio(path: str | Path, kind: str, embedding: nn.Module | None = None) -> tuple[Any, FitHistory, dict, dict]:
    """The network, history, parameters and facts of a file."""
    tensors, header = load_tensors(path, kind=kind, version=VERSION)
    spec = header.get("embedding")  # absent from files written before embeddings had specs
    embedding = embedding_from(spec, embedding)
    if header["embedded"] != (embedding is not None):
        wanted = "with an embedding network, which is code and not in the file: pass it as" if header["embedded"] else "without"
        raise ValueError(f"{path} was fitted {wanted} embedding=.")
    support = parse_support(header["support"], len(header["support"]))
    members = []
    for m in range(header["members"]):
        net = RatioNet(support, header["context"], header["hidden"], copy.deepcopy(embedding), torch.Generator().manual_seed(0))
        net.to(torch_dtype(header["dtype"]))
        own = {name.removeprefix(f"{m}."): value for name, value in tensors.items() if name.startswith(f"{m}.")}
        check_shapes(path, own, net.state_dict())
        net.load_state_dict(own)
        members.append(net.requires_grad_(False).eval())
    whole = members[0] if len(members) == 1 else RatioEnsemble(members)
    return whole, read_history(header["history"]), header["parameters"], header["facts"]
