"""Where a comparison runs: in a process of its own, watched, and started again when it dies."""
