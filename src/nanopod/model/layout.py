"""Where one cloud keeps its files: every path below (or derived from) one data directory. Pure; creates nothing.

```
<data>/nanopod.db               the store            <data>/pepper admin.key       secrets, mode 0600
<data>/lock up.json             owner, pids, URLs    <data>/logs/*.log             one per process
<data>/blobs/sha256/ab/abcd...  uploaded bundles     <data>/gateway/<id>/          meter spool, journal, tables
<data>/calls/ab/abcd...         large spawned calls  <data>/spills/<workspace>/     very large payloads, a day
<data>/node/instances/<id>/     one per instance     <data>/cache/{envs,models,storage,snapshots,benchmarks}/
<run>/{server,control,agent,gateway}.sock            unix sockets, directory mode 0700
```
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOCKET_PATH_BYTES_MAX: Final = 100
"""Linux refuses unix socket paths of 108 bytes and more; we stay below with room for the longest name."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one cloud. `data` should be absolute."""

    data: Path

    @property
    def database(self) -> Path:
        """The one database; a write that can be decided again need not wait for the disk, every other does."""
        return self.data / "nanopod.db"

    @property
    def pepper(self) -> Path:
        """Random bytes that API keys are hashed with; outside the database on purpose."""
        return self.data / "pepper"

    @property
    def admin_key(self) -> Path:
        """The first API key, mode 0600."""
        return self.data / "admin.key"

    @property
    def lock(self) -> Path:
        """Locked by the one `nanopod up` that owns this directory."""
        return self.data / "lock"

    @property
    def up_state(self) -> Path:
        """JSON of the running cloud: pids, URL, when it started."""
        return self.data / "up.json"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def blobs(self) -> Path:
        return self.data / "blobs"

    @property
    def faults(self) -> Path:
        """JSON of what is to fail on purpose, in a cloud for tests."""
        return self.data / "faults.json"

    @property
    def call_blobs(self) -> Path:
        """Payloads and results of spawned calls that are too large for the database."""
        return self.data / "calls"

    @property
    def gateway(self) -> Path:
        return self.data / "gateway"

    @property
    def instances(self) -> Path:
        return self.data / "node" / "instances"

    @property
    def environments(self) -> Path:
        return self.data / "cache" / "envs"

    @property
    def models(self) -> Path:
        return self.data / "cache" / "models"

    @property
    def storage(self) -> Path:
        """Files that were fetched for models, by their content."""
        return self.data / "cache" / "storage"

    @property
    def snapshots(self) -> Path:
        """What contexts wrote down for the next worker of their deployment, a directory for each endpoint."""
        return self.data / "cache" / "snapshots"

    @property
    def benchmarks(self) -> Path:
        """What benchmarks of functions showed, by code, image and kind of machine."""
        return self.data / "cache" / "benchmarks"

    @property
    def run(self) -> Path:
        """Directory of the unix sockets: below the data directory, or in /tmp where that path would be too long."""
        below = self.data / "run"
        if len(str(below).encode()) + len("/control.sock") <= SOCKET_PATH_BYTES_MAX:
            return below
        return Path("/tmp") / f"nanopod-{hashlib.sha256(str(self.data).encode()).hexdigest()[:20]}"

    @property
    def server_socket(self) -> Path:
        """HTTP of the management API."""
        return self.run / "server.sock"

    @property
    def control_socket(self) -> Path:
        """Message link, gateway to server."""
        return self.run / "control.sock"

    @property
    def agent_socket(self) -> Path:
        """Message link, node agent to server."""
        return self.run / "agent.sock"

    @property
    def gateway_socket(self) -> Path:
        """HTTP and worker links of the gateway, for processes of this machine."""
        return self.run / "gateway.sock"

    def blob(self, digest: str) -> Path:
        """The file of the blob with this SHA-256 (64 hex digits)."""
        assert len(digest) == 64 and digest.isalnum(), "a blob is named by the hex form of its SHA-256"
        return self.blobs / "sha256" / digest[:2] / digest
