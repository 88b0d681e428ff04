"""DELIVERY: a task's end: its result placed, stored, published, its message acknowledged."""
