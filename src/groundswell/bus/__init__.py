"""Links between gateway and nodes."""
