"""The options of `@app.remote`: which there are, what they may be, and what they become."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from nanopod.client.marks import Batch, Cron, Period, Retries, web_spec
from nanopod.model import registry
from nanopod.model.endpoint import CALL_TIMEOUT_S, QUEUE_TIMEOUT_S, FunctionSpec
from nanopod.model.errors import Invalid

PARALLEL_REQUESTS: Final = 10
"""What `allow_parallel_requests=True` means."""
REMOTE_OPTIONS: Final = (
    "benchmark_dataset", "benchmark_generator", "benchmark_runs", "benchmark_weight", "workload_calculator",
    "allow_parallel_requests", "max_queue_time", "concurrency", "timeout", "queue_timeout", "idempotent", "priority",
    "deadline", "retries", "batch", "cache_ttl", "schedule", "web", "auth", "on_preempt", "kill_on_cancel",
)  # fmt: skip
_SECONDS_MAX: Final = 7 * 86_400


@dataclass(slots=True)
class Options:
    """What `@app.remote(...)` was given. Times in seconds; `concurrency` None: the default of its kind."""

    concurrency: int | None = None
    idempotent: bool = False
    timeout: float = CALL_TIMEOUT_S
    queue_timeout: float = QUEUE_TIMEOUT_S
    max_queue_time: float = 30.0
    priority: int = 0
    deadline: float | None = None
    """Seconds from the moment of the call within which it must start; None: no deadline of its own."""
    workload: Callable[..., float] | None = None
    retries: Retries | None = None
    batch: Batch | None = None
    cache_ttl: float | None = None
    schedule: Cron | Period | None = None
    web: str | None = None
    auth: str = "key"
    on_preempt: str = "fail"
    kill_on_cancel: bool = False
    wants_payload: bool = False
    warned: bool = False

    def check(self, name: str) -> None:
        """Raise `Invalid` for an impossible option."""
        if self.concurrency is not None and (type(self.concurrency) is not int or not 1 <= self.concurrency <= 10_000):
            raise Invalid(f"{name}: concurrency is from 1 to 10000, not {self.concurrency!r}", field="concurrency")
        for field in ("timeout", "queue_timeout", "max_queue_time", "deadline", "cache_ttl"):
            value = getattr(self, field)
            if value is None and field in ("deadline", "cache_ttl"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _SECONDS_MAX:
                raise Invalid(
                    f"{name}: {field} is a number of seconds above 0 (at most a week), not {value!r}", field=field
                )
        if type(self.priority) is not int or not -1000 <= self.priority <= 1000:
            raise Invalid(
                f"{name}: priority is a whole number from -1000 to 1000, not {self.priority!r}", field="priority"
            )
        if self.workload is not None and not callable(self.workload):
            raise Invalid(f"{name}: workload_calculator is a function of the arguments", field="workload_calculator")
        for field, kinds, example in (
            ("retries", Retries, "Retries(3)"),
            ("batch", Batch, "Batch(max_size=16)"),
            ("schedule", (Cron, Period), 'Cron("0 * * * *") or Period(60)'),
        ):
            value = getattr(self, field)
            if value is not None and not isinstance(value, cast(Any, kinds)):
                raise Invalid(f"{name}: {field} is {example}, not {value!r}", field=field)
        if self.cache_ttl is not None and not self.idempotent:
            raise Invalid(f"{name}: cache_ttl keeps results of functions with idempotent=True only", field="cache_ttl")
        if self.on_preempt not in ("fail", "retry"):
            raise Invalid(f'{name}: on_preempt is "fail" or "retry", not {self.on_preempt!r}', field="on_preempt")
        if self.on_preempt == "retry" and not self.idempotent:
            raise Invalid(
                f'{name}: on_preempt="retry" runs a call again, which needs idempotent=True', field="on_preempt"
            )
        if self.web is not None:
            web_spec(name, self.web, self.auth)

    def spec(self, name: str, kind: str, default_concurrency: int, *, benchmark: bool) -> FunctionSpec:
        """The plain value that travels."""
        runs = self.concurrency or (default_concurrency if kind in ("async", "async_generator") else 1)
        batch = self.batch
        return FunctionSpec(
            name=name,
            kind=cast(Any, kind),
            # What counts at the gateway is calls, and a batch holds several.
            concurrency=runs * batch.max_size if batch is not None else runs,
            idempotent=self.idempotent,
            timeout_s=float(self.timeout),
            queue_timeout_s=float(self.queue_timeout),
            max_queue_time_s=float(self.max_queue_time),
            benchmark=benchmark,
            batch_max=batch.max_size if batch is not None else 0,
            batch_wait_ms=float(batch.wait_ms) if batch is not None else 0.0,
            retries=self.retries.spec() if self.retries is not None else None,
            on_preempt=cast(Any, self.on_preempt),
            kill_on_cancel=self.kill_on_cancel,
            cache_ttl_s=float(self.cache_ttl) if self.cache_ttl is not None else None,
            priority=self.priority,
            schedule=self.schedule.spec() if self.schedule is not None else None,
            web=web_spec(name, self.web, self.auth) if self.web is not None else None,
        )


def read_options(
    function: Callable[..., Any], given: dict[str, Any], kind: str, name: str = ""
) -> tuple[registry.RegisteredFunction, Options]:
    """A function's registration (its spec is still bare) and its options. Raises `Invalid`, or TypeError for a name."""
    name = name or function.__name__
    for option in given:
        if option not in REMOTE_OPTIONS:
            near = difflib.get_close_matches(option, REMOTE_OPTIONS, 1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(REMOTE_OPTIONS)}"
            raise TypeError(f"@app.remote of {name} has no option {option!r}; {advice}")
    parallel = bool(given.get("allow_parallel_requests"))
    skipped = ("concurrency", "workload_calculator", "allow_parallel_requests")
    options = Options(
        concurrency=given.get("concurrency", PARALLEL_REQUESTS if parallel else None),
        workload=given.get("workload_calculator"),
        **{
            key: value
            for key, value in given.items()
            if value is not None and key not in skipped and not key.startswith("benchmark_")
        },
    )
    options.check(name)
    if options.batch is not None and "generator" in kind:
        raise Invalid(f"{name}: a generator cannot be batched; return a list of results instead", field="batch")
    dataset, generator, runs, weight = (
        given.get(f"benchmark_{word}") for word in ("dataset", "generator", "runs", "weight")
    )
    if dataset is not None and not (isinstance(dataset, list) and all(isinstance(row, dict) for row in dataset)):
        raise Invalid(f"{name}: benchmark_dataset is a list of dicts of arguments", field="benchmark_dataset")
    if generator is not None and not callable(generator):
        raise Invalid(f"{name}: benchmark_generator is a function that makes a dict", field="benchmark_generator")
    if runs is not None and (type(runs) is not int or not 1 <= runs <= 1000):
        raise Invalid(f"{name}: benchmark_runs is from 1 to 1000, not {runs!r}", field="benchmark_runs")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0):
        raise Invalid(f"{name}: benchmark_weight is a number above 0, not {weight!r}", field="benchmark_weight")
    spec = FunctionSpec(name=name, kind=cast(Any, kind))
    registered = registry.RegisteredFunction(
        spec, function, dataset, generator, runs or 10, options.workload, float(weight or 1.0)
    )
    return registered, options
