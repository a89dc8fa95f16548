"""Logits and vectors of the reference engine against PyTorch and transformers on random checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nanopod.node.engines.reference.bert import Bert, BertConfig  # noqa: E402
from nanopod.node.engines.reference.llama import KvCache, Llama, Segment  # noqa: E402
from nanopod.node.engines.reference.llama_config import LlamaConfig  # noqa: E402
from nanopod.node.engines.reference.safetensors import Checkpoint  # noqa: E402
from nanopod.node.engines.reference.tokenizer import Tokenizer  # noqa: E402

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama_untied": (
        "Llama",
        {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama_all_heads": ("Llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": False}),
    "llama3_rope": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "linear_rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "mistral_window": ("Mistral", {"sliding_window": 20, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
}


def ours(directory: Path) -> Llama:
    config = LlamaConfig.parse(json.loads((directory / "config.json").read_text()), {})
    return Llama(config, Checkpoint(directory), 4096)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_llama_family_logits(tmp_path, case, dtype):
    family, changes = CASES[case]
    torch.manual_seed(sum(map(ord, case)))
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.0, 0.3) if "bias" in name else value.mul_(3.0)
    model.save_pretrained(tmp_path)
    # The reference numbers come from the stored weights in double precision (loaded anew: a cast would keep rounded angles).
    model = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = np.random.default_rng(1).integers(0, SIZES["vocab_size"], 150)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None]).logits[0].numpy()
    mine = ours(tmp_path)
    segment = Segment(KvCache(mine.config, len(ids)), [int(i) for i in ids], range(len(ids)))
    mine.forward([segment])
    # transformers keeps rotary angles in float32 even for a double model; that is the whole difference.
    np.testing.assert_allclose(segment.logits, expected, atol=2e-5 * np.abs(expected).max())
    assert (segment.logits.argmax(-1) == expected.argmax(-1)).mean() > 0.98


def test_sharded_checkpoint_is_the_same_model(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    logits = []
    for name in ("one", "many"):
        mine = ours(tmp_path / name)
        segment = Segment(KvCache(mine.config, 9), list(range(9)), (8,))
        mine.forward([segment])
        logits.append(segment.logits)
    assert np.array_equal(*logits)


def test_packaged_tiny_model(tmp_path):
    directory = Path(__file__).parents[2] / "src/nanopod/node/engines/tiny"
    if not (directory / "model.safetensors").is_file():
        pytest.skip("the packaged model is not built")
    model = transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    ids = tokenizer.encode("Once upon a time there was a fox who wanted to see the sea.", add_special=True)
    with torch.no_grad():
        expected = model(torch.tensor(ids)[None]).logits[0].numpy()
    mine = ours(directory)
    segment = Segment(KvCache(mine.config, len(ids)), ids, range(len(ids)))
    mine.forward([segment])
    np.testing.assert_allclose(segment.logits, expected, atol=1e-3)


@pytest.mark.parametrize("prefix", [False, True])
def test_bert_vectors(tmp_path, prefix):
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    model = (transformers.BertForMaskedLM if prefix else transformers.BertModel)(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(tmp_path)
    base = model.bert if prefix else model
    mine = Bert(BertConfig.parse(json.loads((tmp_path / "config.json").read_text()), tmp_path), Checkpoint(tmp_path))
    rng = np.random.default_rng(0)
    batch = [[int(i) for i in rng.integers(0, 200, n)] for n in (30, 30, 17, 5, 1)]
    got = mine.embed(batch)
    for row, ids in zip(got, batch, strict=True):
        with torch.no_grad():
            hidden = base(torch.tensor(ids)[None]).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (hidden / hidden.norm()).numpy(), atol=1e-5)


@pytest.mark.slow
def test_minilm_vectors():
    """The real encoder, where MINILM_DIR names its directory."""
    named = os.environ.get("MINILM_DIR")
    if not named:
        pytest.skip("set MINILM_DIR to a directory of all-MiniLM-L6-v2")
    directory = Path(named)
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    mine = Bert(BertConfig.parse(json.loads((directory / "config.json").read_text()), directory), Checkpoint(directory))
    model = transformers.BertModel.from_pretrained(directory).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    texts = [
        "A fox runs.",
        "Größe und Straße, naïve café",
        "日本語 text with 🙂 and numbers 12345",
        "long " * 400,
        "The cat sat on the mat.",
    ]
    ids = [tokenizer.encode_cut(text, mine.config.sequence_max) for text in texts]
    got = mine.embed(ids)
    for row, text, mine_ids in zip(got, texts, ids, strict=True):
        batch = theirs(text, truncation=True, max_length=mine.config.sequence_max, return_tensors="pt")
        assert batch["input_ids"][0].tolist() == mine_ids
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (hidden / hidden.norm()).numpy(), atol=1e-4)
