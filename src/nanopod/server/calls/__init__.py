"""Spawned calls: kept by the server, made through the gateway, answered whenever somebody asks."""
