"""The command line: words in, exit status out; a file for each command."""

from prefopt.cli.app import main

__all__ = ["main"]
