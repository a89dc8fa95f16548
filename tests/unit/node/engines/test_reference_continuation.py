"""A stream that was cut anywhere and continued elsewhere is byte for byte the stream that was never cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference_fixtures import Recorder, Served, write_llama

CHAT, LEGACY = "/v1/chat/completions", "/v1/completions"
LIMITS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two engines on the same weights that share nothing else."""
    directory = write_llama(tmp_path_factory.mktemp("model"))
    pair = [Served(directory), Served(directory, max_batch=3)]
    yield pair
    for worker in pair:
        worker.close()


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.3, 0.8, 1.5]),
        "seed": st.integers(0, 2**40),
        "top_p": st.sampled_from([0.5, 0.9]),
        "top_k": st.sampled_from([3, 40]),
        "min_p": st.sampled_from([0.01, 0.2]),
        "frequency_penalty": st.sampled_from([-0.5, 0.7]),
        "presence_penalty": st.sampled_from([0.9]),
        "repetition_penalty": st.sampled_from([1.3]),
        "logit_bias": st.just({"104": 5, "2": 4}),
        "stop": st.lists(st.sampled_from(["a", "th", "e r", "\ufffd\ufffd", "xyz", " ", "zz"]), min_size=1, max_size=3),
        "min_tokens": st.integers(0, 6),
        "max_tokens": st.integers(6, 30),
        "n": st.integers(1, 3),
        "ignore_eos": st.booleans(),
        "stream_options": st.just({"include_usage": True}),
    },
)


def body_of(options, path, logprobs):
    body = {"max_tokens": 24, **options}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": "héllo there, 日本"}]
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": 2}
    else:
        body["prompt"] = "once upon é"
        if logprobs:
            body["logprobs"] = 2
    return body


@LIMITS
@given(
    options=OPTIONS,
    path=st.sampled_from([CHAT, LEGACY]),
    logprobs=st.booleans(),
    echo=st.booleans(),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=3),
)
def test_cut_streams_are_whole(workers, options, path, logprobs, echo, cuts):
    body = {**body_of(options, path, logprobs), "stream": True}
    if path == LEGACY and echo:
        body["echo"] = True
    whole = workers[0].ask(path, body, seed=77)
    assert whole.failed is None
    text, known, prompt_ids = b"", (), None
    for number, cut in enumerate([*cuts, None]):
        sink = Recorder() if cut is None else Recorder(frames_max=max(1, cut))
        if cut == 0:
            sink.cancelled = True
        workers[number % 2].ask(path, body, sink, seed=77, epoch=number + 1, prompt_ids=prompt_ids, choices=known)
        if sink.prompt_ids is not None:
            assert sink.prompt_ids == whole.prompt_ids
            prompt_ids = sink.prompt_ids
        known = sink.delivered(known)
        # A cut that fell into the closing chunks: whoever continues sends all of them again.
        text += sink.out if cut is None else b"".join(frame[3] for frame in sink.frames)
    assert text == whole.out
    assert known == whole.delivered()
    assert sink.usage == whole.usage
    assert sink.finish == whole.finish
    assert text.endswith(b"data: [DONE]\n\n")


@LIMITS
@given(
    seed=st.integers(0, 500),
    cut=st.integers(1, 25),
    picks=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    hit=st.booleans(),
)
def test_cuts_beside_half_seen_stops(workers, seed, cut, picks, hit):
    """Stop strings made from the very text, so that holding back and releasing happen all the time."""
    body = {"prompt": "the", "max_tokens": 30, "temperature": 1.2, "seed": seed, "stream": True}
    text = "".join(c["choices"][0]["text"] for c in workers[0].ask(LEGACY, body).chunks)
    body["stop"] = [text[p % len(text)] + "¤" for p in picks]
    if hit:
        place = picks[0] % len(text)
        body["stop"].append(text[place : place + 3])
    whole = workers[0].ask(LEGACY, body)
    # Without a text that was held back, or a stop that was met, there is nothing to be seen here.
    assume(hit or any(len(ids) > 1 for _, _, ids, _ in whole.frames))
    first = workers[0].ask(LEGACY, body, Recorder(frames_max=cut))
    rest = workers[1].ask(LEGACY, body, epoch=2, prompt_ids=first.prompt_ids, choices=first.delivered())
    assert b"".join(f[3] for f in first.frames) + rest.out == whole.out
    assert rest.delivered(first.delivered()) == whole.delivered()


@LIMITS
@given(options=OPTIONS, path=st.sampled_from([CHAT, LEGACY]), logprobs=st.booleans(), cut=st.integers(1, 30))
def test_cut_json_answers_are_whole(workers, options, path, logprobs, cut):
    body = body_of({k: v for k, v in options.items() if k != "stream_options"}, path, logprobs)
    whole = workers[0].ask(path, body, seed=5)
    assert all(frame[3] == b"" for frame in whole.frames)
    first = workers[0].ask(path, body, Recorder(frames_max=cut), seed=5)
    second = workers[1].ask(path, body, seed=5, epoch=2, prompt_ids=first.prompt_ids, choices=first.delivered())
    assert second.out == whole.out
    assert second.delivered(first.delivered()) == whole.delivered()


@LIMITS
@given(options=st.lists(OPTIONS, min_size=2, max_size=5), path=st.sampled_from([CHAT, LEGACY]))
def test_company_changes_nothing(workers, options, path):
    bodies = [{**body_of(o, path, True), "stream": True} for o in options]
    alone = [workers[0].ask(path, body, seed=9).out for body in bodies]
    together = workers[1].ask_all([(path, body, Recorder(), {"seed": 9}) for body in bodies])
    assert [sink.out for sink in together] == alone


def test_all_delivered_leaves_only_the_closing(workers):
    body = {
        **body_of({"temperature": 0, "n": 2, "stream_options": {"include_usage": True}}, CHAT, False),
        "stream": True,
    }
    whole = workers[0].ask(CHAT, body)
    rest = workers[1].ask(CHAT, body, epoch=2, prompt_ids=whole.prompt_ids, choices=whole.delivered())
    assert rest.frames == []
    assert rest.out == b"".join(whole.datas)
    assert (rest.usage, rest.finish) == (whole.usage, whole.finish)


@pytest.mark.parametrize("stop", [[], ["the", "\ufffd\ufffd"]])
def test_every_cut_of_interleaved_choices(workers, stop):
    body = {"prompt": "once", "n": 3, "max_tokens": 10, "temperature": 1, "stream": True, "stop": stop, "logprobs": 1}
    whole = workers[0].ask(LEGACY, body, seed=11)
    for cut in range(1, len(whole.frames) + 1):
        first = workers[0].ask(LEGACY, body, Recorder(frames_max=cut), seed=11)
        rest = workers[1].ask(LEGACY, body, seed=11, epoch=2, prompt_ids=first.prompt_ids, choices=first.delivered())
        assert b"".join(f[3] for f in first.frames) + rest.out == whole.out


def test_several_prompts_continue(workers):
    body = {
        "prompt": [[1, 80], [1, 70, 71, 90, 91], [1, 70, 71]],
        "n": 2,
        "max_tokens": 9,
        "temperature": 1,
        "stream": True,
    }
    whole = workers[0].ask(LEGACY, body, seed=3)
    assert {chunk["choices"][0]["index"] for chunk in whole.chunks} == set(range(6))
    first = workers[0].ask(LEGACY, body, Recorder(frames_max=17), seed=3)
    rest = workers[1].ask(LEGACY, body, seed=3, epoch=2, prompt_ids=first.prompt_ids, choices=first.delivered())
    assert first.out + rest.out == whole.out
    assert whole.usage.prompt_tokens == len(whole.prompt_ids)


def test_role_comes_once_with_the_first_ids(workers):
    body = {**body_of({"temperature": 0}, CHAT, False), "stream": True}
    whole = workers[0].ask(CHAT, body)
    assert b'"role":"assistant"' in whole.frames[0][3]
    assert whole.out.count(b'"role":"assistant"') == 1
    assert all(json.loads(f[3].split(b"data: ")[-1]) for f in whole.frames if f[3])
