"""Chains that somebody else ran: files in, other packages' objects and files out."""

from sbi_flows.chain_files.exports import as_chains, to_anesthetic, to_chainconsumer, to_corner, to_getdist
from sbi_flows.chain_files.flat_prior import with_flat_prior
from sbi_flows.chain_files.load import load_chains
from sbi_flows.chain_files.save import save_chains

__all__ = ["as_chains", "load_chains", "save_chains", "to_anesthetic", "to_chainconsumer", "to_corner", "to_getdist", "with_flat_prior"]
