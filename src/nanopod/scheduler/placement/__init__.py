"""Which node an instance goes to."""
