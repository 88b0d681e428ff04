"""SETTINGS: reads pipelines.toml, the environment and the command line into one frozen object."""
