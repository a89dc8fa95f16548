"""Whether a new revision takes over, waits or goes back."""
