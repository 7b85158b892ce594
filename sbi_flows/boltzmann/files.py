"""Boltzmann generators as files. The energy is code: it is passed back in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_flows import flows
from sbi_flows._files import check_shapes, load_tensors, save_tensors
from sbi_flows._validation import torch_dtype
from sbi_flows.boltzmann.checks import FitReport
from sbi_flows.boltzmann.coordinates import coordinates_from
from sbi_flows.boltzmann.target import BoltzmannTarget
from sbi_flows.estimators.files import data_parameters, plain, read_history
from sbi_flows.results import FitHistory, Reliability

_KIND, _VERSION = "BoltzmannGenerator", 1


def save_generator(
    path: str | Path,
    flow: Any,
    rows: Tensor,
    history: dict[str, FitHistory],
    report: FitReport,
    parameters: dict,
    target: BoltzmannTarget,
) -> None:
    """One file: weights, architecture, configurations of the target, what happened in the fit."""
    if not isinstance(flow, flows.Flow) or not flow.spec:
        raise TypeError(
            f"Expected a flow built by sbi_flows.flows (it has a spec to write down); got a {type(flow).__name__}. "
            "Save its state_dict yourself."
        )
    coordinates = target.coordinates
    facts = {
        "features": target.whole,
        "temperature": target.temperature,
        "names": target.whole_names,
        "support": target.support if coordinates is None else None,
        "coordinates": None if coordinates is None else coordinates.description(),
    }
    header = {
        "spec": plain(flow.spec),
        "dtype": str(next(flow.parameters()).dtype).removeprefix("torch."),
        "history": {name: plain(dataclasses.asdict(stage)) for name, stage in history.items()},
        "report": plain(dataclasses.asdict(report)),
        "parameters": data_parameters(parameters),
        "facts": plain(facts),
    }
    tensors = {**{f"flow.{name}": value for name, value in flow.state_dict().items()}, "draws": rows}
    save_tensors(path, tensors, header, kind=_KIND, version=_VERSION)


def load_generator(path: str | Path) -> tuple[Any, Tensor, dict[str, FitHistory], FitReport, dict, dict]:
    """Flow, rows of the target, history, report, parameters and what the target was made with, of a file."""
    tensors, header = load_tensors(path, kind=_KIND, version=_VERSION)
    flow = flows.build(header["spec"], generator=torch.Generator().manual_seed(0)).to(torch_dtype(header["dtype"]))
    own = {name.removeprefix("flow."): value for name, value in tensors.items() if name.startswith("flow.")}
    check_shapes(path, own, flow.state_dict())
    flow.load_state_dict(own)
    record = header["report"]
    verdict = record.pop("reliability")
    reliability = Reliability(verdict["ok"], tuple(verdict["reasons"]), tuple(verdict["notes"]))
    history = {name: read_history(stage) for name, stage in header["history"].items()}
    report = FitReport(**record, reliability=reliability)
    facts = header["facts"]
    facts["coordinates"] = coordinates_from(facts.get("coordinates"))  # files of before have none
    if facts["support"] is not None:
        facts["support"] = [tuple(entry) if isinstance(entry, list) else entry for entry in facts["support"]]
    return flow.requires_grad_(False).eval(), tensors["draws"], history, report, header["parameters"], facts
