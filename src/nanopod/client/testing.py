"""`app.test()`: a deployment in a private cloud on this machine, where things can be broken on purpose.

```python
with app.test() as t:                    # or, in a test module: t = app.test().fixture()
    assert asyncio.run(square(5)) == 25
    t.preempt()                          # a worker is told that its time is over, and goes
    t.slow(0.2)                          # what this program sends arrives 0.2 s later
    t.drop()                             # its link is cut; it dials again
    t.fail(Model)                        # workers that start from now on fail to enter this context
    t.heal()
```
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from nanopod.client import local
from nanopod.client.api import Api
from nanopod.model.errors import Conflict, Invalid

if TYPE_CHECKING:
    from nanopod.client.sdk import Deployment, Mode, Route

WORKER_S_MAX: Final = 60.0
"""How long a fault waits for a worker that it can hit."""
PAUSE_S: Final = (0.02, 0.5)
_VARIABLES: Final = ("NANOPOD_URL", "NANOPOD_API_KEY")


class Trial:
    """A deployment under test. Its cloud lives from `__enter__` to `__exit__`; nothing of it is left afterwards.

    Meanwhile `NANOPOD_URL` and `NANOPOD_API_KEY` of this program mean that cloud.
    """

    __test__ = False

    def __init__(self, app: Deployment, *, start: bool = True) -> None:
        self.app = app
        self._start = start
        self._cloud: local.LocalCloud | None = None
        self._before: tuple[Mode | None, Route | None, Any, Any] | None = None
        self._variables: dict[str, str | None] = {}

    # --- its life ---

    def __enter__(self) -> Trial:
        """Start the cloud and deploy. Raises `DeploymentFailed` when either does not work."""
        if self._cloud is not None:
            raise Invalid("this test cloud runs already; call app.test() for each", field="test")
        self._cloud = cloud = local.start_private("--faults")
        app = self.app
        self._before = (app._mode, app._route, app._cloud, app._trial)
        self._variables = {name: os.environ.get(name) for name in _VARIABLES}
        os.environ.update(NANOPOD_URL=cloud.target.url, NANOPOD_API_KEY=cloud.target.key)
        app._mode, app._route, app._cloud = "local", None, None
        app._trial = cloud
        try:
            if self._start:
                app.ensure_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the cloud and forget it. Idempotent."""
        cloud, self._cloud = self._cloud, None
        if cloud is None:
            return
        if self._before is not None:
            self.app._mode, self.app._route, self.app._cloud, self.app._trial = self._before
        for name, value in self._variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        local.end_private(cloud)

    def fixture(self, **options: Any) -> Any:
        """A pytest fixture that gives this test cloud; `options` as of `pytest.fixture` (default: once per module)."""
        import pytest

        def trial() -> Iterator[Trial]:
            with self as running:
                yield running

        return pytest.fixture(**{"scope": "module", **options})(trial)

    # --- what is there ---

    @property
    def url(self) -> str:
        """Where the cloud listens."""
        return self._running.target.url

    @property
    def api(self) -> Api:
        """The management API of the cloud, with its admin key."""
        return Api(self._running.target)

    def workers(self) -> list[str]:
        """Ids of the workers that are ready."""
        rows = self.api.get(f"/v1/endpoints/{self.app.name}:{self.app.tag}").get("instances") or []
        return [str(row["id"]) for row in rows if row.get("ready")]

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until a worker is ready. Raises `DeploymentFailed`."""
        self.app.ensure_ready(wait=True, timeout=timeout)

    # --- faults ---

    def preempt(self, worker: str = "", notice: float = 1.0) -> str:
        """Take a worker away (one that is ready, unless named), `notice` seconds after it was told; its id."""
        return self._hit("preempt", worker, notice)

    def kill(self, worker: str = "") -> str:
        """Kill a worker without notice; its id."""
        return self._hit("kill", worker)

    def slow(self, seconds: float) -> None:
        """What callers send reaches the cloud so much later; 0: at once again."""
        self._break(kind="slow", seconds=seconds)

    def drop(self, worker: str | None = None) -> None:
        """Cut the links of callers; or that of a worker ("": one that is ready). Both dial again by themselves."""
        if worker is None:
            self._break(kind="drop_link")
        else:
            self._hit("drop_link", worker)

    def fail(self, context: type | str) -> None:
        """Have workers that start from now on fail to enter a context; those that are there go on."""
        self._break(kind="fail_context", context=context if isinstance(context, str) else context.__name__)

    def heal(self) -> None:
        """No fault from now on; workers that were taken stay gone."""
        self._break(kind="clear")

    def _hit(self, kind: str, worker: str, seconds: float | None = None) -> str:
        wish = {"kind": kind, "seconds": seconds}
        wish |= {"instance_id": worker} if worker else {"endpoint": f"{self.app.name}:{self.app.tag}"}
        limit, pause_s = time.monotonic() + WORKER_S_MAX, PAUSE_S[0]
        while True:
            try:
                return str(self._break(**wish)["instance_ids"][0])
            except Conflict:
                # No worker is ready just now: one is on its way, or scaled to zero.
                if time.monotonic() > limit:
                    raise
            time.sleep(pause_s)
            pause_s = min(PAUSE_S[1], pause_s * 1.5)

    def _break(self, **wish: Any) -> dict[str, Any]:
        return self.api.post("/v1/faults", {name: value for name, value in wish.items() if value is not None})

    @property
    def _running(self) -> local.LocalCloud:
        if self._cloud is None:
            raise Invalid("this test cloud does not run: use it inside `with app.test() as t:`", field="test")
        return self._cloud
