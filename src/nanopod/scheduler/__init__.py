"""Pure decisions: how many workers (`autoscale`), and where (`placement`). No IO, no clock, no randomness."""
