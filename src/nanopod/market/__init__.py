"""The market: time on nodes is bought and sold here. Decisions alone: no IO, no clock, integers throughout.

`Exchange` (exchange.py) is the whole state of one SKU; events go in, outcomes with ledger postings come out. Around it
stand pure planners: `procure` (buy what is missing, sell what is spare), `offers` (a provider's supply), `quota` and
`warnings` (what may run, and who must be told), `views` (what anyone may see of a book).

Inside this room time is counted in whole blocks since the Unix epoch and amounts in micro-dollars, both plain integers;
`shape.from_schedule` and `shape.to_schedule` cross the border to `model.schedule`.
"""
