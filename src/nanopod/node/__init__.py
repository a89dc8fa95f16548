"""A machine of the cloud: its agent, the shim of each instance, the worker inside, environments and engines.

| file | what |
| --- | --- |
| `agent` | the machine's one process that listens to the server; starts and stops instances |
| `machine` | the life of one instance as a pure table of states and events |
| `run` | the shim: parent of one worker, outlives the agent |
| `worker`, `runtime/` | what serves calls and requests inside an instance |
| `bundle`, `environment` | code and packages for a worker |
| `engines/` | what produces the answers of models |
"""
