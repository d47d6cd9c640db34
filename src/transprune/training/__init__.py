"""The loop that training, distillation and search share; training, distillation and evaluation themselves."""
