"""Settings: strict, frozen, from TOML and the command line."""
