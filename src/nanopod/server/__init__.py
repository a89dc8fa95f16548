"""The server process (API, reconcilers, store, message links) and the supervisor of `nanopod up`.

`assemble` is the only place that joins the ports of `control` to adapters.
"""
