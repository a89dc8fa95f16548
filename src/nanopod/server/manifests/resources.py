"""Quantities, node selectors and affinities as requirements of hardware (`ImageSpec.query`, in wire units)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from nanopod.server.manifests.fields import Problems, Reader

Query = dict[str, Any]
"""`{column: {op: value}}`, all of which must hold; `any` holds alternatives, one of which must."""

GPUS_MAX: Final = 64
TERMS_MAX: Final = 256
"""Alternatives that one affinity may come to."""
MEBI: Final = 1 << 20
VENDORS: Final[Mapping[str, str]] = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd", "intel.com/gpu": "intel"}
CLASSES: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "H100_NVLINK_80GB": (("H100 SXM", "H100 NVL"), 80),
    "H100_PCIE": (("H100 PCIE",), 80),
    "A100_NVLINK_80GB": (("A100 SXM4", "A100 SXM"), 80),
    "A100_PCIE_80GB": (("A100 PCIE",), 80),
    "A100_NVLINK": (("A100 SXM4", "A100 SXM"), 40),
    "A100_PCIE_40GB": (("A100 PCIE",), 40),
    "A40": (("A40",), 48),
    "RTX_A6000": (("RTX A6000",), 48),
    "RTX_A5000": (("RTX A5000",), 24),
    "RTX_A4000": (("RTX A4000",), 16),
    "Tesla_V100_NVLINK": (("Tesla V100",), 16),
    "Quadro_RTX_5000": (("Q RTX 5000",), 16),
    "Quadro_RTX_4000": (("Q RTX 4000",), 8),
}
"""{value of `gpu.nvidia.com/class`: (names of the GPU in offers, memory in GB)}."""
_BINARY: Final[Mapping[str, int]] = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL: Final[Mapping[str, Decimal | int]] = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": 1, "k": 10**3, "M": 10**6, "G": 10**9,
    "T": 10**12, "P": 10**15, "E": 10**18,
}  # fmt: skip
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)")
OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_NO_VALUES: Final = ("Exists", "DoesNotExist")
_REPORTED: Final = 950
"""MiB that a GPU's driver reports at least for each GB of its name: a 48 GB card shows 46,068 MiB."""
_REPORTED_MOST: Final = 1075
_SIZES: Final = (4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 120, 128, 141, 180, 192, 256, 288)
"""GB that GPUs have by their names: between two of them there is none."""


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity (`500m`, `16Gi`, `1e3`) as a number. Raises `ValueError` saying what would do."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no quantity; write a number with a suffix such as 500m, 2, 16Gi or 16G")
    number, exponent, suffix = found.groups()
    try:
        value = Decimal(number + (exponent or ""))
    except InvalidOperation:
        raise ValueError(f"{text!r} is no quantity; write a number with a suffix such as 500m, 2, 16Gi") from None
    return value * (_BINARY.get(suffix or "") or _DECIMAL[suffix or ""])


def both(left: Query, right: Query) -> Query:
    """What meets both of two requirements."""
    made: Query = {}
    for column in [*left, *(name for name in right if name not in left)]:
        if column == "any":
            continue
        made[column] = dict(left.get(column, {}))
        for op, value in right.get(column, {}).items():
            if op not in made[column] or made[column][op] == value:
                made[column][op] = value
            elif op in ("gt", "gte"):
                made[column][op] = max(made[column][op], value)
            elif op in ("lt", "lte"):
                made[column][op] = min(made[column][op], value)
            elif op == "neq":
                made[column]["notin"] = [*made[column].get("notin", ()), value]
            elif op == "notin":
                made[column][op] = [*made[column][op], *(one for one in value if one not in made[column][op])]
            else:
                left_values, right_values = _listed(made[column].pop(op)), _listed(value)
                made[column]["in"] = [one for one in left_values if one in right_values]
    choices = [one["any"] for one in (left, right) if "any" in one]
    if len(choices) == 2:
        made["any"] = [both(one, other) for one in choices[0] for other in choices[1]]
    elif choices:
        made["any"] = choices[0]
    return made


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def either(options: Sequence[Query]) -> Query:
    """What meets one of several requirements."""
    if not options or any(not one for one in options):
        return {}
    return dict(options[0]) if len(options) == 1 else {"any": [dict(one) for one in options]}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a container asks for. Memory is in bytes; `vendor` is the GPUs', "" without any."""

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0
    vendor: str = ""

    @property
    def query(self) -> Query:
        """As requirements of a node. The vendors beside NVIDIA are named by a column that no node of another has."""
        made: Query = {}
        if self.cpus:
            made["cpu_cores"] = {"gte": self.cpus}
        if self.memory:
            made["cpu_ram"] = {"gte": self.memory // MEBI}
        if self.gpus:
            made["num_gpus"] = {"gte": self.gpus}
        if self.vendor == "amd":
            made["gpu_name"] = {"in": list(AMD)}
        elif self.vendor == "intel":
            made["gpu_name"] = {"in": list(INTEL)}
        return made


AMD: Final = (
    "InstinctMI50", "InstinctMI100", "InstinctMI210", "InstinctMI250X", "Instinct MI300X", "Instinct MI325X",
    "Instinct MI355X", "Radeon VII", "PRO V620",
)  # fmt: skip
INTEL: Final = ("Data Center GPU Max 1550", "Data Center GPU Max 1100", "Data Center GPU Flex 170", "Arc A770")


def read_resources(container: Reader) -> Asked:
    """`resources` of a container: what is requested, which is what is limited where nothing is requested."""
    inner = container.object("resources")
    if inner is None:
        return Asked()
    inner.quietly("claims")
    limits, requests = inner.object("limits"), inner.object("requests")
    inner.done()
    found: dict[str, Decimal] = {}
    vendor = ""
    for part in (limits, requests):  # a request after its limit: it is what counts
        for name in part.value if part is not None else ():
            assert part is not None, "it has names"
            if name in VENDORS or name in ("cpu", "memory", "ephemeral-storage"):
                value = _quantity_at(part, name)
                if value is not None:
                    found[name] = value
                if value and name in VENDORS:
                    vendor = _vendor(part, name, vendor, VENDORS[name])
            else:
                part.warn(name, "is ignored: nodes here know cpu, memory and GPUs of NVIDIA, AMD and Intel")
    if limits is not None and requests is not None:
        for name in ("cpu", "memory", *VENDORS):
            upper = _quantity_at(limits, name) if limits.has(name) else None
            if upper is not None and upper < found.get(name, upper):
                requests.error(name, f"{requests.text(name)} is above its limit {limits.text(name)}; lower it")
    gpus = sum((int(found[name]) for name in VENDORS if name in found), 0)
    return Asked(float(found.get("cpu", 0)), int(found.get("memory", 0)), gpus, vendor)


def _vendor(part: Reader, name: str, before: str, vendor: str) -> str:
    if before and before != vendor:
        part.error(name, f"a container has GPUs of one vendor; it asks for {before} as well")
    return vendor


def _quantity_at(part: Reader, name: str) -> Decimal | None:
    try:
        value = quantity(part.text(name))
    except ValueError as error:
        part.error(name, str(error))
        return None
    if value < 0:
        part.error(name, f"{part.text(name)} is negative; give 0 or more")
        return None
    if name in VENDORS and (value != int(value) or value > GPUS_MAX):
        part.error(name, f"{part.text(name)} is not possible; GPUs are counted in whole numbers up to {GPUS_MAX}")
        return None
    return value


# --- labels of nodes ---


def _gpu_class(value: str) -> Query:
    names, memory = CLASSES[value]
    return {"gpu_name": {"in": list(names)} if len(names) > 1 else {"eq": names[0]}, "gpu_ram": _memory(memory)}


def _memory(gigabytes: int) -> dict[str, int]:
    return {"gte": gigabytes * _REPORTED, "lte": gigabytes * _REPORTED_MOST}


def _column(column: str, number: bool = False) -> Callable[[str], Query]:
    return lambda value: {column: {"eq": int(value) if number else value}}


def _node_class(value: str) -> Query:
    return {"num_gpus": {"gte": 1} if value == "gpu" else {"eq": 0}}


def _product(value: str) -> Query:
    words = value.removeprefix("NVIDIA-").removeprefix("GeForce-").replace("-", " ")
    return {"gpu_name": {"eq": words}}


def _speed(value: str) -> Query:
    return {"inet_down": {"gte": int(value.rstrip("Gg")) * 1000}}


_ACCELERATORS: Final[Mapping[str, str]] = {
    "nvidia-tesla-t4": "Tesla T4", "nvidia-tesla-v100": "Tesla V100", "nvidia-tesla-p100": "Tesla P100",
    "nvidia-tesla-p4": "Tesla P4", "nvidia-tesla-a100": "A100 SXM4", "nvidia-a100-80gb": "A100 SXM4",
    "nvidia-l4": "L4", "nvidia-h100-80gb": "H100 SXM", "nvidia-h200-141gb": "H200",
}  # fmt: skip
EXACT: Final[Mapping[str, Callable[[str], Query]]] = {
    "gpu.nvidia.com/class": _gpu_class,
    "gpu.nvidia.com/model": _gpu_class,
    "gpu.nvidia.com/vram": lambda value: {"gpu_ram": _memory(int(value))},
    "gpu.nvidia.com/count": _column("num_gpus", number=True),
    "nvidia.com/gpu.count": _column("num_gpus", number=True),
    "nvidia.com/gpu.memory": _column("gpu_ram", number=True),
    "nvidia.com/gpu.product": _product,
    "cloud.google.com/gke-accelerator": lambda value: {"gpu_name": {"eq": _ACCELERATORS[value]}},
    "topology.kubernetes.io/region": _column("geolocation"),
    "node.coreweave.cloud/cpu": _column("cpu_name"),
    "node.coreweave.cloud/class": _node_class,
    "ethernet.coreweave.cloud/speed": _speed,
    "kubernetes.io/arch": _column("cpu_arch"),
}
"""Labels that say something about a node here, and what each value means."""
BOUNDS: Final[Mapping[str, tuple[str, int, int]]] = {
    "gpu.nvidia.com/vram": ("gpu_ram", _REPORTED_MOST, _REPORTED),
    "gpu.nvidia.com/count": ("num_gpus", 1, 1),
    "nvidia.com/gpu.count": ("num_gpus", 1, 1),
    "nvidia.com/gpu.memory": ("gpu_ram", 1, 1),
}
"""{label with a number: (column, units of the column above which Gt begins, below which Lt begins)}."""
_OF_GPUS: Final = ("gpu.nvidia.com/", "nvidia.com/gpu", "cloud.google.com/gke-accelerator")
_ALWAYS: Final[Mapping[str, str]] = {"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"}


def read_placement(pod: Reader) -> Query:
    """`nodeSelector`, `affinity` and `tolerations` of a pod as requirements."""
    query: Query = {}
    selector = pod.object("nodeSelector")
    for key in selector.value if selector is not None else ():
        assert selector is not None, "it has keys"
        value = selector.text(key)
        query = both(query, _expression(pod.problems, selector.at(key), key, "In", [value]))
    for one in pod.objects("tolerations"):
        one.quietly(*one.value)  # every node may be used; none has taints
    affinity = pod.object("affinity")
    if affinity is None:
        return query
    affinity.ignored("pods are not placed by other pods here", "podAffinity", "podAntiAffinity")
    node = affinity.object("nodeAffinity")
    affinity.done()
    if node is None:
        return query
    node.ignored("the cheapest node that fits is taken", "preferredDuringSchedulingIgnoredDuringExecution")
    required = node.object("requiredDuringSchedulingIgnoredDuringExecution")
    node.done()
    if required is None:
        return query
    terms = required.objects("nodeSelectorTerms")
    required.done()
    if not terms:
        required.error("nodeSelectorTerms", "is missing or empty; give at least one term with matchExpressions")
        return query
    return both(query, _limited(required, either([_term(one) for one in terms])))


def _limited(required: Reader, query: Query) -> Query:
    if len(query.get("any", ())) > TERMS_MAX:
        required.error("nodeSelectorTerms", f"come to more than {TERMS_MAX} alternatives; ask for less")
        return {}
    return query


def _term(term: Reader) -> Query:
    """All expressions of a term."""
    made: Query = {}
    for expression in term.objects("matchExpressions"):
        key = expression.text("key", required=True, fix="name the label")
        operator = expression.text("operator", one_of=OPERATORS, required=True, fix=f"one of {', '.join(OPERATORS)}")
        values = list(expression.texts("values"))
        expression.done()
        if key and operator and _fitting_values(expression, operator, values):
            made = both(made, _expression(term.problems, expression.path, key, operator, values))
    term.ignored("nodes have no such fields here", "matchFields")
    term.done()
    return made


def _fitting_values(expression: Reader, operator: str, values: list[str]) -> bool:
    if operator in _NO_VALUES and values:
        expression.error("values", f"{operator} takes none; leave them out")
        return False
    if operator in ("In", "NotIn") and not values:
        expression.error("values", f"{operator} needs at least one")
        return False
    if operator in ("Gt", "Lt") and not (len(values) == 1 and re.fullmatch(r"-?\d{1,12}", values[0])):
        expression.error("values", f"{operator} needs one whole number, in quotes")
        return False
    return True


def _expression(problems: Problems, path: str, key: str, operator: str, values: list[str]) -> Query:
    """One expression on a label."""
    of_gpus = key.startswith(_OF_GPUS)
    if operator in _NO_VALUES:
        if of_gpus:
            return {"num_gpus": {"gte": 1} if operator == "Exists" else {"eq": 0}}
        if key not in EXACT and key not in _ALWAYS:
            problems.warn(path, f"is ignored: nodes here have no label {key!r}")
        elif operator == "DoesNotExist":
            problems.error(path, f"every node has {key}; leave the expression out, or no node can be taken")
        return {}
    if operator in ("Gt", "Lt"):
        if key not in BOUNDS:
            problems.warn(path, f"is ignored: {key!r} is no number of a node here; {', '.join(BOUNDS)} are")
            return {}
        column, above, below = BOUNDS[key]
        number = int(values[0])
        if column == "gpu_ram" and above != 1:
            if operator == "Gt":
                return {column: {"gte": min((one for one in _SIZES if one > number), default=number + 1) * below}}
            return {column: {"lte": max((one for one in _SIZES if one < number), default=0) * above}}
        return {column: {"gt" if operator == "Gt" else "lt": number}}
    if key in _ALWAYS:
        if (_ALWAYS[key] in values) != (operator == "In"):
            problems.error(path, f"{key}: nodes here run {_ALWAYS[key]}; leave the expression out")
        return {}
    if key not in EXACT:
        problems.warn(path, f"is ignored: nodes here have no label {key!r}; known are {', '.join(EXACT)}")
        return {}
    wanted: list[Query] = []
    for value in values:
        try:
            wanted.append(EXACT[key](value))
        except KeyError:
            known = ", ".join(CLASSES if key.startswith("gpu.") else _ACCELERATORS)
            problems.error(path, f"{key}: {value!r} is not known; choose one of {known}")
        except ValueError:
            problems.error(path, f"{key}: {value!r} must be a whole number")
    if operator == "In":
        return _merged(wanted)
    made: Query = {}
    for one in wanted:
        made = both(made, _opposite(one))
    return made


def _merged(options: list[Query]) -> Query:
    """One of several, as one condition where all are about the value of one column."""
    columns = {tuple(one) for one in options}
    if len(options) > 1 and len(columns) == 1 and len(next(iter(columns))) == 1:
        column = next(iter(columns))[0]
        if all(set(one[column]) == {"eq"} for one in options):
            return {column: {"in": [one[column]["eq"] for one in options]}}
    return either(options)


_OPPOSITES: Final = {"eq": "neq", "in": "notin", "gte": "lt", "lte": "gt", "gt": "lte", "lt": "gte", "neq": "eq"}


def _opposite(query: Query) -> Query:
    """What does not meet a requirement that has no alternatives: one of its conditions fails."""
    names = _listed(next(iter(query.get("gpu_name", {"in": []}).values())))
    if names and sum(1 for one, _ in CLASSES.values() if set(one) & set(names)) <= 1:
        return {"gpu_name": {"notin": names}}  # no other class is of this GPU: its memory need not be asked
    return either(
        [{column: {_OPPOSITES[op]: value}} for column, conditions in query.items() for op, value in conditions.items()]
    )
