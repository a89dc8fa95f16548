"""The words every room shares: plain values, their errors, their wire forms. No IO; depends on no other room.

| file | words |
| --- | --- |
| `errors` | the one error tree |
| `ids` | prefixed ids, API keys' shape |
| `money` | `Money`, `Rate` (integers, never floats) |
| `schedule` | `Window`, `Schedule` (how many nodes, minute by minute) |
| `capacity` | `Sku`, `Capacity`, `Node` |
| `endpoint` | `EndpointSpec` and its parts, `Instance`, phases, `Failure` |
| `codec` | Python values to bytes and back, exceptions included |
| `calls` | frames between SDK, gateway and worker (one function call) |
| `frames` | frames of the worker link |
| `websocket` | RFC 6455 framing without IO |
| `wire` | messages between gateway, server and node agent |
"""
