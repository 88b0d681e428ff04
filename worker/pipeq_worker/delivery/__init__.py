"""DELIVERY: ends tasks: writes their results, stores and publishes their records, acknowledges their messages."""
