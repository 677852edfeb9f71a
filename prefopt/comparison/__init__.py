"""Variants x seeds: what is missing is trained, evaluated and written, under equal conditions."""
