"""Adapters to the world outside: one shelf per port. Used by the processes, never by the deciding rooms."""
