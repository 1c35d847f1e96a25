"""One file per engine: how to start it, probe it and speak to it."""
