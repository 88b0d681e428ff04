"""BROKER: Celery's side of a worker: its app, the transport, the consumer, the pool."""
