"""Training losses: functions ``loss(flow, batch, generator)`` that return one number a row."""

from sbi_flows.losses.base import Batch, Loss
from sbi_flows.losses.likelihood import nll

__all__ = ["Batch", "Loss", "nll"]
