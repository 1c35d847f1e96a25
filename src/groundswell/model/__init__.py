"""Nouns: work, node, money, messages, errors. Standard library only; no behaviour that needs a clock."""
