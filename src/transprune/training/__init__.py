"""Training, distillation and evaluation, and the loop that they share with the search."""
