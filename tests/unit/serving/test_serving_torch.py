"""TorchScript and Hugging Face models, made here; skipped where torch or transformers are not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_stage import ask, json_of, served

from nanopod.model.endpoint import ModelSpec
from nanopod.node.engines.base import Engine

torch = pytest.importorskip("torch")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "the", "a"]


def test_torchscript_by_v1_and_v2(tmp_path: Path) -> None:
    class Sums(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.sum(1), x * 2

    torch.jit.script(Sums()).save(str(tmp_path / "model.pt"))

    async def asked(engine: Engine) -> None:
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
        outputs = json_of(await ask(engine, "POST", "/v2/models/m/infer", body))["outputs"]
        assert [(one["name"], one["data"]) for one in outputs] == [("output-0", [3.0]), ("output-1", [2.0, 4.0])]
        rows = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": [[1.0, 2.0], [3.0, 4.0]]}))
        assert [row["output-0"] for row in rows["predictions"]] == [3.0, 7.0]
        for bad in ([1.0, 2.0], ["a", "b"]):
            assert (await ask(engine, "POST", "/v1/models/m:predict", {"instances": bad})).status == 400
        texts = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
        assert (await ask(engine, "POST", "/v2/models/m/infer", texts)).status == 400

    served(ModelSpec("m", "server", str(tmp_path), format="pytorch"), asked)


def tokenizer(directory: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    words.normalizer = tokenizers.normalizers.BertNormalizer()
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.decoder = tokenizers.decoders.WordPiece()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[SEP]",
    )  # fmt: skip
    made.save_pretrained(directory)
    return transformers


def bert(directory: Path, kind: str) -> Any:
    transformers = tokenizer(directory)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize(
    ("kind", "options", "kind_of"),
    [
        ("BertForSequenceClassification", {}, int),
        ("BertForSequenceClassification", {"return_probabilities": "true"}, dict),
        ("BertForTokenClassification", {}, list),
        ("BertForMaskedLM", {}, str),
        ("BertForSequenceClassification", {"task": "text-embedding"}, list),
    ],
)
def test_encoders(tmp_path: Path, kind: str, options: dict[str, str], kind_of: type) -> None:
    bert(tmp_path, kind)
    texts = ["good [MASK]", "the bad [MASK]"]

    async def asked(engine: Engine) -> None:
        found = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": texts}))["predictions"]
        assert [type(one) for one in found] == [kind_of] * 2
        body = {"inputs": [{"name": "t", "shape": [2], "datatype": "BYTES", "data": texts}]}
        (output,) = json_of(await ask(engine, "POST", "/v2/models/m/infer", body))["outputs"]
        assert output["shape"][0] == 2
        if kind_of is dict:
            assert [sum(one.values()) for one in found] == pytest.approx([1, 1])
            assert json.loads(output["data"][0]) == pytest.approx(found[0])
        if "task" in options:
            assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1])
        for bad in ([1], [""]):
            assert (await ask(engine, "POST", "/v1/models/m:predict", {"instances": bad})).status == 400
        if kind == "BertForMaskedLM":
            assert (await ask(engine, "POST", "/v1/models/m:predict", {"instances": ["good"]})).status == 400

    served(ModelSpec("m", "server", str(tmp_path), format="huggingface", options=options, slots=2), asked)


def test_a_model_that_generates_answers_openais_paths(tmp_path: Path) -> None:
    transformers = tokenizer(tmp_path)
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=3, bos_token_id=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)

    async def asked(engine: Engine) -> None:
        body = {"model": "m", "prompt": "good day", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        whole = json_of(await ask(engine, "POST", "/v1/completions", body))
        assert whole["usage"] == {
            "prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}
        }  # fmt: skip
        chat = {"messages": [{"role": "user", "content": "good"}], "max_completion_tokens": 3, "ignore_eos": True}
        assert (
            json_of(await ask(engine, "POST", "/v1/chat/completions", chat))["choices"][0]["finish_reason"] == "length"
        )
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        data = b"".join((await ask(engine, "POST", "/v1/completions", streamed)).parts).decode()
        assert data.endswith("data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in data.splitlines() if line.startswith("data: {")]
        assert "".join(one["choices"][0]["text"] for one in chunks[:-1]).split() == whole["choices"][0]["text"].split()
        assert chunks[-1]["usage"] == whole["usage"]
        for bad in ({}, {"prompt": ""}, {"prompt": "a", "max_tokens": -1}, {"prompt": "a", "temperature": 9}):
            found = await ask(engine, "POST", "/v1/completions", bad)
            assert (found.status, "message" in json_of(found)["error"]) == (400, True)
        assert (await ask(engine, "POST", "/v1/models/m:predict", {"instances": ["a"]})).status == 400

    served(ModelSpec("m", "server", str(tmp_path), format="huggingface", protocols=("openai", "v1", "v2")), asked)


def test_an_encoder_of_the_reference_engine_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = tokenizer(tmp_path)
    model = bert(tmp_path, "BertModel")

    async def asked(engine: Engine) -> None:
        assert json_of(await ask(engine, "GET", "/v2/models/m"))["platform"] == "reference"
        found = json_of(await ask(engine, "POST", "/v1/models/m:predict", {"instances": ["good day"]}))["predictions"]
        given = transformers.AutoTokenizer.from_pretrained(str(tmp_path))(["good day"], return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**given).last_hidden_state.mean(1)
        wanted = torch.nn.functional.normalize(hidden, dim=-1)[0].tolist()
        assert found[0] == pytest.approx(wanted, abs=1e-3)

    served(ModelSpec("m", "server", str(tmp_path), format="huggingface", protocols=("openai", "v1", "v2")), asked)
