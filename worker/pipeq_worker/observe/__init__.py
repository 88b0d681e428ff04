"""OBSERVE: what is said of what happens: the log, and outages told once."""
