"""STAGES: a task's way from its message to the model's output. Nothing of Celery, Redis, leases or records."""
