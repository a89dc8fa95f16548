"""The invoice of a month of a workspace, made from the books: every line names the transfers that it sums up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from nanopod.ledger.chart import ORDERS
from nanopod.ledger.invoices import Invoice, Label, draft, plain_label
from nanopod.ledger.plans import METERS
from nanopod.ledger.transfers import Entry
from nanopod.store.charges import RatedLine

ISSUER: Final = "NANOPOD"
BOUGHT: Final = "market_cost"
"""The meter of time that was bought: its orders were paid when they filled."""
_WORDS: Final = {
    "requests": "Requests",
    "input_tokens": "Input tokens",
    "cached_input_tokens": "Cached input tokens",
    "output_tokens": "Output tokens",
    "compute_time": "Compute time",
    "node_minutes": "Node minutes",
}


def labels(lines: Iterable[RatedLine], skus: Mapping[str, str]) -> Callable[[Entry], Label]:
    """How entries are shown. Quantities come from the rated lines: a line may be cheaper than a micro-dollar at times,
    so not every unit has a transfer. `skus` gives the alias of each SKU."""
    units: dict[tuple[str, str, str], int] = {}
    for line in lines:
        known: dict[str, str] = msgspec.json.decode(line.attributes)
        at = (line.meter, known.get("sku", ""), known.get("model", ""))
        units[at] = units.get(at, 0) + line.units

    def label(entry: Entry) -> Label:
        ref = entry.transfer.ref.split("/", 4)
        if entry.transfer.code in ("buy", "sell") or len(ref) != 5 or ref[1] not in METERS:
            plain = plain_label(entry)
            return msgspec.structs.replace(plain, meter=BOUGHT) if ORDERS in (entry.debit, entry.credit) else plain
        _, meter, _, sku, model = ref
        name = " on ".join(word for word in (model, skus.get(sku, sku)) if word)
        words = _WORDS.get(meter, meter)
        # All of a line's quantity goes to its first entry: entries with equal labels are added up.
        quantity = units.pop((meter, sku, model), 0)
        return Label(f"{words}: {name}" if name else words, sku, meter, METERS[meter], quantity)

    return label


def make_draft(
    invoice_id: str,
    workspace_id: str,
    month: str,
    entries: Sequence[Entry],
    lines: Iterable[RatedLine],
    skus: Mapping[str, str],
    *,
    tax_bps: int = 0,
) -> Invoice:
    """The draft of a month. Raises `Invalid`."""
    return draft(invoice_id, ISSUER, workspace_id, month, entries, label=labels(lines, skus), tax_bps=tax_bps)
