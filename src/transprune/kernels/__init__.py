"""Tensor operations that are faster than those that torch would choose; none knows a model."""
