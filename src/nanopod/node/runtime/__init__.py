"""Inside an instance: the link to the gateway, remote calls, contexts, benchmark, and the host of an engine."""
