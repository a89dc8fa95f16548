"""The ledger: accounts and immutable transfers, holds, rating, plans, statements and invoices.

Pure: `now` and ids are arguments, every amount is an integer number of micro-dollars. `store/ledger.py` keeps the same
books in a database by the same rules (`rules.py`).
"""
