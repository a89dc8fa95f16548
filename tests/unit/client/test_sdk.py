"""What a deployment says of itself, and what it refuses, before any server is asked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import nanopod
from nanopod import Deployment
from nanopod.client import config, deploying
from nanopod.client.autoscaling import checked, scale_spec
from nanopod.client.calling import workload
from nanopod.client.cli import COMMANDS, run, serve, served
from nanopod.client.image import Image
from nanopod.data.query import gpu_ram
from nanopod.model.errors import Invalid, NotReady, Unauthenticated


@pytest.fixture(autouse=True)
def _no_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "NANOPOD_URL", "VAST_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def made(**options: Any) -> Deployment:
    app = Deployment(name="app", **options)
    app.image("python")
    app.configure_autoscaling(cold_workers=1)
    return app


# --- names, options, messages ---


def test_unknown_options_are_warned_about_with_the_nearest() -> None:
    with pytest.warns(UserWarning, match="did you mean version_label"):
        Deployment(name="a", versoin_label="x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_worker": 1}, "did you mean max_workers"),
        ({"min_containers": 1}, "did you mean min_scale"),
        ({"stable_window": 5}, "stable_window is from 6 to 3600"),
        ({"stable_window": 60.5}, "stable_window is a whole number"),
        ({"profile": "kpa"}, "profile is one of auto, vast, knative, coreweave"),
        ({"metrics": ["load", "gpu"]}, "metrics is one of concurrency"),
        ({"max_workers": 1.5}, "whole number"),
        ({"target_util": 2}, "from 0.01 to 1"),
        ({"min_load": "1"}, "is a number"),
        ({"cold_mult": float("nan")}, "is a number"),
    ],
)
def test_impossible_scaling_settings_name_the_setting_and_the_fix(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        checked(settings)
    assert caught.value.field == next(iter(settings))


def test_later_settings_add_to_earlier_ones() -> None:
    app = made()
    app.configure_autoscaling(max_workers=3, min_load=None)
    spec = scale_spec(app._settings)
    assert (spec.cold_workers, spec.max_workers, spec.min_load) == (1, 3, 1.0)
    with pytest.raises(Invalid, match="above max_workers"):
        scale_spec({"cold_workers": 5, "max_workers": 2})
    assert scale_spec({"cold_workers": 20}).max_workers == 20


def test_the_first_function_names_the_deployment_after_its_file() -> None:
    app = Deployment()
    assert Deployment.lookup("") is app and app.name == ""

    @app.remote
    async def f() -> None: ...

    assert app.name == "test_sdk" and Deployment.lookup("test_sdk") is app and Deployment.lookup("") is None


def test_messages_that_users_know() -> None:
    app = Deployment(name="m")
    app._mode = "deploy"
    with pytest.raises(Invalid, match=r"unbound deployment\. Have any remote functions been registered"):
        app.ensure_ready()
    with pytest.raises(Invalid, match="not yet bound to a Python module"):
        Deployment(webserver_url="http://127.0.0.1:9").ensure_ready()

    @app.remote
    async def f(x: int) -> int:
        return x

    with pytest.raises(NotReady, match=r"^Deployment is not ready. Call .ensure_ready\(\) first!$"):
        f(1)
    with pytest.raises(Invalid, match=r"^Trying to deploy a deployment without an image configured\.$"):
        app.ensure_ready()
    app.image("x")
    with pytest.raises(Invalid, match=r"^Trying to deploy a deployment without autoscaling configured\.$"):
        app.ensure_ready()
    with pytest.raises(Unauthenticated, match=r"No API key found. Pass api_key=, set NANOPOD_API_KEY"):
        config.find_key(None, "http://x")
    with pytest.raises(KeyError, match="not registered or not yet entered"):
        app.get_context(int)
    with pytest.raises(Invalid, match="two remote functions called f"):
        app.remote(f.__wrapped__)


def test_a_function_of_an_interactive_session_is_refused() -> None:
    scope: dict[str, Any] = {"app": Deployment(name="i")}
    with pytest.raises(Invalid, match=r"^Cowardly refusing to deploy function g defined in your interactive Python"):
        exec(compile("@app.remote\ndef g(): pass", "<stdin>", "exec"), scope)


@pytest.mark.parametrize("option", [{"concurency": 2}, {"retry": 3}])
def test_unknown_options_of_remote_are_type_errors(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="has no option"):
        made().remote(**option)(lambda: 1)


@pytest.mark.parametrize(
    "option",
    [
        {"concurrency": 0}, {"timeout": -1}, {"priority": "high"}, {"benchmark_dataset": [1]}, {"benchmark_runs": 0},
        {"benchmark_generator": 3}, {"workload_calculator": 3}, {"queue_timeout": True},
    ],
)  # fmt: skip
def test_impossible_options_of_remote_are_refused(option: dict[str, Any]) -> None:
    def f() -> None: ...

    with pytest.raises(Invalid):
        made().remote(**option)(f)


# --- what travels ---


def spec_of(app: Deployment) -> Any:
    app._mode = "deploy"
    return deploying.build(app)[0]


def test_the_spec_says_what_functions_are() -> None:
    app = made(ttl=60, tag="blue", version_label="v1")

    @app.context()
    class Engine:
        nanopod_concurrency = 8

        async def __aenter__(self) -> Engine:
            return self

        async def __aexit__(self, *rest: object) -> None: ...

    @app.remote
    async def a() -> None: ...

    @app.remote(allow_parallel_requests=True, max_queue_time=5, benchmark_dataset=[{}])
    def b() -> None: ...

    @app.remote(concurrency=3, timeout=7, idempotent=True)
    async def c() -> AsyncIterator[int]:
        yield 1

    @app.remote
    def d() -> Iterator[int]:
        yield 1

    spec = spec_of(app)
    found = {f.name: (f.kind, f.concurrency, f.timeout_s, f.idempotent, f.benchmark) for f in spec.functions}
    assert found == {
        "a": ("async", 8, 600.0, False, False),
        "b": ("sync", 10, 600.0, False, True),
        "c": ("async_generator", 3, 7.0, True, False),
        "d": ("generator", 1, 600.0, False, False),
    }
    assert (spec.tag, spec.ttl_s, spec.version_label, spec.module) == ("blue", 60, "v1", "test_sdk")
    assert deploying.body_of(spec)["functions"][1]["max_queue_time_s"] == 5.0


def test_the_image_travels_whole_but_only_variables_in_local_mode(capsys: pytest.CaptureFixture[str]) -> None:
    app = made()
    image = app.image("cuda", 20).pip_install("torch").apt_get("ffmpeg").run_cmd("a", "b").env(A="1")
    image.require(gpu_ram >= 24).publish_port(9000).use_system_python()
    app.remote(probe)
    sent = spec_of(app).image
    assert sent.pip_install == ("torch",) and sent.runs == (("a", "b"),) and sent.python == ""
    assert sent.query["gpu_ram"] == {"gte": 24000} and sent.ports == ((3000, "tcp"), (9000, "tcp"))
    app._mode = "local"
    for _ in range(2):
        local = deploying.build(app)[0].image
    assert (local.pip_install, local.apt_get, local.query, local.env) == ((), (), {}, {"A": "1"})
    assert local.python == sys.executable
    said = capsys.readouterr().err
    assert said.count("ignored in local mode: image cuda; pip torch; apt ffmpeg") == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: Image(3),
        lambda: Image("x", 0),
        lambda: Image().pip_install(["a"]),
        lambda: Image().run_cmd(),
        lambda: Image().copy("a", "../b"),
        lambda: Image().publish_port(70000),
        lambda: Image().require("gpu_ram>=24"),
        lambda: Image().env(A=[1]),
    ],
)
def test_impossible_images_are_refused(build: Any) -> None:
    with pytest.raises(Invalid):
        build()


def probe() -> int:
    return 1


# --- binding, workloads, local calls ---


def test_arguments_are_bound_here() -> None:
    app = made()

    @app.remote
    async def f(a: int, b: int = 2, *rest: int, key: str = "k") -> None: ...

    @app.remote
    async def g(a: int, b: int = 2) -> None: ...

    assert f._bound.bind((1,), {}) == ((1, 2), {"key": "k"})
    assert f._bound.bind((1, 5, 6), {"key": "x"}) == ((1, 5, 6), {"key": "x"})
    assert g._bound.bind((1,), {}) == ((1, 2), {}) and g._bound.bind((), {"b": 3, "a": 4}) == ((4, 3), {})
    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"c": 1}), ((1,), {"a": 1})]:
        with pytest.raises(TypeError, match=r"^g\(\): "):
            g(*args, **kwargs)


def test_workloads_come_from_the_calculator_or_fall_back_with_one_warning() -> None:
    app = made()

    @app.remote(workload_calculator=lambda x, y: x + y)
    async def plain(x: float, y: float = 1) -> None: ...

    @app.remote(workload_calculator=lambda payload: payload["x"] * 2)
    async def boxed(x: float) -> None: ...

    assert workload(plain._bound, (2, 1), {}) == 3.0 and workload(boxed._bound, (2,), {}) == 4.0
    with pytest.warns(UserWarning, match="100 is assumed"):
        assert workload(plain._bound, (float("nan"), 1), {}) == 100.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert workload(plain._bound, (-5, 1), {}) == 100.0


ENTERED: list[str] = []
contexts = Deployment(name="contexts")


@contexts.context()
class Base:
    async def __aenter__(self) -> Base:
        ENTERED.append("base")
        return self

    async def __aexit__(self, *rest: object) -> None: ...


@contexts.context("m", needs=[Base])
class Model:
    def __init__(self, name: str) -> None:
        self.name = name

    async def __aenter__(self) -> Model:
        ENTERED.append("model")
        return self

    async def __aexit__(self, *rest: object) -> None: ...


@contexts.context()
class Unused:
    async def __aenter__(self) -> None:
        ENTERED.append("unused")

    async def __aexit__(self, *rest: object) -> None: ...


def reach() -> str:
    return str(contexts.get_context(Model).name)


@contexts.remote
async def named(x: int) -> str:
    return contexts.get_context(Model).name * x


@contexts.remote
def indirect() -> str:
    return reach()


@contexts.remote
async def numbers(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


def test_local_calls_enter_the_contexts_they_name_once_and_in_order() -> None:
    with pytest.raises(NotImplementedError):
        contexts.get_context(Model)

    async def both() -> list[str]:
        return await asyncio.gather(named.local(2), named.local(1))

    assert asyncio.run(both()) == ["mm", "m"]
    assert indirect.local() == "m"
    assert ENTERED == ["base", "model"]

    async def collected() -> list[int]:
        return [item async for item in numbers.local(3)]

    assert asyncio.run(collected()) == [0, 1, 2]


def test_contexts_are_checked_when_they_are_declared() -> None:
    app = made()
    with pytest.raises(TypeError, match="no context"):
        app.context()(int)

    class Reserved:
        def __init__(self, needs: int = 1) -> None: ...
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *rest: object) -> None: ...

    with pytest.raises(Invalid, match="nanopod_needs"):
        app.context(needs=[])(Reserved)
    with pytest.raises(Invalid, match="which is no context yet"):
        app.context(needs=[int])(Base)


# --- where the server is ---


def test_configuration_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.find_url() is None and Deployment(name="x").mode == "local"
    directory = tmp_path / ".config" / "nanopod"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"url": "http://profile:1/"}')
    (directory / "api_key").write_text("sk_file\n")
    assert config.find_url() == "http://profile:1" and config.find_key() == "sk_file"
    monkeypatch.setenv("NANOPOD_URL", "http://env:1")
    monkeypatch.setenv("NANOPOD_API_KEY", "sk_env")
    assert config.find_url() == "http://env:1" and config.find_key() == "sk_env"
    assert config.find_url("http://arg:1") == "http://arg:1" and config.find_key("sk_arg") == "sk_arg"
    assert "sk_env" not in repr(config.target())
    (directory / "config.json").write_text("[1]")
    monkeypatch.delenv("NANOPOD_URL")
    with pytest.raises(Invalid, match="must hold an object"):
        config.find_url()


def test_a_cloud_that_runs_here_is_found_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("NANOPOD_HOME", str(home))
    import json
    import os

    state = {"pid": os.getpid(), "url": "http://127.0.0.1:8900", "key_file": str(home / "admin.key")}
    (home / "up.json").write_text(json.dumps(state))
    (home / "admin.key").write_text("sk_admin\n")
    assert config.target() == config.Target("http://127.0.0.1:8900", "sk_admin")
    with pytest.raises(Unauthenticated):
        config.find_key(None, "http://elsewhere:1")
    (home / "up.json").write_text(json.dumps({**state, "pid": 2**22 + 5}))
    assert config.find_url() is None


def test_modes_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "0", "false", "no", "off"):
        monkeypatch.setenv("IS_DEPLOYMENT", text)
        assert Deployment(name="x")._mode is None
    monkeypatch.setenv("IS_DEPLOYMENT", "1")
    assert Deployment(name="x").mode == "serve"
    monkeypatch.setenv("NANOPOD_MODE", "client")
    assert Deployment(name="x").mode == "client"
    monkeypatch.setenv("NANOPOD_MODE", "cloud")
    with pytest.raises(Invalid, match="NANOPOD_MODE"):
        Deployment(name="x")


# --- the command line's own decisions ---


def parsed(*words: str) -> Any:
    from nanopod.__main__ import make_parser

    return make_parser(COMMANDS, words[0]).parse_args(words)


def test_serve_makes_the_request_that_its_options_say(tmp_path: Path) -> None:
    body = serve.body_of(parsed("serve", "nanopod-tiny", "--slots", "4", "--idle", "30"))
    assert body["model"] == {"model_id": "nanopod-tiny", "engine": "reference", "source": "nanopod-tiny", "slots": 4}
    assert body["scale"] == {"min_load": 0, "inactivity_timeout": 30.0}, "its worker is hibernated, not destroyed"
    body = serve.body_of(
        parsed("serve", "Qwen/Qwen3", "--max", "2", "--json", "--", "vllm", "serve", "--port", "{port}")
    )
    assert body["name"] == "qwen3" and body["model"]["argv"] == ["vllm", "serve", "--port", "{port}"]
    assert body["model"]["engine"] == "command" and body["scale"] == {"max_workers": 2}
    (tmp_path / "mine").mkdir()
    body = serve.body_of(parsed("serve", str(tmp_path / "mine")))
    assert body["model"]["model_id"] == "mine" and body["model"]["source"] == str(tmp_path / "mine")
    assert not served.embeds(body["model"])
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "bert"}')
    assert served.embeds(body["model"])
    assert served.embeds({"source": "sentence-transformers/all-MiniLM-L6-v2", "model_id": "all-MiniLM-L6-v2"})
    body = serve.body_of(
        parsed("serve", "iris", "--format", "sklearn", "--storage", "s3://m/iris", "--storage-secret", "store",
               "--option", "max_batch_size=8", "--protocol", "v2", "--profile", "knative")
    )  # fmt: skip
    assert body["model"] == {
        "model_id": "iris", "engine": "server", "source": "", "slots": 8, "format": "sklearn",
        "options": {"max_batch_size": "8"}, "protocols": ["v2"],
        "storage": [{"uri": "s3://m/iris", "path": "/mnt/models", "secret": "store"}],
    }  # fmt: skip
    assert body["scale"]["profile"] == "knative"
    assert served.snippets("http://x", "iris", body["model"]).strip().startswith("curl http://x/v2/models/iris/infer")
    body = serve.body_of(
        parsed("serve", "web", "--command", "python3 -m 'my server'", "--protocol", "http", "--port", "80")
    )
    assert body["model"]["argv"] == ["python3", "-m", "my server"]
    assert (body["model"]["protocols"], body["model"]["port"]) == (["http"], 80)
    (tmp_path / "cat.onnx").write_bytes(b"")
    body = serve.body_of(parsed("serve", str(tmp_path / "cat.onnx"), "--format", "onnx"))
    assert (body["name"], body["model"]["protocols"]) == ("cat", ["v1", "v2"])
    for words in (
        ["serve", "m", "--format", "sklearn"],
        ["serve", "m", "--engine", "server", "--storage", "s3://m/x"],
        ["serve", "m", "--protocol", "v1"],
        ["serve", "m", "--format", "onnx", "--storage", "s3://m/x", "--port", "1"],
        ["serve", "m", "--command", "a", "--", "b"],
        ["serve", "m", "--command", "'a"],
        ["serve", "m", "--engine", "command"],
        ["serve", "./nowhere"],
        ["serve", "m", "--engine", "reference", "--", "x"],
    ):
        with pytest.raises(Invalid):
            serve.body_of(parsed(*words))


def typed(a: int, b: float = 1.0, flag: bool = False, text: str = "", anything: Any = None) -> None: ...


def test_arguments_of_run_are_typed_by_the_signature() -> None:
    words = ["-5", "--b", "2", "--flag", "--text", "7", "--anything", '{"x": [1, null]}']
    found = run.parse_arguments(typed, words)
    assert found == ([-5], {"b": 2.0, "flag": True, "text": "7", "anything": {"x": [1, None]}})
    assert run.parse_arguments(typed, ["--anything=plain", "--flag=no"]) == ([], {"anything": "plain", "flag": False})
    for words in (["x"], ["--unknown", "1"], ["--b"]):
        with pytest.raises(Invalid):
            run.parse_arguments(typed, words)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(verb, "--help")
    assert caught.value.code == 0 and verb in capsys.readouterr().out


def test_importing_is_light() -> None:
    heavy = ("asyncio", "msgspec", "numpy", "ssl", "aiohttp", "rich", "http.client")
    code = (
        "import sys, nanopod, nanopod.data.query; first = set(sys.modules); from nanopod import Deployment; "
        f"print([m for m in {heavy} if m in first], [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "[] []", done.stdout + done.stderr
    assert nanopod.current_call() is None
