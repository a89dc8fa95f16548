"""Counter-based randomness: a draw is a pure function of (seed, choice, position).

Philox4x32-10 from J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
There is no state to lose: whoever goes on with a stream at token 57 draws what the first worker would have drawn.
"""

from __future__ import annotations

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_DOMAIN = 0x6E706F64
"""Last counter word; keeps these draws apart from any other use of the same seed."""


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32: four 32-bit words for one 128-bit counter and 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits for output token `position` (from 0) of `choice`.

    `seed` is any integer; its lowest 64 bits count.
    """
    counter = (position & _MASK, (position >> 32) & _MASK, choice & _MASK, _DOMAIN)
    a, b, _, _ = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return float(((a << 32 | b) >> 11) * 2.0**-53)
