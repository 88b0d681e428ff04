"""MODELS: the table of task types, and the pipelines that run them."""
