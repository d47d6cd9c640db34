"""The loops: search, distillation, plain training, evaluation. Nothing else owns an optimizer."""
