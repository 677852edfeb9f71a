"""A results folder as numbers, verdicts and sentences; needs no torch."""
