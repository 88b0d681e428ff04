"""STAGES: take a task from its message to the model's output. They import no Celery, Redis, leases or records."""
