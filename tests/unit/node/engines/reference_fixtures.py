"""Small random models in Hugging Face layout, and a sink that remembers, for the reference engine's tests."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanopod.node.engines.base import Attempt, Request, Timings, Usage
from nanopod.node.engines.reference import ReferenceEngine
from nanopod.node.engines.reference.normalize import BYTE_TO_CHAR

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"]


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float arrays as a safetensors file."""
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}
    header: dict[str, Any] = {}
    body = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)


def byte_tokenizer() -> dict[str, Any]:
    """A byte-level vocabulary with a few merges: ids 6..261 are single bytes, so random models speak half characters."""
    alphabet = [BYTE_TO_CHAR[b] for b in range(256)]
    vocab = {name: i for i, name in enumerate([*SPECIAL, *alphabet])}
    merges = []
    for left, right in ["th", "he", "in", "er", "an", "re", ("Ġ", "t"), ("th", "e"), ("Ã", "©")]:
        vocab[left + right] = len(vocab)
        merges.append([left, right])
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": c,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, c in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": False, "ignore_merges": False},
    }


def write_llama(directory: Path, *, seed: int = 0, context: int = 256, scale: float = 2.5, **changes: Any) -> Path:
    """A random Llama whose next tokens vary (large head), with the byte tokenizer; returns `directory`."""
    tokenizer = byte_tokenizer()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer["model"]["vocab"]),
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    rng = np.random.default_rng(seed)
    h, kv, i = config["hidden_size"], config["num_key_value_heads"], config["intermediate_size"]
    d = config.get("head_dim", h // config["num_attention_heads"])
    q = d * config["num_attention_heads"]

    def weight(*shape: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * gain / math.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": weight(config["vocab_size"], h, gain=math.sqrt(h)),
        "model.norm.weight": np.ones(h, np.float32),
        "lm_head.weight": weight(config["vocab_size"], h, gain=scale),
    }
    for n in range(config["num_hidden_layers"]):
        p = f"model.layers.{n}."
        tensors |= {
            f"{p}input_layernorm.weight": rng.uniform(0.5, 1.5, h).astype(np.float32),
            f"{p}post_attention_layernorm.weight": rng.uniform(0.5, 1.5, h).astype(np.float32),
            f"{p}self_attn.q_proj.weight": weight(q, h),
            f"{p}self_attn.k_proj.weight": weight(kv * d, h),
            f"{p}self_attn.v_proj.weight": weight(kv * d, h),
            f"{p}self_attn.o_proj.weight": weight(h, q),
            f"{p}mlp.gate_proj.weight": weight(i, h),
            f"{p}mlp.up_proj.weight": weight(i, h),
            f"{p}mlp.down_proj.weight": weight(h, i),
        }
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


class Recorder:
    """A sink that keeps everything, and can play dead after a number of TOKENS frames or data calls."""

    def __init__(self, *, frames_max: int = 1_000_000, datas_max: int = 1_000_000) -> None:
        self.cancelled = False
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.streaming = False
        self.prompt_ids: tuple[int, ...] | None = None
        self.frames: list[tuple[int, int, tuple[int, ...], bytes]] = []
        self.datas: list[bytes] = []
        self.out = b""
        self.usage: Usage | None = None
        self.finish: tuple[str, ...] = ()
        self.timings: Timings | None = None
        self.failed: tuple[str, str] | None = None
        self._frames_max = frames_max
        self._datas_max = datas_max

    def head(
        self, status: int, headers: Mapping[str, str], *, streaming: bool, prompt_ids: Sequence[int] | None = None
    ) -> None:
        assert self.status == 0
        self.status, self.headers, self.streaming = status, headers, streaming
        self.prompt_ids = None if prompt_ids is None else tuple(prompt_ids)

    def tokens(self, choice: int, first_index: int, ids: Sequence[int], sse: bytes) -> None:
        assert self.status == 200
        assert self.usage is None
        assert ids
        if self.cancelled:
            return
        self.frames.append((choice, first_index, tuple(ids), sse))
        self.out += sse
        self.cancelled = len(self.frames) >= self._frames_max

    def data(self, chunk: bytes) -> None:
        assert self.status
        if self.cancelled:
            return
        self.datas.append(chunk)
        self.out += chunk
        self.cancelled = len(self.datas) >= self._datas_max

    async def drained(self) -> None:
        return

    def end(self, usage: Usage, finish: Sequence[str], timings: Timings) -> None:
        assert self.usage is None
        self.usage, self.finish, self.timings = usage, tuple(finish), timings

    def reset(self, code: str, text: str) -> None:
        self.failed = (code, text)

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def chunks(self) -> list[Any]:
        parts = self.out.decode().split("\n\n")
        assert parts[-1] == ""
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-1] if part != "data: [DONE]"]

    def delivered(self, before: Sequence[Sequence[int]] = ()) -> tuple[tuple[int, ...], ...]:
        """Ids per choice that the caller has now, checking that frames joined without a gap."""
        out = [list(ids) for ids in before]
        for choice, first, ids, _ in self.frames:
            while len(out) <= choice:
                out.append([])
            assert first == len(out[choice])
            out[choice].extend(ids)
        return tuple(map(tuple, out))


def request(path: str, body: Any, *, timeout_s: float = 60.0, method: str = "POST", **attempt: Any) -> Request:
    """A request with the identity a gateway would choose."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    identity = {
        "request_id": "r1",
        "response_id": "resp-1",
        "created": 1700000000,
        "system_fingerprint": "fp",
        **attempt,
    }
    return Request(method, path, {}, raw, Attempt(**identity), timeout_s)


class Served:
    """A started engine with its own event loop, so that plain tests can call it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.engine = ReferenceEngine(directory, model_id="test", **options)
        self.card = self.loop.run_until_complete(self.engine.start())

    def ask(self, path: str, body: Any, sink: Recorder | None = None, **options: Any) -> Recorder:
        return self.ask_all([(path, body, sink or Recorder(), options)])[0]

    def ask_all(self, asked: Sequence[tuple[str, Any, Recorder, dict[str, Any]]]) -> list[Recorder]:
        async def go() -> None:
            await asyncio.gather(*(self.engine.handle(request(p, b, **o), s) for p, b, s, o in asked))

        self.loop.run_until_complete(asyncio.wait_for(go(), 60))
        return [sink for _, _, sink, _ in asked]

    def close(self) -> None:
        self.loop.run_until_complete(self.engine.stop(2.0))
        self.loop.close()
