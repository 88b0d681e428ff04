"""LEASES: the messages that this process may work on, the thread that takes them off their lists, and the scripts."""
