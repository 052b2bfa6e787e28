"""`python -m crossdet`, and what torchrun starts."""

from crossdet.cli import main

main()
