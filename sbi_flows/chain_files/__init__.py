"""Chains that somebody else ran: files in, other packages' objects and files out."""

from sbi_flows.chain_files.load import load_chains

__all__ = ["load_chains"]
