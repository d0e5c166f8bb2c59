"""Subscribers to the events of a fit: log lines and user callbacks."""
