"""Decisions. Each machine is ``step(now, event) -> effects``; nothing here awaits, reads a clock or draws chance."""
