"""The genuine client deploys `plain` and asks who serves it."""

import asyncio
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import genuine  # noqa: F401
import plain

plain.app.ensure_ready()
print(json.dumps({"id": plain.app._inner.deployment.id, "answer": asyncio.run(plain.where(1))}))
