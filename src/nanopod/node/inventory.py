"""What this machine has: processors, memory, disk and GPUs, as the kernel and the driver say, never more."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nanopod.model.capacity import Node, Sku
from nanopod.model.ids import base62

GIB: Final = 1 << 30
STORAGE_STEP: Final = 100 * 10**9
SMI_S_MAX: Final = 5.0
SLOTS_MIN: Final = 4
SLOTS_PER_CPU: Final = 8
MEMORY_PER_SLOT: Final = 512 << 20
REGION: Final = "local"
REGION_CHARS_MAX: Final = 64
_OFFERED: Final = (
    (r"^(A100|A800)-SXM4-.*", r"\1 SXM4"),
    (r"^(A100|A800|H100|H800)[ -](\d+GB )?(?i:PCIe).*", r"\1 PCIE"),
    (r"^(H100|H800) \d+GB HBM.*", r"\1 SXM"),
    (r"^GH200 .*", "GH200 SXM"),
    (r"^(Tesla )?(V100|P100)-.*", r"Tesla \2"),
    (r"^A10G$", "A10g"),
    (r"^Quadro RTX", "Q RTX"),
    (r"^TITAN RTX$", "Titan RTX"),
    (r"^(RTX \d+) Ada Generation$", r"\1Ada"),
    (r"^(RTX \d+) Ti SUPER", r"\1S Ti"),
    (r"^(RTX \d+) SUPER", r"\1S"),
    (r"^(GTX \d+) SUPER", r"\1 S"),
    (r"^RTX 4090 D$", "RTX 4090D"),
    (r" Laptop GPU$", " laptop"),
    (r"^(RTX PRO \d+) Blackwell", r"\1"),
    (r" Max-Q Workstation Edition$", " Max-Q"),
    (r" Workstation Edition$", " WS"),
    (r" Server Edition$", " S"),
)
"""The driver's names of GPUs, and what offers call them."""
_CGROUP_MEMORY: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_CPU: Final = "/sys/fs/cgroup/cpu.max"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One usable accelerator. `memory` is in bytes."""

    name: str
    memory: int
    uuid: str = ""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """A machine's parts. Memory and disk are in bytes."""

    cpus: int
    memory: int
    storage: int
    gpus: tuple[Gpu, ...] = ()
    region: str = REGION
    facts: dict[str, Any] = field(default_factory=dict)

    def sku(self) -> Sku:
        """The hardware kind; machines with equal properties get the same id."""
        gpu = self.gpus[0] if self.gpus else None
        count = sum(1 for known in self.gpus if gpu is not None and known.name == gpu.name)
        name = gpu.name if gpu is not None else "none"
        alias = f"{count}x-{name.lower().replace(' ', '-')}" if gpu is not None else f"cpu-{self.cpus}x"
        sku = Sku(
            "", alias, accelerator=name, num_accelerators=count, accelerator_memory=gpu.memory if gpu else 0,
            num_vcpus=self.cpus, memory=self.memory // GIB * GIB,
            local_storage=self.storage // STORAGE_STEP * STORAGE_STEP,
            region=self.region, availability_zone=f"{self.region}-a",
        )  # fmt: skip
        digest = hashlib.sha256(json.dumps(asdict(sku), sort_keys=True).encode()).digest()
        named = {**asdict(sku), "sku_id": "isku_" + base62(digest, 21)}
        return Sku(**named)

    def slots(self) -> int:
        """How many worker processes may run at once: most of them wait, so memory and not cores is what they share."""
        return max(SLOTS_MIN, min(SLOTS_PER_CPU * self.cpus, self.memory // MEMORY_PER_SLOT))


def node_of(node_id: str, machine_id: str, inventory: Inventory) -> Node:
    """The machine as one node."""
    return Node(node_id, machine_id, inventory.sku().sku_id, inventory.slots())


def look(data: Path) -> Inventory:
    """Look at this machine; `data` is where instances are kept."""
    cpus, memory = _cpus(), _memory()
    gpus = find_gpus()
    facts: dict[str, Any] = {
        "cpu_name": _cpu_name(),
        "cpu_cores": os.cpu_count() or 1,
        "cpu_arch": platform.machine(),
        "os_version": platform.release(),
        "hostname": platform.node(),
        "python": platform.python_version(),
        "gpus": [asdict(gpu) for gpu in gpus],
        "isolation": ["process"],
    }
    try:
        storage = shutil.disk_usage(data).total
    except OSError:
        storage = 0
    return Inventory(cpus, memory, storage, gpus, _region(), {key: value for key, value in facts.items() if value})


def _region() -> str:
    """Where its operator says that it stands (`NANOPOD_REGION`)."""
    return os.environ.get("NANOPOD_REGION", "").strip()[:REGION_CHARS_MAX] or REGION


def memory_free() -> int:
    """Bytes that processes could still get."""
    return _meminfo("MemAvailable")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _meminfo(name: str) -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _memory() -> int:
    limits = [int(text) for path in _CGROUP_MEMORY if (text := _read(path)).isdigit()]
    return min([_meminfo("MemTotal"), *limits])


def _cpus() -> int:
    """The smaller of what the scheduler allows and what the control group's quota is worth."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CGROUP_CPU).partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return max(1, min(allowed, int(quota) // int(period)))
    return max(1, allowed)


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return ""


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs of `nvidia-smi --query-gpu=name,memory.total,uuid,driver_version --format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[1].isdigit():
            found.append(Gpu(offered(parts[0]), int(parts[1]) << 20, parts[2], parts[3]))
    return tuple(found)


def offered(name: str) -> str:
    """The name that offers and requirements have for a GPU: `NVIDIA GeForce RTX 4090` is an `RTX 4090`."""
    for prefix in ("NVIDIA ", "GeForce "):
        name = name.removeprefix(prefix)
    for pattern, short in _OFFERED:
        name = re.sub(pattern, short, name)
    return name


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, as its driver names them."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    query = "--query-gpu=name,memory.total,uuid,driver_version"
    try:
        done = subprocess.run(
            [smi, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_S_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_smi(done.stdout) if done.returncode == 0 else ()
