"""What a plug-in implements, and how it is found by name."""
