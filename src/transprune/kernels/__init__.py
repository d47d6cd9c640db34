"""Tensor operations that are faster than torch's own; none knows about models."""
