"""What a run is told: the typed configuration, the file it comes from, and its seeds.

TOML and overrides in, a `RunConfig` out. A new setting is a field in `config` with its range and one line of docs.
"""
