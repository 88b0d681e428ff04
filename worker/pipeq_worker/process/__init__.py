"""PROCESS: how workers start: the command, what it checks first, one process for each device."""
