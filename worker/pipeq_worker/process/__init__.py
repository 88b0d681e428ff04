"""PROCESS: starts workers: the command, its checks before the start, and one process for each device."""
