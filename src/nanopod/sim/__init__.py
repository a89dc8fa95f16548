"""The wind tunnel: the product's own decisions on a simulated clock."""
