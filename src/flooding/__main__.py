"""``python -m flooding`` is the command line."""

from flooding.cli import main

main()
