"""The front door: carries every request from a caller to a worker and back; decides nothing and waits for nobody."""
