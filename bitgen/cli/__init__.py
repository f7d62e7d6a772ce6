"""The command line: each command parses its options, calls its verb of `bitgen.api`, and prints."""

from bitgen.cli.main import main

__all__ = ["main"]
