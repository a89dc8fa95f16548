"""How many workers an endpoint should have."""
