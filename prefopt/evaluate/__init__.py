"""What trained policies say: samples, divergence from the reference, diversity."""
