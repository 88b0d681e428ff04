"""The daemon: takes tasks off their queues, batches them through pipelines, lands the results."""
