"""Latency where a network will run: the stop-watch, and a model fitted to measured operators and networks."""
