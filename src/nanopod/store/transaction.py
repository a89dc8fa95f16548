"""What a function given to the store may do: the rows of all nouns on one connection."""

from __future__ import annotations

from nanopod.store.activations import ActivationRows
from nanopod.store.applied import AppliedRows
from nanopod.store.automation import AutomationRows
from nanopod.store.calls import CallRows
from nanopod.store.catalogue import CatalogueRows
from nanopod.store.chain import ChainRows
from nanopod.store.charges import ChargeRows
from nanopod.store.dicts import DictRows
from nanopod.store.endpoints import EndpointRows
from nanopod.store.hooks import WebhookRows
from nanopod.store.keys import KeyRows
from nanopod.store.ledger import LedgerRows
from nanopod.store.market import MarketRows
from nanopod.store.nodes import NodeRows
from nanopod.store.notices import NoticeRows
from nanopod.store.queues import QueueRows
from nanopod.store.schedules import ScheduleRows
from nanopod.store.secrets import SecretRows
from nanopod.store.trade import TradeRows
from nanopod.store.usage import UsageRows
from nanopod.store.vast import VastRows
from nanopod.store.volumes import VolumeRows


class Transaction(
    ActivationRows, AppliedRows, AutomationRows, CallRows, CatalogueRows, ChainRows, ChargeRows, DictRows, EndpointRows,
    KeyRows, LedgerRows, MarketRows, NodeRows, NoticeRows, QueueRows, ScheduleRows, SecretRows, TradeRows, UsageRows,
    VastRows, VolumeRows, WebhookRows,
):  # fmt: skip
    """One transaction. It ends with the function it was given to; never keep it."""
