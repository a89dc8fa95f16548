"""What a user's program holds of nanopod: the SDK, the query language, the link to a gateway, and the command line.

| file | what |
| --- | --- |
| `sdk` | `Deployment`: register functions, make them ready, call them |
| `function` | a remote function: binds arguments here, runs there |
| `image`, `autoscaling`, `query`, `columns`, `gpus` | what a deployment says about itself |
| `fingerprint`, `bundle`, `source` | what of its code travels, and whether it changed |
| `link`, `connection`, `background` | calls over one websocket, from any event loop or none |
| `api`, `config`, `local` | the management API, where it is, and a cloud of one's own when there is none |
| `cli` | the verbs of the `nanopod` command |

Importing this room is cheap: asyncio, msgspec, ssl and http are imported when something is first called.
"""
