"""A machine of the cloud: its agent, the shim of each instance, the worker inside, environments and engines.

| file | what |
| --- | --- |
| `agent` | the machine's one process that listens to the server; starts and stops instances |
| `machine` | the life of one instance as a pure table of states and events |
| `fleet`, `held` | all instances of the machine, brought from what is to what is wanted |
| `run`, `sessions` | the shim: parent of one worker and of further commands inside the instance, outlives the agent |
| `journal`, `logs` | what instances print: recorded by the shim, read in pages by the agent |
| `guest`, `guests`, `cloudinit`, `image` | machines: instances that run a start-up script instead of a worker |
| `execs`, `notices` | commands that callers run inside instances; what instances are told of their end |
| `worker`, `runtime/` | what serves calls and requests inside an instance |
| `bundle`, `environment` | code and packages for a worker |
| `engines/` | what produces the answers of models |
"""
