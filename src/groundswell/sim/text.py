"""The emulated text: a token is a hash of all tokens before it.

A model is its fingerprint: two fingerprints write different texts for the same prompt. Whoever continues a
text is handed the tokens so far and hashes *them*, so a resume that skips, repeats or changes one token, or
goes on with another model, writes something else from there on, and the client of the simulation sees it.
"""

from __future__ import annotations

from collections.abc import Iterable

from groundswell.core.chance import mix, name_hash


def state_after(prompt: int, fingerprint: str, tokens: Iterable[int]) -> int:
    """What a model knows after the prompt (any 64 bits) and these tokens."""
    state = mix(prompt ^ name_hash(fingerprint))
    for token in tokens:
        state = mix(state ^ token)
    return state


def token_of(state: int) -> int:
    """The next token: 48 bits of the state, so that hashing it in moves the state on."""
    return state >> 16


def text_of(prompt: int, fingerprint: str, length: int) -> list[int]:
    """The whole text, as a run without any trouble would write it."""
    state, tokens = state_after(prompt, fingerprint, ()), []
    for _ in range(length):
        tokens.append(token_of(state))
        state = mix(state ^ tokens[-1])
    return tokens
