"""The agent process on a machine: engines, supervision, the way to the gateway."""
