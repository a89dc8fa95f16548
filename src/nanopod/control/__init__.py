"""The loop: reconcilers that bring what is closer to what is wanted, each on a signal and on a period.

| file | what |
| --- | --- |
| `ports` | what this room needs from others, as protocols |
| `live` | what gateways and agents said since this process started |
| `driver` | claims what is due, runs observe, plan, commit |
| `endpoint`, `deployment`, `instance`, `capacity` | one reconciler per noun |
| `tables`, `wanted` | what gateways and agents are told |
"""
