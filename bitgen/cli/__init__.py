"""The command line: parse, one call of the API, print."""

from bitgen.cli.main import main

__all__ = ["main"]
