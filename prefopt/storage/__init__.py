"""What lies on disk: atomic files, checksums, the results folder, caches, locks."""
