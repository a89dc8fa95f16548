"""What a spawned call costs by the plan of its workspace, as rating will charge it: shown with the call at once."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

import msgspec

from nanopod.ledger.charges import exact
from nanopod.ledger.plans import Plan, find
from nanopod.ledger.rating import rounded
from nanopod.model.errors import Invalid
from nanopod.store.transaction import Transaction

_plan: Final = msgspec.json.Decoder(Plan).decode


class Prices:
    """The price lists of one transaction."""

    def __init__(self, read: Transaction) -> None:
        self._read = read
        self._plans: dict[str, Plan | None] = {}
        self._skus: dict[str, str] = {}

    def of(self, workspace_id: str, instance_id: str, run_us: int) -> int:
        """Micro-dollars of one call that succeeded on an instance after `run_us` microseconds; 0 without a plan.

        Rounded by itself, while an invoice rounds the sum: the two differ by less than a micro-dollar for each call.
        """
        plan = self._plan(workspace_id)
        if plan is None:
            return 0
        sku = self._sku(instance_id)
        attributes = {"sku": sku} if sku else {}
        total = _price(plan, "requests", 1, attributes)
        if run_us > 0:
            total += _price(plan, "compute_time", run_us, attributes)
        return rounded(total)

    def _plan(self, workspace_id: str) -> Plan | None:
        if workspace_id not in self._plans:
            found = self._read.workspace_plan(workspace_id)
            self._plans[workspace_id] = _plan(found[0]) if found is not None else None
        return self._plans[workspace_id]

    def _sku(self, instance_id: str) -> str:
        if instance_id and instance_id not in self._skus:
            found = self._read.instance(instance_id)
            self._skus[instance_id] = found.sku_id if found is not None else ""
        return self._skus.get(instance_id, "")


def _price(plan: Plan, meter: str, units: int, attributes: Mapping[str, str]) -> Fraction:
    try:
        return Fraction(exact(find(plan, meter, attributes).model, units, 1))
    except Invalid:
        return Fraction(0)
