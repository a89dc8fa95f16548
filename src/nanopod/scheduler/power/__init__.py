"""How the watts of a circuit are shared among the accelerators on it."""
