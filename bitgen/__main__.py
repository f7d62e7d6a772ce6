"""`python -m bitgen`."""

from bitgen.cli import main

main()
