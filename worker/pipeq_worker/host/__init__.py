"""HOST: what the process that holds the leases is made of, besides Celery."""
