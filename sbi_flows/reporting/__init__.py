"""One page for a result: its verdict in words, its numbers, its figures, and what it cost."""

from sbi_flows.reporting.write import report

__all__ = ["report"]
