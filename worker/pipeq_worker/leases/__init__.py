"""LEASES: which messages this process may work on, the thread that takes them off their lists, and the scripts."""
