"""`python -m rnnbench_nb` is `rnnbench`."""

from rnnbench_nb.cli import main

main(prog_name="rnnbench")
