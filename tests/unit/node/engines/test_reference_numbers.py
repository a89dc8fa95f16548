"""Numbers of the reference engine: exactness of the forward pass, randomness, sampling, text flow, file format."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_fixtures import write_llama, write_safetensors

from nanopod.node.engines.reference.bert import gelu
from nanopod.node.engines.reference.llama import KEY_BLOCK, KvCache, Llama, Segment
from nanopod.node.engines.reference.llama_config import ConfigError, LlamaConfig
from nanopod.node.engines.reference.philox import philox4x32, uniform
from nanopod.node.engines.reference.safetensors import Checkpoint, CheckpointError, SafetensorsFile
from nanopod.node.engines.reference.sampling import Sampler, SamplingParams, logprobs_of
from nanopod.node.engines.reference.textflow import TextFlow

# ------------------------------------------------------------------------------------------------- forward pass


@pytest.fixture(scope="module", params=["grouped", "one_head", "all_heads", "window"])
def llama(request, tmp_path_factory):
    changes = {
        "grouped": {},
        "one_head": {"num_key_value_heads": 1, "num_attention_heads": 3},
        "all_heads": {"num_key_value_heads": 4},
        "window": {"architectures": ["MistralForCausalLM"], "sliding_window": 21},
    }[request.param]
    directory = write_llama(tmp_path_factory.mktemp("llama"), **changes)
    config = LlamaConfig.parse(json.loads((directory / "config.json").read_text()), {})
    return Llama(config, Checkpoint(directory), 4096)


def test_self_check_holds(llama):
    assert llama.self_check()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_logits_do_not_depend_on_path_or_company(llama, data):
    """Bit equality between one pass over everything and any cutting of it, in any company."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    lengths = data.draw(st.lists(st.integers(1, 2 * KEY_BLOCK + 5), min_size=1, max_size=5))
    texts = [[int(i) for i in rng.integers(0, llama.config.vocab, n)] for n in lengths]
    expected = []
    for text in texts:
        whole = Segment(KvCache(llama.config, len(text)), text, range(len(text)))
        llama.forward([whole])
        expected.append(whole.logits)
    caches = [KvCache(llama.config, n) for n in lengths]
    seen = [[] for _ in texts]
    while any(c.length < n for c, n in zip(caches, lengths, strict=True)):
        open_ones = [i for i, n in enumerate(lengths) if caches[i].length < n]
        chosen = data.draw(st.lists(st.sampled_from(open_ones), min_size=1, unique=True))
        segments = []
        for i in chosen:
            count = min(lengths[i] - caches[i].length, data.draw(st.sampled_from([1, 1, 2, 7, 50])))
            start = caches[i].length
            segments.append(Segment(caches[i], texts[i][start : start + count], range(count)))
        llama.forward(segments)
        for i, segment in zip(chosen, segments, strict=True):
            seen[i].extend(segment.logits)
    for rows, reference in zip(seen, expected, strict=True):
        assert np.array_equal(np.array(rows), reference)


def test_padding_is_never_read(llama):
    """A cache that held something else gives the same logits after its length is set back."""
    ids = list(range(10, 40))
    fresh = Segment(KvCache(llama.config, 64), ids, (29,))
    llama.forward([fresh])
    used = KvCache(llama.config, 64)
    llama.forward([Segment(used, list(range(60, 110)))])
    used.length = 0
    again = Segment(used, ids, (29,))
    llama.forward([again])
    assert np.array_equal(fresh.logits, again.logits)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"hidden_act": "relu"}, "relu"),
    ],
)
def test_config_errors_name_the_field(tmp_path, change, named):
    config = json.loads((write_llama(tmp_path) / "config.json").read_text()) | change
    with pytest.raises(ConfigError, match=named):
        Llama(LlamaConfig.parse(config, {}), Checkpoint(tmp_path), 64)


def test_gelu_is_the_exact_one():
    x = np.linspace(-9, 9, 4001, dtype=np.float32).reshape(1, -1)
    expected = np.array([[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x[0].tolist()]])
    got = x.copy()
    gelu(got, np.empty((2, 16, x.shape[1]), np.float32))
    assert np.abs(got - expected).max() < 2e-6


# ------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """The vectors its authors published."""
    assert philox4x32(counter, key) == expected


def test_uniform_is_uniform_and_keyed():
    draws = np.array([uniform(5, choice, position) for choice in range(4) for position in range(2500)])
    assert 0 <= draws.min() <= draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 1000).max() < 150
    assert len(set(draws.tolist())) == len(draws)
    assert uniform(-1, 0, 0) == uniform(2**64 - 1, 0, 0) != uniform(1, 0, 0)


# ------------------------------------------------------------------------------------------------- sampling


def sampler(choice=0, prompt=(), ends=(2,), vocab=8, **params):
    return Sampler(SamplingParams(**params), choice, prompt, ends, vocab)


LOGITS = np.array([0.0, 2.0, 1.0, 2.0, -1.0, 0.5, 1.5, -3.0])


def frequencies(count=4000, logits=LOGITS, **params):
    out = Counter()
    for seed in range(count):
        out[sampler(seed=seed, **params).pick(logits)] += 1
    return out


def test_greedy_takes_the_lowest_id_of_equals():
    assert sampler(temperature=0.0).pick(LOGITS) == 1
    assert sampler(temperature=0.0, logit_bias={3: 0.1}).pick(LOGITS) == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_gives_the_softmax(temperature):
    got = frequencies(temperature=temperature)
    expected = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    for token, share in enumerate(expected):
        assert abs(got[token] / 4000 - share) < 0.03


def test_truncations():
    assert set(frequencies(top_k=3)) == {1, 3, 6}
    assert set(frequencies(top_k=1)) == {1}
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert set(frequencies(top_p=float(p[1] + p[3] - 1e-6))) == {1, 3}
    assert set(frequencies(top_p=float(p[1] + p[3] + 1e-6))) == {1, 3, 6}
    assert set(frequencies(top_p=0.0)) == {1}
    assert set(frequencies(min_p=math.exp(-0.6))) == {1, 3, 6}
    assert set(frequencies(top_k=3, top_p=0.3)) == {1}
    assert set(frequencies(top_p=0.999999)) == set(range(8))


def test_penalties_count_output_only():
    one = sampler(temperature=0.0, frequency_penalty=0.4, prompt=[1, 1, 1])
    assert one.pick(LOGITS) == 1
    one.observe(1)
    assert one.pick(LOGITS) == 3
    two = sampler(temperature=0.0, presence_penalty=0.3)
    for token in (1, 1, 3):
        two.observe(token)
    assert two.pick(LOGITS) == 1
    three = sampler(temperature=0.0, repetition_penalty=1.2, prompt=[1])
    assert three.pick(LOGITS) == 3
    negative = sampler(temperature=0.0, repetition_penalty=2.0, prompt=[0])
    assert negative.pick(np.array([-1.0, -1.5, -9, -9, -9, -9, -9, -9])) == 1


def test_min_tokens_bans_the_end():
    row = LOGITS.copy()
    row[2] = 50.0
    one = sampler(temperature=0.0, min_tokens=2)
    for _ in range(2):
        assert one.pick(row) == 1
        one.observe(0)
    assert one.pick(row) == 2


def test_draws_depend_on_seed_choice_and_position():
    logits = np.zeros(2000)
    picks = {
        (seed, choice, position): _at(logits, seed, choice, position)
        for seed in range(4)
        for choice in range(4)
        for position in range(4)
    }
    assert len(set(picks.values())) > 55


def _at(logits, seed, choice, position):
    one = sampler(choice=choice, seed=seed, vocab=2000)
    for _ in range(position):
        one.observe(0)
    return one.pick(logits)


def test_logprobs_are_the_models_own():
    entry = logprobs_of(LOGITS, 6, 3)
    total = math.log(np.exp(LOGITS).sum())
    assert entry.logprob == pytest.approx(1.5 - total, abs=1e-6)
    assert [token for token, _ in entry.top] == [1, 3, 6]


# ------------------------------------------------------------------------------------------------- text flow


PIECES = [
    b"a",
    b"b",
    b"ab",
    b"c",
    b" ",
    b"\xe4",
    b"\xbd",
    b"\xa0",
    b"\xe4\xbd",
    b"\xff",
    "é".encode(),
    b"",
    b"stop",
    b"x\xc3",
]


def run(ids, stops, min_tokens=0):
    flow = TextFlow(PIECES.__getitem__, stops, min_tokens)
    out = []
    for token in ids:
        flush = flow.push(token)
        if flush is not None:
            out.append(flush)
            if flush.stopped:
                return out, True
    last = flow.finish()
    return out + ([last] if last else []), False


@settings(max_examples=400, deadline=None)
@given(
    ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=25),
    stops=st.lists(st.sampled_from(["abc", "ba", "stop", "你", "cc ", "\ufffda"]), max_size=3, unique=True),
)
def test_flow_emits_the_text_up_to_the_first_stop(ids, stops):
    flushes, stopped = run(ids, stops)
    text = "".join(f.text for f in flushes)
    for end in range(len(ids) + 1):
        # The oracle: scan the decoded text anew after every token.
        raw = b"".join(PIECES[i] for i in ids[:end])
        decoder = __import__("codecs").getincrementaldecoder("utf-8")("replace")
        whole = decoder.decode(raw)
        hits = [whole.find(s) for s in stops if s in whole]
        if hits:
            assert stopped
            assert text == whole[: min(hits)]
            assert sum(len(f.ids) for f in flushes) == end
            return
    assert not stopped
    assert text == b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")
    assert [i for f in flushes for i in f.ids] == ids


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=20),
    stops=st.lists(st.sampled_from(["abc", "ba", "stop"]), max_size=2, unique=True),
    min_tokens=st.integers(0, 5),
)
def test_flow_is_clean_at_every_flush(ids, stops, min_tokens):
    """A new flow that is fed what any flush ended with, and settled, goes on alike."""
    flushes, stopped = run(ids, stops, min_tokens)
    at = 0
    for number, flush in enumerate(flushes[:-1]):
        assert flush.first == at
        at += len(flush.ids)
        again = TextFlow(PIECES.__getitem__, stops, min_tokens)
        known = [f for i in ids[:at] if (f := again.push(i)) is not None]
        known += [f] if (f := again.settle()) else []
        assert "".join(f.text for f in known) == "".join(f.text for f in flushes[: number + 1])
        rest = [f for i in ids[at : sum(len(f.ids) for f in flushes)] if (f := again.push(i)) is not None]
        rest += [f] if not stopped and (f := again.finish()) else []
        assert rest == flushes[number + 1 :]


def test_flow_holds_back_a_possible_stop_and_half_a_character():
    flow = TextFlow(PIECES.__getitem__, ["abc"], 0)
    assert flow.push(3).text == "c"
    assert flow.push(0) is None
    assert flow.push(1) is None
    released = flow.push(4)
    assert (released.first, released.ids, released.text, released.offsets) == (1, (0, 1, 4), "ab ", (1, 2, 3))
    assert flow.push(5) is None
    assert flow.push(6) is None
    assert flow.push(7).text == "你"


def test_stops_wait_for_min_tokens():
    flushes, stopped = run([12, 12], ["stop"], min_tokens=1)
    assert stopped
    assert [f.text for f in flushes] == ["stop", ""]


# ------------------------------------------------------------------------------------------------- safetensors


def test_safetensors_types_and_views(tmp_path):
    path = tmp_path / "model.safetensors"
    values = np.array([[1.5, -2.25], [0.0, 3.0]], np.float32)
    write_safetensors(path, {"a": values, "b": values.astype(np.float16), "c": np.arange(3)})
    file = SafetensorsFile(path)
    for name in "ab":
        assert np.array_equal(file.load(name, np.dtype(np.float64)), values)
    assert np.array_equal(file.raw("c"), [0, 1, 2])
    with pytest.raises(ValueError, match="read-only"):
        file.raw("a")[0, 0] = 9


def test_bfloat16_is_the_upper_half(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    raw = (np.array([1.5, -0.1875], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    assert SafetensorsFile(tmp_path / "m").load("x", np.dtype(np.float64)).tolist() == [1.5, -0.1875]


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"x": entry(dtype="F8")}, "unknown dtype"),
        ({"x": entry(shape=(3,))}, "needs 12 bytes"),
        ({"x": entry(offsets=(0, 800), shape=(200,))}, "truncated"),
        ({"x": entry(offsets=(-8, 0))}, "data_offsets"),
        ({"x": entry(shape=(-2,))}, "shape"),
        ({"x": entry(shape=(1,), offsets=(4, 8))}, "begins at 4"),
        ({"x": entry(shape=(1,), offsets=(0, 4))}, "tensors end at 4"),
        ({"x": entry(), "y": entry()}, "begins at 0"),
        ({"x": {"dtype": "F32"}}, "exactly"),
        ([], "JSON object"),
    ],
)
def test_crafted_headers_are_refused(tmp_path, header, said):
    path = tmp_path / "bad.safetensors"
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(CheckpointError, match=said) as caught:
        SafetensorsFile(path)
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"1234567", (99).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{]"]
)
def test_broken_files_are_refused(tmp_path, raw):
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(CheckpointError):
        SafetensorsFile(tmp_path / "f")


def test_checkpoint_names_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint(tmp_path)
    write_safetensors(tmp_path / "s1.safetensors", {"a": np.zeros((2, 3), np.float32)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "s1.safetensors"}}))
    whole = Checkpoint(tmp_path)
    f32 = np.dtype(np.float32)
    assert whole.load("a", f32, (2, 3)).shape == (2, 3)
    with pytest.raises(CheckpointError, match=r"'a' has shape \[2, 3\]"):
        whole.load("a", f32, (3, 2))
    with pytest.raises(CheckpointError, match="'b' is missing"):
        whole.load("b", f32, (1,))
    for shard, said in (("../s1.safetensors", "plain file name"), ("s2.safetensors", "missing")):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(CheckpointError, match=said):
            Checkpoint(tmp_path)
