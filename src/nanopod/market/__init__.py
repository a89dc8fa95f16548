"""The market: time on nodes is bought and sold here. Decisions alone: no IO, no clock, integers throughout.

`exchange.Exchange` is the whole state of one SKU: events (events.py) go in, outcomes with ledger lines (outcome.py)
come out. Below it lie the book (side.py: grid.py finds orders, ladder.py says "surely not"), the matcher (match.py)
and who owns what (holding.py). Around it stand pure planners: procure.py buys what is missing and sells what is spare,
offers.py keeps a provider's time on sale, quota.py says what may run and who is warned, boundary.py in which order.
views.py is what anyone may see, audit.py what must always hold.

Inside this room time is counted in whole blocks since the Unix epoch and amounts in micro-dollars, both plain integers;
terms.py, shape.py and record.py cross the border to the model's seconds, schedules and money.
"""
