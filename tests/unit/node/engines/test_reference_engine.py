"""The reference engine from outside: OpenAI shapes, refusals, cancellation, load, embeddings, chat formats."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import numpy as np
import pytest
from reference_fixtures import SPECIAL, Recorder, Served, byte_tokenizer, request, write_llama, write_safetensors

from nanopod.node.engines.reference import ReferenceEngine
from nanopod.node.engines.reference.chat import ChatFormat, Message
from nanopod.node.engines.reference.tokenizer import Tokenizer

CHAT, LEGACY, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RERANK = "/v1/rerank"
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    worker = Served(write_llama(tmp_path_factory.mktemp("llama")), max_batch=4)
    yield worker
    worker.close()


def write_bert(directory, seed=0, pooling="mean_tokens", hidden=32):
    rng = np.random.default_rng(seed)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", "##a", "##b", "fox", "river"]
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(vocab), "hidden_size": hidden,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 20,
        "type_vocab_size": 2, "hidden_act": "gelu",
    }  # fmt: skip

    def w(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": w(len(vocab), hidden),
        "embeddings.position_embeddings.weight": w(20, hidden),
        "embeddings.token_type_embeddings.weight": w(2, hidden),
        "embeddings.LayerNorm.weight": w(hidden),
        "embeddings.LayerNorm.bias": w(hidden),
    }
    for n in range(2):
        p = f"encoder.layer.{n}."
        shapes = {
            "attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden), "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (48, hidden), "output.dense": (hidden, 48),
        }  # fmt: skip
        for name, shape in shapes.items():
            tensors |= {f"{p}{name}.weight": w(*shape), f"{p}{name}.bias": w(shape[0])}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= {f"{p}{name}.weight": w(hidden), f"{p}{name}.bias": w(hidden)}
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config))
    document = {
        "added_tokens": [{"id": i, "content": vocab[i], "special": True, "normalized": False} for i in range(4)],
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##"},
        "model": {"type": "WordPiece", "vocab": {v: i for i, v in enumerate(vocab)}, "unk_token": "[UNK]"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))
    modules = [
        {"path": "", "type": "x.Transformer"},
        {"path": "1_Pooling", "type": "x.Pooling"},
        {"path": "2_N", "type": "x.Normalize"},
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    return directory


# ------------------------------------------------------------------------------------------------- shapes


def test_card_and_caps(served):
    assert (served.card.model_id, served.card.kind, served.card.context_length) == ("test", "chat", 256)
    caps = served.engine.caps
    assert (caps.continuation, caps.seed, caps.token_ids, caps.max_concurrency) == ("exact", True, True, 4)


def test_chat_stream_shape(served):
    body = {
        "model": "mine",
        "messages": USER,
        "stream": True,
        "max_tokens": 5,
        "stream_options": {"include_usage": True},
    }
    got = served.ask(CHAT, body)
    assert got.status == 200
    assert got.streaming
    assert got.headers["content-type"].startswith("text/event-stream")
    assert got.prompt_ids[:2] == (1, 3)
    assert got.out.endswith(b"data: [DONE]\n\n")
    first, *_, last, usage = got.chunks
    identity = {
        "id": "resp-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "mine",
        "system_fingerprint": "fp",
    }
    for chunk in got.chunks:
        assert identity.items() <= chunk.items()
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "length"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 5)
    assert usage["usage"]["prompt_tokens"] == len(got.prompt_ids) == got.usage.prompt_tokens
    assert got.timings.compute_us > 0
    # The usage chunk is a call of its own, so that a relay can drop it.
    assert json.loads(got.datas[-2].removeprefix(b"data: "))["choices"] == []


def test_usage_chunk_only_on_demand(served):
    got = served.ask(CHAT, {"messages": USER, "stream": True, "max_tokens": 3})
    assert all(chunk["choices"] and "usage" not in chunk for chunk in got.chunks)
    assert got.usage.completion_tokens == 3


def test_chat_json_shape(served):
    body = {"messages": USER, "max_tokens": 6, "n": 2, "logprobs": True, "top_logprobs": 3, "temperature": 1, "seed": 4}
    got = served.ask(CHAT, body)
    assert not got.streaming
    assert got.json["object"] == "chat.completion"
    assert got.json["model"] == "test"
    assert [c["index"] for c in got.json["choices"]] == [0, 1]
    for choice in got.json["choices"]:
        entries = choice["logprobs"]["content"]
        assert len(entries) == 6
        assert all(
            len(e["top_logprobs"]) == 3 and bytes(e["bytes"]).decode("utf-8", "replace") == e["token"] for e in entries
        )
        assert b"".join(bytes(e["bytes"]) for e in entries).decode("utf-8", "replace") == choice["message"]["content"]
    assert got.json["usage"] == {
        "prompt_tokens": len(got.prompt_ids), "completion_tokens": 12, "total_tokens": 12 + len(got.prompt_ids),
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    streamed = served.ask(CHAT, {**body, "stream": True})
    for index, choice in enumerate(got.json["choices"]):
        parts = [c["choices"][0] for c in streamed.chunks if c["choices"][0]["index"] == index]
        assert "".join(p["delta"].get("content", "") for p in parts) == choice["message"]["content"]
        joined = [e for p in parts if p["logprobs"] for e in p["logprobs"]["content"]]
        assert joined == choice["logprobs"]["content"]


def test_completions_echo_and_logprobs(served):
    body = {"prompt": "abc", "echo": True, "logprobs": 2, "max_tokens": 4, "temperature": 0}
    got = served.ask(LEGACY, body).json["choices"][0]
    assert got["text"].startswith("abc")
    assert len(got["logprobs"]["tokens"]) == len(got["logprobs"]["top_logprobs"]) == 4 + 4
    assert got["logprobs"]["token_logprobs"][0] is None
    assert got["logprobs"]["text_offset"][:5] == [0, 0, 1, 2, 3]
    scored = served.ask(LEGACY, {**body, "max_tokens": 0}).json["choices"][0]
    assert scored["text"] == "abc"
    assert scored["logprobs"]["token_logprobs"] == got["logprobs"]["token_logprobs"][:4]
    streamed = served.ask(LEGACY, {**body, "stream": True}).chunks
    assert "".join(c["choices"][0]["text"] for c in streamed) == got["text"]


def test_prompt_shapes_agree(served):
    ids = [1, 70, 71]
    text = served.ask(LEGACY, {"prompt": "@A", "max_tokens": 5, "temperature": 0})
    assert list(text.prompt_ids) == [
        1,
        byte_tokenizer()["model"]["vocab"]["@"],
        byte_tokenizer()["model"]["vocab"]["A"],
    ]
    one = served.ask(LEGACY, {"prompt": ids, "max_tokens": 5, "temperature": 0}).json["choices"][0]["text"]
    two = served.ask(LEGACY, {"prompt": [ids, [1, 9]], "max_tokens": 5, "temperature": 0}).json["choices"]
    assert two[0]["text"] == one
    assert len(two) == 2


def test_stop_and_end_token(served):
    base = {"prompt": "abc", "max_tokens": 40, "temperature": 0}
    text = served.ask(LEGACY, base).json["choices"][0]["text"]
    stop = text[6:8]
    got = served.ask(LEGACY, {**base, "stop": stop})
    assert got.json["choices"][0]["text"] == text[: text.index(stop)]
    assert got.finish == ("stop",)
    ended = served.ask(LEGACY, {**base, "logit_bias": {"2": 100}})
    assert (ended.json["choices"][0]["text"], ended.finish, ended.usage.completion_tokens) == ("", ("stop",), 1)
    going = served.ask(LEGACY, {**base, "logit_bias": {"2": 100}, "ignore_eos": True, "max_tokens": 3})
    assert (going.finish, going.usage.completion_tokens) == (("length",), 3)
    held = served.ask(LEGACY, {**base, "logit_bias": {"2": 100}, "min_tokens": 5})
    assert held.usage.completion_tokens == 6


def test_seed_of_body_wins_and_attempt_seed_serves_otherwise(served):
    body = {"prompt": "abc", "max_tokens": 12, "temperature": 1.5}
    assert served.ask(LEGACY, body, seed=1).out != served.ask(LEGACY, body, seed=2).out
    assert served.ask(LEGACY, {**body, "seed": 7}, seed=1).out == served.ask(LEGACY, {**body, "seed": 7}, seed=2).out


# ------------------------------------------------------------------------------------------------- refusals


BAD = [
    ({"messages": USER, "foo": 1}, "foo", "invalid_value"),
    ({}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "invalid_value"),
    ({"messages": USER, "temperature": 3}, "temperature", "invalid_value"),
    ({"messages": USER, "temperature": True}, "temperature", "invalid_value"),
    ({"messages": USER, "top_p": -0.1}, "top_p", "invalid_value"),
    ({"messages": USER, "n": 0}, "n", "invalid_value"),
    ({"messages": USER, "n": 65}, "n", "invalid_value"),
    ({"messages": USER, "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"messages": USER, "max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"messages": USER, "max_tokens": 5000}, "messages", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "long " * 200}]}, "messages", "context_length_exceeded"),
    ({"messages": USER, "stop": [""]}, "stop", "invalid_value"),
    ({"messages": USER, "stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"messages": USER, "logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
    ({"messages": USER, "logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
    ({"messages": USER, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"messages": USER, "tools": [{"type": "function"}]}, "tools", "invalid_value"),
    ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
    ({"messages": USER, "min_tokens": 9, "max_tokens": 4}, "min_tokens", "invalid_value"),
    ({"messages": USER, "seed": "x"}, "seed", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "code"), BAD)
def test_bad_chat_requests(served, body, param, code):
    got = served.ask(CHAT, body)
    assert got.status == 400
    error = got.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert got.usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, None),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 9999]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "messages": USER}, "messages"),
        ({"prompt": [[1]] * 40, "n": 2}, "n"),
    ],
)
def test_bad_completion_requests(served, body, param):
    got = served.ask(LEGACY, body)
    # An empty text is a prompt here, since the tokenizer adds its first token.
    assert got.status == (200 if param is None else 400)
    if param is not None:
        assert got.json["error"]["param"] == param


def test_bad_json_and_unknown_path(served):
    for raw in (b"{", b"[1]", b"\xff"):
        assert served.ask(CHAT, raw).json["error"]["code"] == "invalid_json"
    for path in ("/v1/embeddings", "/v1/audio"):
        got = served.ask(path, {})
        assert (got.status, got.json["error"]["code"]) == (404, "unknown_url")


def test_known_hints_are_ignored(served):
    body = {
        "messages": USER,
        "max_tokens": 2,
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "tools": [],
        "tool_choice": "auto",
    }
    assert served.ask(CHAT, {**body, "response_format": {"type": "text"}, "modalities": ["text"]}).status == 200


# ------------------------------------------------------------------------------------------------- life cycle


def test_cancelled_requests_free_their_place(served):
    async def go():
        quiet = [Recorder() for _ in range(4)]
        tasks = [
            asyncio.create_task(
                served.engine.handle(request(LEGACY, {"prompt": "a", "max_tokens": 200, "ignore_eos": True}), sink)
            )
            for sink in quiet
        ]
        late = Recorder()
        waiting = asyncio.create_task(served.engine.handle(request(LEGACY, {"prompt": "b", "max_tokens": 2}), late))
        for _ in range(200):
            await asyncio.sleep(0.005)
            if served.engine.load().running == 4 and served.engine.load().waiting == 1:
                break
        load = served.engine.load()
        tasks[0].cancel()
        quiet[1].cancelled = True
        await asyncio.wait_for(waiting, 10)
        finished = [bool(sink.usage) for sink in quiet]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return load, late, finished, quiet

    load, late, finished, quiet = served.loop.run_until_complete(asyncio.wait_for(go(), 30))
    assert (load.running, load.waiting) == (4, 1)
    assert late.usage.completion_tokens == 2
    assert finished[:2] == [False, False]
    assert quiet[0].failed is None
    time.sleep(0.05)
    assert served.engine.load().running == 0


def test_deadline_resets(served):
    body = {"prompt": "a", "max_tokens": 250, "ignore_eos": True}
    got = served.ask(LEGACY, body, timeout_s=0.02)
    assert got.failed[0] == "deadline"
    assert got.usage is None


def test_a_broken_sink_hurts_nobody_else(served):
    class Broken(Recorder):
        def tokens(self, *_):
            raise OSError("gone")

    body = {"prompt": "a", "max_tokens": 20, "ignore_eos": True}
    good, bad = Recorder(), Broken()
    served.ask_all([(LEGACY, body, bad, {}), (LEGACY, body, good, {})])
    assert good.usage.completion_tokens == 20
    assert bad.usage is None


@pytest.mark.parametrize("attempt", [{"prompt_ids": (1, 9999)}, {"choices": ((5, -1),)}])
def test_ids_of_another_model_are_refused(served, attempt):
    assert served.ask(LEGACY, {"prompt": "a"}, **attempt).failed[0] == "refused"


def test_more_choices_than_places_run_alone(served):
    got = served.ask(LEGACY, {"prompt": "a", "max_tokens": 3, "n": 9, "temperature": 1})
    assert len(got.json["choices"]) == 9


def test_stop_lets_running_requests_end_then_resets(tmp_path):
    directory = write_llama(tmp_path)

    async def go(tokens, grace_s):
        engine = ReferenceEngine(directory, model_id="m")
        await engine.start()
        sink, refused = Recorder(), Recorder()
        task = asyncio.create_task(
            engine.handle(
                request(LEGACY, {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "stream": True}), sink
            )
        )
        while not sink.frames:
            await asyncio.sleep(0.002)
        await engine.stop(grace_s)
        await asyncio.wait_for(task, 5)
        await engine.handle(request(LEGACY, {"prompt": "a"}), refused)
        return sink, refused

    done, refused = asyncio.run(go(20, 10.0))
    assert done.usage.completion_tokens == 20
    assert refused.failed[0] == "refused"
    cut, _ = asyncio.run(go(250, 0.0))
    assert cut.failed[0] == "engine_lost"


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_start_names_what_is_missing(tmp_path, missing):
    directory = write_llama(tmp_path)
    (directory / missing).unlink()
    with pytest.raises((ValueError, OSError), match=missing):
        asyncio.run(ReferenceEngine(directory, model_id="m").start())


def test_vocabulary_larger_than_the_model_is_refused(tmp_path):
    directory = write_llama(tmp_path, vocab_size=200)
    with pytest.raises(ValueError, match="vocab_size"):
        asyncio.run(ReferenceEngine(directory, model_id="m").start())


# ------------------------------------------------------------------------------------------------- embeddings


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    worker = Served(write_bert(tmp_path_factory.mktemp("bert")))
    yield worker
    worker.close()


def test_embedding_shapes(encoder):
    assert (encoder.card.kind, encoder.card.context_length) == ("embedding", 8)
    got = encoder.ask(EMBED, {"input": ["fox", "a river", "fox"], "model": "m"})
    data = np.array([row["embedding"] for row in got.json["data"]])
    assert data.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(data, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(data[0], data[2], atol=1e-6)
    assert [row["index"] for row in got.json["data"]] == [0, 1, 2]
    assert got.json["usage"] == {
            "prompt_tokens": 10, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 0}
        }  # fmt: skip
    assert got.usage.prompt_tokens == 10
    alone = encoder.ask(EMBED, {"input": "a river", "encoding_format": "base64"}).json["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(alone), "<f4"), data[1], atol=1e-5)


def test_embedding_dimensions_ids_and_truncation(encoder):
    whole = np.array(encoder.ask(EMBED, {"input": "fox river"}).json["data"][0]["embedding"])
    short = np.array(encoder.ask(EMBED, {"input": "fox river", "dimensions": 8}).json["data"][0]["embedding"])
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    ids = encoder.ask(EMBED, {"input": [16, 17]}).json["data"][0]["embedding"]
    np.testing.assert_allclose(ids, whole, atol=1e-5)
    long = encoder.ask(EMBED, {"input": "fox " * 50}).json
    assert long["usage"]["prompt_tokens"] == 8
    same = encoder.ask(EMBED, {"input": "fox " * 6}).json
    np.testing.assert_allclose(long["data"][0]["embedding"], same["data"][0]["embedding"], atol=1e-5)


def test_documents_are_ranked_by_their_cosine_with_the_query(encoder):
    texts = ["fox", "a river", "river", "fox river"]
    got = encoder.ask(RERANK, {"model": "m", "query": "fox", "documents": texts})
    vectors = [np.array(one["embedding"]) for one in encoder.ask(EMBED, {"input": texts}).json["data"]]
    scores = [float(vector @ vectors[0]) for vector in vectors]
    results = got.json["results"]
    assert [one["index"] for one in results] == sorted(range(4), key=lambda place: -scores[place])
    assert (results[0]["index"], results[0]["document"]) == (0, {"text": "fox"})
    assert [one["relevance_score"] for one in results] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    few = encoder.ask(RERANK, {"query": "fox", "documents": texts, "top_n": 2, "return_documents": False}).json
    assert [sorted(one) for one in few["results"]] == [["index", "relevance_score"]] * 2
    assert few["usage"]["prompt_tokens"] == got.usage.prompt_tokens


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "a"}, "documents"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": [1]}, "documents"),
        ({"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": "a", "documents": ["a"], "foo": 1}, "foo"),
    ],
)
def test_bad_rerank_requests(encoder, body, param):
    got = encoder.ask(RERANK, body)
    assert (got.status, got.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [99]}, "input"),
        ({"input": "a", "dimensions": 33}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "foo": 1}, "foo"),
    ],
)
def test_bad_embedding_requests(encoder, body, param):
    got = encoder.ask(EMBED, body)
    assert (got.status, got.json["error"]["param"]) == (400, param)


def test_encoder_refuses_chat(encoder):
    assert encoder.ask(CHAT, {"messages": USER}).status == 404


def test_many_texts_beside_one(encoder):
    big, small = Recorder(), Recorder()
    encoder.ask_all([(EMBED, {"input": ["fox " * 5] * 2048}, big, {}), (EMBED, {"input": "a"}, small, {})])
    assert len(big.json["data"]) == 2048
    assert len(small.json["data"]) == 1


# ------------------------------------------------------------------------------------------------- chat formats


def chat_format(tmp_path, special, template=None):
    document = byte_tokenizer()
    for token in special:
        number = len(document["model"]["vocab"])
        document["model"]["vocab"][token] = number
        document["added_tokens"].append({"id": number, "content": token, "special": True, "normalized": False})
    if special:
        document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] not in SPECIAL]
    if template is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "bos_token": "<s>"}))
    tokenizer = Tokenizer(document)
    return ChatFormat(tokenizer, tmp_path), tokenizer


TURNS = [
    Message("system", "S"),
    Message("user", "U <|im_end|></s><|eos|>"),
    Message("assistant", "A"),
    Message("user", "V"),
]


@pytest.mark.parametrize(
    ("special", "template", "expected", "ends"),
    [
        ([], None, "<|bos|><|system|>S<|user|>{u}<|assistant|>A<|eos|><|user|>V<|assistant|>", ["<|eos|>"]),
        (
            ["<|im_start|>", "<|im_end|>"],
            None,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
            ["<|im_end|>"],
        ),
        (
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            None,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n{u}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ["<|eot_id|>"],
        ),
        (
            ["<s>", "</s>", "[INST]"],
            None,
            "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n{u} [/INST] A </s><s>[INST] V [/INST]",
            ["</s>"],
        ),
    ],
)
def test_chat_families(tmp_path, special, template, expected, ends):
    chat, tokenizer = chat_format(tmp_path, special, template)
    ids = chat.encode(TURNS)
    assert tokenizer.decode(ids, skip_special=False) == expected.format(u=TURNS[1].content)
    assert list(chat.end_ids) == [tokenizer.token_id(name) for name in ends]
    # What the caller spelt did not become a special token.
    structure = [tokenizer.token_name(i) for i in ids if i in tokenizer.special_ids]
    assert structure.count(ends[0]) == expected.count(ends[0])


def test_no_chat_format_is_said(tmp_path):
    chat, _ = chat_format(tmp_path, ["<x>"])
    assert not chat.available
    with pytest.raises(Exception, match="no chat template"):
        chat.encode(TURNS)


def test_own_template_runs_in_a_sandbox(tmp_path):
    pytest.importorskip("jinja2")
    template = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    chat, tokenizer = chat_format(tmp_path, ["<s>"], template)
    assert tokenizer.decode(chat.encode([Message("user", "hi")]), skip_special=False) == "<s>u:hi;"
    for bad in ("{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        chat, tokenizer = chat_format(tmp_path, ["<s>"], bad)
        with pytest.raises(Exception, match="chat template refused"):
            chat.encode([Message("user", "hi")])
