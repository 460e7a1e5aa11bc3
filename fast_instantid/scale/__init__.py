"""Batches and a service, for what one process does not hold."""
