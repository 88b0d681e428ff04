"""STORES: where inputs are read and results written, and what may be touched there."""
