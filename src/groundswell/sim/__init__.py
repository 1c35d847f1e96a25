"""The made-up world: the same brains under a made-up clock."""
