"""OBSERVE: reports what happens in a worker: observers, the log, and outages of Redis, each reported once."""
