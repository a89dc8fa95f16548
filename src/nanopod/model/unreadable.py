"""What reading JSON of strangers raises."""

from __future__ import annotations

from typing import Final

import msgspec

JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Text that is no JSON or does not fit, bytes that are no UTF-8, and values that are thousands of levels deep."""
