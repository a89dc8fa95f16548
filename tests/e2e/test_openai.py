"""The OpenAI surface through the official client, against the reference engine in a real cloud."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import openai
import pytest
from bench.cloud import Cloud

pytestmark = pytest.mark.e2e
STORY = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture(scope="module")
def client(cloud: Cloud, tiny: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=cloud.key, max_retries=0, timeout=60)


def test_models_are_listed(client: openai.OpenAI, tiny: str) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [tiny]
    assert models[0].object == "model"
    assert client.models.retrieve(tiny).id == tiny
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


def test_chat_answers_with_usage(client: openai.OpenAI, tiny: str) -> None:
    answer = client.chat.completions.create(model=tiny, messages=STORY, temperature=0, max_tokens=24)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].message.content or "") > 20
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_an_answer(client: openai.OpenAI, tiny: str) -> None:
    options = {"model": tiny, "messages": STORY, "temperature": 0.8, "seed": 7, "max_tokens": 40}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_left_out_of_a_stream_unless_asked_for(client: openai.OpenAI, tiny: str) -> None:
    chunks = list(client.chat.completions.create(model=tiny, messages=STORY, max_tokens=5, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_seed_stop_n_logprobs_and_penalties(client: openai.OpenAI, tiny: str) -> None:
    options = {"model": tiny, "messages": STORY, "temperature": 1.0, "max_tokens": 30}
    first, again, other = (client.chat.completions.create(**options, seed=seed) for seed in (3, 3, 4))
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content

    word = (first.choices[0].message.content or "").split()[4]
    stopped = client.chat.completions.create(**options, seed=3, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert word not in (stopped.choices[0].message.content or "")
    assert (first.choices[0].message.content or "").startswith(stopped.choices[0].message.content or "-")

    both = client.chat.completions.create(**options, seed=3, n=2, logprobs=True, top_logprobs=2)
    assert len(both.choices) == 2
    assert both.choices[0].message.content != both.choices[1].message.content
    logprobs = both.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in logprobs.content)

    varied = client.chat.completions.create(**{**options, "temperature": 0}, frequency_penalty=2, presence_penalty=2)
    plain = client.chat.completions.create(**{**options, "temperature": 0})
    assert varied.choices[0].message.content != plain.choices[0].message.content


def test_legacy_completions(client: openai.OpenAI, tiny: str) -> None:
    answer = client.completions.create(model=tiny, prompt="Once upon a time", max_tokens=10, temperature=0, echo=True)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.startswith("Once upon a time")
    streamed = client.completions.create(
        model=tiny, prompt="Once upon a time", max_tokens=10, temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in streamed if chunk.choices)
    assert answer.choices[0].text == "Once upon a time" + text


@pytest.mark.parametrize(
    ("change", "error", "code", "param"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"max_tokens": -1}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        (
            {"messages": [{"role": "user", "content": "word " * 9000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
def test_bad_requests_name_what_is_wrong(
    client: openai.OpenAI,
    tiny: str,
    change: dict[str, object],
    error: type[openai.APIStatusError],
    code: str,
    param: str,
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": tiny, "messages": STORY, "max_tokens": 4, **change})  # type: ignore[call-overload]
    assert caught.value.param == param
    if code:
        assert caught.value.code == code
    assert caught.value.request_id


def test_a_wrong_key_is_refused_without_saying_why(cloud: Cloud, tiny: str) -> None:
    wrong = openai.OpenAI(base_url=f"{cloud.url}/v1", api_key="sk_np_aaaaaaaa_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        wrong.chat.completions.create(model=tiny, messages=STORY)  # type: ignore[arg-type]
    assert caught.value.code == "invalid_api_key"


def test_an_oversized_body_is_refused(cloud: Cloud, client: openai.OpenAI, tiny: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model=tiny, messages=[{"role": "user", "content": "x" * (33 << 20)}], max_tokens=1
        )
    assert caught.value.status_code == 413
    assert client.chat.completions.create(model=tiny, messages=STORY, max_tokens=1).choices  # type: ignore[arg-type]


def test_malformed_json_is_a_400(cloud: Cloud, tiny: str) -> None:
    request = urllib.request.Request(
        f"{cloud.url}/v1/chat/completions",
        data=b'{"model": "nanopod-tiny", ',
        headers={"Authorization": f"Bearer {cloud.key}", "Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 400
    error = json.loads(caught.value.read())["error"]
    assert set(error) == {"message", "type", "param", "code"}


def test_a_key_can_be_made_used_and_revoked(cloud: Cloud, tiny: str) -> None:
    made = cloud.api("POST", "/v1/keys", {"name": "temporary", "scopes": ["call"]})
    client = openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=made["key"], max_retries=0)

    def works() -> bool:
        try:
            return bool(client.chat.completions.create(model=tiny, messages=STORY, max_tokens=1).choices)  # type: ignore[arg-type]
        except openai.AuthenticationError:
            return False

    assert cloud.wait_for(works, 2, "a new key is usable")
    cloud.api("DELETE", f"/v1/keys/{made['id']}")
    time.sleep(1.0)
    assert not works()
    listed = cloud.api("GET", "/v1/keys")["data"]
    assert made["key"] not in json.dumps(listed)


def test_every_request_leaves_one_usage_record(cloud: Cloud, client: openai.OpenAI, tiny: str) -> None:
    before = {record["record_id"] for record in cloud.usage_records()}
    answers = [client.chat.completions.create(model=tiny, messages=STORY, max_tokens=5, seed=i) for i in range(5)]  # type: ignore[arg-type]

    def new() -> list[dict[str, object]] | None:
        found = [record for record in cloud.usage_records() if record["record_id"] not in before]
        return found if len(found) >= 5 else None

    records = cloud.wait_for(new, 10, "five usage records")
    assert len(records) == 5
    assert sorted(r["completion_tokens"] for r in records) == sorted(
        a.usage.completion_tokens for a in answers if a.usage
    )
    assert all(r["kind"] == "chat" and r["compute_us"] > 0 for r in records)
