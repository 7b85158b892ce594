"""The command ``sbi-flows``: thin, every command is a call of the library."""

from sbi_flows.cli.app import main

__all__ = ["main"]
