"""`python -m aurora_lora.cli`: the command, where its script is not on the path."""

from aurora_lora.cli import main

main()
