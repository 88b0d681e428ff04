"""SETTINGS: pipelines.toml, environment and command line, as one frozen object."""
