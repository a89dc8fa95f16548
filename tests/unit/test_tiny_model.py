"""The artifacts of the bundled tiny model: size, file layout, agreement between the files, sums in the model card."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

TINY = Path(__file__).resolve().parents[2] / "src" / "nanopod" / "node" / "engines" / "tiny"
ARTIFACTS = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TRAINING = Path(__file__).resolve().parents[2] / "models" / "nanopod-tiny"
WEIGHTS_BYTES_MAX = 6_000_000
HEADER_BYTES_MAX = 100_000_000
"""The safetensors format's own limit."""


def load(name: str) -> dict[str, Any]:
    """One JSON artifact."""
    value = json.loads((TINY / name).read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


@cache
def read_safetensors() -> tuple[dict[str, dict[str, Any]], dict[str, str], bytes]:
    """Tensor entries, metadata and data of the weights."""
    raw = (TINY / "model.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    assert size <= min(HEADER_BYTES_MAX, len(raw) - 8)
    assert raw[8:9] == b"{"
    header = json.loads(raw[8 : 8 + size])
    return header, header.pop("__metadata__", {}), raw[8 + size :]


def tensor(name: str) -> NDArray[np.float32]:
    """One weight as float32, in its own shape."""
    header, _, data = read_safetensors()
    begin, end = header[name]["data_offsets"]
    return np.frombuffer(data[begin:end], dtype="<f2").astype(np.float32).reshape(header[name]["shape"])


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Name and shape of every weight that a tied Llama of this config has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q_width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        shapes |= {
            base + "input_layernorm.weight": [hidden],
            base + "post_attention_layernorm.weight": [hidden],
            base + "self_attn.q_proj.weight": [q_width, hidden],
            base + "self_attn.k_proj.weight": [kv_width, hidden],
            base + "self_attn.v_proj.weight": [kv_width, hidden],
            base + "self_attn.o_proj.weight": [hidden, q_width],
            base + "mlp.gate_proj.weight": [inner, hidden],
            base + "mlp.up_proj.weight": [inner, hidden],
            base + "mlp.down_proj.weight": [hidden, inner],
        }
    return shapes


def byte_alphabet() -> set[str]:
    """The 256 characters that stand for bytes in the vocabulary: printable Latin-1, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return {chr(byte) for byte in printable} | {chr(0x100 + index) for index in range(256 - len(printable))}


def test_weights_fit_the_limit() -> None:
    """The file that ships in the wheel stays small."""
    assert 1_000_000 < (TINY / "model.safetensors").stat().st_size <= WEIGHTS_BYTES_MAX


def test_safetensors_header_is_well_formed() -> None:
    """Offsets follow each other without gap or overlap, end at the end of the file, and agree with dtype and shape."""
    header, metadata, data = read_safetensors()
    assert metadata["format"] == "pt"
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F16", name
        assert begin == position, name
        assert end - begin == 2 * math.prod(entry["shape"]), name
        position = end
    assert position == len(data)


def test_weights_match_the_config() -> None:
    """Exactly the tensors of a tied Llama, in the shapes that config.json states."""
    header, _, _ = read_safetensors()
    config = load("config.json")
    assert {name: entry["shape"] for name, entry in header.items()} == expected_shapes(config)
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True


def test_weights_are_finite_and_trained() -> None:
    """No overflow to float16 infinity, and norms that have moved away from their initial ones."""
    header, _, _ = read_safetensors()
    for name in header:
        values = tensor(name)
        assert np.isfinite(values).all(), name
        assert float(values.std()) > 0, name
    assert float(np.abs(tensor("model.norm.weight") - 1.0).max()) > 0.05


def test_tokenizer_covers_every_byte_and_the_whole_id_range() -> None:
    """Ids are 0..vocab_size-1 without a hole, every byte has a token, every merge joins known tokens."""
    tokenizer = load("tokenizer.json")
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    assert tokenizer["model"]["type"] == "BPE"
    assert sorted(vocab.values()) == list(range(load("config.json")["vocab_size"]))
    assert byte_alphabet() <= vocab.keys()
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"]]
    assert len(merges) > 1000
    for left, right in merges:
        assert {left, right, left + right} <= vocab.keys()


def test_special_tokens_agree_between_files() -> None:
    """The ids in tokenizer.json, tokenizer_config.json, config.json and generation_config.json are the same."""
    added = {entry["content"]: entry["id"] for entry in load("tokenizer.json")["added_tokens"] if entry["special"]}
    tokenizer_config = load("tokenizer_config.json")
    assert set(added) == {"<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"}
    assert {entry["content"]: int(index) for index, entry in tokenizer_config["added_tokens_decoder"].items()} == added
    for name in ("config.json", "generation_config.json"):
        values = load(name)
        for role in ("bos", "eos", "pad"):
            assert values[f"{role}_token_id"] == added[tokenizer_config[f"{role}_token"]], (name, role)
    assert tokenizer_config["model_max_length"] == load("config.json")["max_position_embeddings"]


@pytest.mark.parametrize(
    "part", ["<|user|>", "<|assistant|>", "<|system|>", "bos_token", "eos_token", "add_generation_prompt"]
)
def test_chat_template_names_every_marker(part: str) -> None:
    """A server that renders the template with jinja gets the format the model was trained on."""
    assert part in load("tokenizer_config.json")["chat_template"]


def test_model_card_states_the_true_sums_and_size() -> None:
    """Bytes and sha256 of each artifact, and the number of parameters, as written in the card."""
    card = (TINY / "MODEL_CARD.md").read_text(encoding="utf-8")
    found = re.findall(r"\| (\S+) \| (\d+) \| ([0-9a-f]{64}) \|", card)
    rows = {name: (int(size), digest) for name, size, digest in found}
    assert set(rows) == set(ARTIFACTS)
    for name in ARTIFACTS:
        content = (TINY / name).read_bytes()
        assert rows[name] == (len(content), hashlib.sha256(content).hexdigest()), name
    header, _, _ = read_safetensors()
    assert f"{sum(math.prod(entry['shape']) for entry in header.values()):,}" in card
    assert "{{" not in card
    assert "CC0-1.0" in card


def test_training_text_is_deterministic_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator repeats itself for a seed, differs between seeds, and leaves no unfilled variable or choice."""
    monkeypatch.syspath_prepend(str(TRAINING))
    corpus = importlib.import_module("corpus")
    first = list(corpus.documents(7, 400))
    assert first == list(corpus.documents(7, 400))
    assert first != list(corpus.documents(8, 400))
    for turns in first:
        for role, text in turns:
            assert role in {"system", "user", "assistant", "text"}
            assert re.search(r"[\[\]{}|\\]|  ", text) is None, text
            assert text == text.strip(), text
