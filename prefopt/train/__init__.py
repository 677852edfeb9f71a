"""Lockstep training of all variants of a seed on one frozen base."""
