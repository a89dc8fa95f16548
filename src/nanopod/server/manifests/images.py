"""Container images that can be served without a container engine: what runs on the node instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nanopod.model.endpoint import Protocol

HOST: Final = ("host", "nanopod/host")
"""No image at all: the command runs on the node itself."""
NO_ENGINE: Final = (
    "nodes here have no container engine: use image: host with the command that the node is to run, or let our own "
    "model server load the files (predictor.model with modelFormat and storageUri)"
)


@dataclass(frozen=True, slots=True)
class Stand:
    """What stands in for an image: our model server for `form`, or `command` of software that is on the node."""

    form: str = ""
    command: tuple[str, ...] = ()
    protocols: tuple[Protocol, ...] = ("http",)
    port_flag: str = ""
    """The flag by which the command is told its port."""
    host_flag: str = ""
    model_flag: str = ""
    """A flag whose value the command wants as its first argument instead."""
    variable: str = ""
    """The environment variable that tells it host and port."""


_LLM: Final[tuple[Protocol, ...]] = ("openai", "http")
STANDS: Final[Mapping[str, Stand]] = {
    "vllm/vllm-openai": Stand(
        command=("vllm", "serve"), protocols=_LLM, port_flag="--port", host_flag="--host", model_flag="--model"
    ),
    "lmsysorg/sglang": Stand(
        command=("python3", "-m", "sglang.launch_server"), protocols=_LLM, port_flag="--port", host_flag="--host"
    ),
    "huggingface/text-generation-inference": Stand(
        command=("text-generation-launcher",), protocols=_LLM, port_flag="--port", host_flag="--hostname"
    ),
    "huggingface/text-embeddings-inference": Stand(
        command=("text-embeddings-router",), protocols=_LLM, port_flag="--port", host_flag="--hostname"
    ),
    "ollama/ollama": Stand(command=("ollama", "serve"), protocols=_LLM, variable="OLLAMA_HOST"),
    "tritonserver": Stand(command=("tritonserver",), protocols=("v2", "http"), port_flag="--http-port"),
    "tensorflow/serving": Stand(
        command=("tensorflow_model_server",), protocols=("v1", "http"), port_flag="--rest_api_port"
    ),
    "kserve/sklearnserver": Stand(form="sklearn"),
    "kserve/xgbserver": Stand(form="xgboost"),
    "kserve/lgbserver": Stand(form="lightgbm"),
    "kserve/huggingfaceserver": Stand(form="huggingface"),
}
"""{last parts of an image's name: what stands in for it}."""


def plain_name(image: str) -> str:
    """An image's name without registry, tag and digest: `vllm/vllm-openai`, `nvidia/tritonserver`."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = head + slash + last.partition(":")[0]
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        name = rest
    return name


def stand_in(image: str) -> Stand | None:
    """What stands in for an image; None when nothing does."""
    name = plain_name(image)
    for known, stand in STANDS.items():
        if name == known or name.endswith(f"/{known}"):
            return stand
    return None


def is_host(image: str) -> bool:
    """Whether a command is to run on the node itself."""
    return plain_name(image) in HOST


def command_of(stand: Stand, args: Sequence[str]) -> tuple[str, ...]:
    """The command of a stand-in with the arguments of a container, on the port and host that it will be given."""
    rest: list[str] = []
    first: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag in (stand.port_flag, stand.host_flag, stand.model_flag) and flag:
            if not equals:
                value = words.pop(0) if words else ""
            if flag == stand.model_flag:
                first = [value]
        else:
            rest.append(word)
    if stand.port_flag:
        rest += [stand.port_flag, "{port}"]
    if stand.host_flag:
        rest += [stand.host_flag, "{host}"]
    return (*stand.command, *first, *rest)
