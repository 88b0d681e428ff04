"""SCHEDULE: which ready items run next, together with which others. Plain logic, without Celery, Redis and torch."""
