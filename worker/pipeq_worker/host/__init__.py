"""HOST: the parts of the process that holds the leases, besides Celery."""
