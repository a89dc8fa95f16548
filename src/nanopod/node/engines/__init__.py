"""Engines: whatever turns a request into an answer, behind the one seam of `base`."""
