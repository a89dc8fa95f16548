"""Links between nanopod's own processes."""
