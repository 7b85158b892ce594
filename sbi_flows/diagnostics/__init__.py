"""How far apart two sets of draws are, and whether chains and posteriors can be believed."""

from sbi_flows.diagnostics.distances import hellinger, hellinger_floor

__all__ = ["hellinger", "hellinger_floor"]
