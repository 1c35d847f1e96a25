"""How bytes move: the raw HTTP client of the hot path, server-sent events, the guarded fetcher."""
