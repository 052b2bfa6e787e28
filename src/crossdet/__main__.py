"""`python -m crossdet`, and what torchrun starts."""

from crossdet.commands.main import main

main()
