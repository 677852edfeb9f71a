"""Errors that are the user's to fix: one line each, with an exit status, never a traceback."""

from __future__ import annotations


class PrefoptError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(PrefoptError):
    """A command, a configuration or a name that cannot be carried out."""

    exit_code = 2


class DataError(PrefoptError):
    """Rows that cannot be used as they are."""

    exit_code = 3


class IncompleteError(PrefoptError):
    """A comparison with at least one run that did not finish."""

    exit_code = 4


class BusyError(PrefoptError):
    """Another process holds the results folder."""

    exit_code = 5


class MachineError(PrefoptError):
    """The machine lacks something: a device, a model, a package, disk space, a permission."""

    exit_code = 6


class ClaimError(PrefoptError):
    """An asserted claim about the results does not hold."""

    exit_code = 7


class UnequalConditions(PrefoptError):  # noqa: N818 - the name says what it is
    """Two variants of one seed did not train under the same conditions."""

    exit_code = 4


def did_you_mean(name: str, known: list[str]) -> str:
    """A suffix such as ``; did you mean dpo?``, or the sorted list of known names where none is near."""
    import difflib

    # Letters in the wrong order, or in capitals, are the nearest mistakes, which difflib does not know.
    small = name.casefold()
    near = [one for one in known if sorted(one.casefold()) == sorted(small)]
    near = near or difflib.get_close_matches(small, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
