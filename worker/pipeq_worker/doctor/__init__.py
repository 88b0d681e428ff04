"""DOCTOR: checks that a pipeline gives the same answers in batches as one by one."""
