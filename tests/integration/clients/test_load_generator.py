"""A load generator that others wrote, against a whole cloud: every request is answered, and every answer read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

RUN_S_MAX = 200
REQUESTS = 40
pytestmark = pytest.mark.timeout(700)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of 300 words, as a directory of the usual files."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"w{number}" for number in range(296))]
    special = [
        {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for number, word in enumerate(words[:4])
    ]  # fmt: skip
    model = {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(words)}, "unk_token": "<unk>"}
    files: dict[str, dict[str, Any]] = {
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": model,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>",
            "eos_token": "</s>", "pad_token": "<pad>",
            "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
        },
        "config.json": {"model_type": "llama", "vocab_size": len(words), "max_position_embeddings": 2048},
    }  # fmt: skip
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def test_guidellm_finishes_without_an_error(large: Path, tokenizer: Path, tmp_path: Path) -> None:
    with Cloud() as cloud:
        cloud.serve()
        cloud.wait_ready("nanopod-tiny")
        backend = {"kind": "openai_http", "target": cloud.url, "model": "nanopod-tiny", "api_key": cloud.key}
        report = tmp_path / "report.json"
        done = subprocess.run(
            [
                str(large.with_name("guidellm")), "run",
                "--backend", json.dumps(backend),
                "--profile", "kind=concurrent,streams=4",
                "--constraint", f"kind=max_requests,count={REQUESTS}",
                "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
                "--data", "kind=synthetic_text,prompt_tokens=24,output_tokens=12",
                "--output", f"kind=json,path={report}",
                "--disable-console-interactive",
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, timeout=RUN_S_MAX,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        benchmark = json.loads(report.read_text())["benchmarks"][0]
        wrong = [request["error"] for request in benchmark["requests"]["errored"]]
        totals = benchmark["metrics"]["request_totals"]
        assert totals == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}, wrong[:3]
        output = benchmark["requests"]["successful"][0]["output"]
        assert output, "it read text out of the stream"
