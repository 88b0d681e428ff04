"""DOCTOR: tries a pipeline out before it serves."""
