"""Writing results for people and for runtimes."""
