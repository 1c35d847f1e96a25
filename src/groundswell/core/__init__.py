"""Decisions. Each machine is ``step(now, event) -> effects``: no awaiting, no clock, no chance in here."""
