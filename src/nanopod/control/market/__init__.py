"""The market at work: one writer of every book, its rows and postings, and the clock that moves it on.

`Desk` is used inside write transactions only; `Books` is the copy that the event loop reads; `Ticker` passes the
boundaries of blocks. What is decided comes from the pure room `nanopod.market`.
"""
