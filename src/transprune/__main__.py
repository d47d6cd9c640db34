"""`python -m transprune`, which is what `torchrun -m transprune` calls."""

from transprune.cli import main

main()
