"""Names for import lines of user files: the query language of hardware requirements lives in `nanopod.data.query`."""
