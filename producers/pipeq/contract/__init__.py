"""CONTRACT: what producers and workers agree on. All that a worker imports of this package; imports nothing of it."""
