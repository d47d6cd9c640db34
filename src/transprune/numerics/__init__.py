"""Pure tensor functions; none knows a model."""
