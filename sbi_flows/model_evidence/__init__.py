"""Evidence from samples, and comparison of models."""
