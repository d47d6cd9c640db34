"""The smaller network that an architecture describes; the caller's network is never changed."""
