"""`python -m bipe_cli`, for where the `bipe` script is not on the path."""

from bipe_cli.main import main

main()
