"""``python -m lutbench``, which is also what ``torchrun -m lutbench`` starts."""

from lutbench.cli import main

main()
