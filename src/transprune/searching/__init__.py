"""A search from beginning to end.

- `search`: the whole search as one call, with what it starts from: channel order and starting probabilities from the
  scores of the trained network
- `contenders`: what was found against what is free at the same budget
"""
