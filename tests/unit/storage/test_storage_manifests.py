"""Claims, Secrets, ConfigMaps, accounts and Jobs of Kubernetes as they are read, and what a Job does next."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from nanopod.model.chain import Applied, Instance
from nanopod.model.endpoint import Failure
from nanopod.model.job import RunSpec
from nanopod.node import cloudinit
from nanopod.server.manifests import jobs, running
from nanopod.server.manifests.around import Around, SecretKey, SecretSeen
from nanopod.server.manifests.configs import read_config
from nanopod.server.manifests.fields import Problems
from nanopod.server.manifests.reading import read_documents
from nanopod.server.manifests.secrets import read_account, read_secret, refs_of, without_values
from nanopod.server.manifests.volumes import read_claim


def document(text: str) -> tuple[Any, Problems]:
    found = read_documents(text, "f.yaml")[0]
    return found, Problems(found)


def said(problems: Problems) -> list[str]:
    return [f"{one.line} {one.level} {one.path}: {one.message}" for one in problems.found]


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def test_a_secret_is_read_and_never_shown() -> None:
    found, problems = document(f"""
apiVersion: v1
kind: Secret
metadata:
  name: s3creds
  annotations: {{serving.kserve.io/s3-endpoint: "minio:9000"}}
data: {{awsAccessKeyID: {b64("id")}, awsSecretAccessKey: {b64("hidden")}}}
stringData: {{tls.crt: pem}}
""")
    asked = read_secret(found, problems)
    assert not problems.found and asked.pairs == {
        "awsAccessKeyID": "id",
        "awsSecretAccessKey": "hidden",
        "tls.crt": "pem",
    }
    assert asked.seen.keys == ("awsAccessKeyID", "awsSecretAccessKey", "tls.crt")
    assert asked.seen.annotations == {"serving.kserve.io/s3-endpoint": "minio:9000"}
    assert "hidden" not in repr(asked) and "hidden" not in json.dumps(without_values(found.data))
    kept = {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hidden", "a": "b"}}}
    assert without_values(kept)["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("data: {a: 'not base64!'}", 5, "is not base64"),
        (f"data: {{a: {b64(bytes([255, 254]))}}}", 5, "not UTF-8"),
        ("stringData: {a: 5}", 5, "put it in quotes"),
        ("stringData: {NANOPOD_X: x}", 5, "not begin with NANOPOD_"),
        ("stringData: {'a/b': x}", 5, "must be letters"),
        ("type: Opaque", 0, "holds no pairs"),
        ("type: kubernetes.io/dockerconfigjson\nstringData: {a: b}", 0, "dockerconfigjson"),
    ],
)
def test_a_secret_that_cannot_be(body: str, line: int, words: str) -> None:
    found, problems = document(f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\n{body}\n")
    read_secret(found, problems)
    assert problems.rejected and any(words in one for one in said(problems)), said(problems)
    assert not line or any(one.startswith(f"{line} ") for one in said(problems)), said(problems)


def test_accounts_and_references() -> None:
    found, problems = document("""
apiVersion: v1
kind: ServiceAccount
metadata: {name: sa}
secrets: [{name: s3creds}, {name: hf}]
imagePullSecrets: [{name: registry}, {name: hf}]
""")
    assert read_account(found, problems).secrets == ("s3creds", "hf", "registry") and not problems.found
    refs = refs_of([SecretKey("TOKEN", "hf", "token"), SecretKey("T2", "hf", "t2")], ["whole", "whole"])
    assert [(ref.name, ref.keys) for ref in refs] == [("whole", ()), ("hf", (("TOKEN", "token"), ("T2", "t2")))]


def test_a_config_map() -> None:
    found, problems = document(f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: c}}
data: {{a: "1", conf.yaml: "x: y"}}
binaryData: {{b: {b64("bin")}}}
""")
    assert read_config(found, problems).data == {"a": "1", "conf.yaml": "x: y", "b": "bin"} and not problems.found
    found, problems = document(
        f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\nbinaryData: {{b: {b64(bytes([255]))}}}\n"
    )
    read_config(found, problems)
    assert "not UTF-8" in said(problems)[0]


def claim(spec: str) -> tuple[Any, list[str]]:
    found, problems = document(f"apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: v}}\nspec: {spec}\n")
    return read_claim(found, problems), said(problems)


def test_a_claim() -> None:
    asked, problems = claim("{accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Gi}}}")
    assert (asked.name, asked.size_bytes, problems) == ("v", 10 << 30, [])
    asked, problems = claim(
        "{accessModes: [ReadWriteMany], storageClassName: shared-nvme, resources: {requests: {storage: 1G}}}"
    )
    assert asked.size_bytes == 10**9 and len(problems) == 2
    assert all(" warning " in one for one in problems) and "one node only" in "".join(problems)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}", "requests.storage is missing"),
        ("{resources: {requests: {storage: 10Gb}}}", "is no quantity"),
        ("{resources: {requests: {storage: 0}}}", "must be more than 0"),
        ("{accessModes: [Often], resources: {requests: {storage: 1Gi}}}", "is not possible"),
        ("{volumeMode: Block, resources: {requests: {storage: 1Gi}}}", "block devices"),
        ("{dataSource: {name: x}, resources: {requests: {storage: 1Gi}}}", "cannot be copied"),
    ],
)
def test_a_claim_that_cannot_be(spec: str, words: str) -> None:
    problems = claim(spec)[1]
    assert any(words in one and one.startswith("4 error") for one in problems), problems


JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: fill}
spec:
  backoffLimit: 2
  ttlSecondsAfterFinished: 60
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: main
        image: host
        command: [python3, fetch.py]
        args: [--to, /data/m]
        env: [{name: TOKEN, valueFrom: {secretKeyRef: {name: hf, key: token}}}, {name: A, value: b}]
        volumeMounts: [{name: d, mountPath: /data, subPath: deep}, {name: t, mountPath: /tmp/scratch}]
      volumes: [{name: d, persistentVolumeClaim: {claimName: v}}, {name: t, emptyDir: {}}]
"""
AROUND = Around(secrets={"hf": SecretSeen(("token",))}, claims={"v": {}})


def test_a_job_becomes_a_machines_one_command() -> None:
    found, problems = document(JOB)
    asked = jobs.read_job(found, AROUND, problems)
    assert not problems.errors and (asked.backoff_limit, asked.ttl_s, asked.claims) == (2, 60.0, ("v",))
    state = jobs.State(jobs.run_of(asked))
    run = cloudinit.parse(running.cloud_init_of(state)).run
    assert run == state.run and run.argv == ("python3", "fetch.py", "--to", "/data/m") and run.env == {"A": "b"}
    assert [(m.path, m.volume, m.sub_path) for m in run.mounts] == [("/data", "v", "deep"), ("/tmp/scratch", "", "")]
    assert run.secrets[0].keys == (("TOKEN", "token"),)
    big = jobs.State(replace(run, env={"X": "x" * cloudinit.BYTES_MAX}))
    with pytest.raises(ValueError, match="bytes, at most"):
        running.cloud_init_of(big)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("image: host", "image: python:3.11", "cannot be run here"),
        ("backoffLimit: 2", "completions: 3", "runs once"),
        ("claimName: v", "claimName: w", "apply it first"),
        ("key: token", "key: nope", "has the keys token"),
        ("restartPolicy: Never", "restartPolicy: Always", "choose one of"),
        ("        command: [python3, fetch.py]\n        args: [--to, /data/m]\n", "", "command"),
    ],
)
def test_a_job_that_cannot_be(old: str, new: str, words: str) -> None:
    assert old in JOB
    found, problems = document(JOB.replace(old, new))
    jobs.read_job(found, AROUND, problems)
    assert problems.rejected and any(words in one for one in said(problems)), said(problems)


@pytest.mark.parametrize(
    "run",
    [{"argv": []}, {"argv": ["a\0"]}, {"argv": ["x"], "mounts": [{"path": "data", "volume": "v"}]}, {"argv": "x"},
     {"argv": ["x"], "mounts": [{"path": "/a/../b", "volume": "v"}]}],
)  # fmt: skip
def test_a_command_that_no_machine_takes(run: dict[str, Any]) -> None:
    data = b"#cloud-config\n" + json.dumps({"nanopod": {"run": run}}).encode()
    with pytest.raises(cloudinit.BootError, match=r"nanopod\.run"):
        cloudinit.parse(b64(data))


def test_a_command_goes_with_nothing_else() -> None:
    data = b"#cloud-config\n" + json.dumps({"runcmd": ["x"], "nanopod": {"run": {"argv": ["x"]}}}).encode()
    with pytest.raises(cloudinit.BootError, match="leave the other keys out"):
        cloudinit.parse(b64(data))


# --- what is next ---


def instance(**fields: Any) -> Instance:
    made = Instance(
        "inst_1", "", "", "wksp_1", "", "cap_1", None, 1, 0, "run", "queued", 1, None, None, "", None, 0, 0.0, None,
        0.0, None,
    )  # fmt: skip
    return replace(made, **fields)


def failed(user_fault: bool = True, **fields: Any) -> Instance:
    why = Failure("run", "exit status 3", user_fault=user_fault)
    return instance(phase="failed", ended_at=5.0, failure=why, exit_code=3, **fields)


RUN = RunSpec(("true",))


@pytest.mark.parametrize(
    ("state", "seen", "does", "due"),
    [
        (jobs.State(RUN), None, "start", None),
        (jobs.State(RUN, next_at=20.0), None, "nothing", 20.0),
        (jobs.State(RUN, instance="i"), instance(), "nothing", None),
        (jobs.State(RUN, instance="i", started_at=1.0, deadline_s=30.0), instance(), "nothing", 31.0),
        (jobs.State(RUN, instance="i", started_at=1.0, deadline_s=5.0), instance(), "stop", None),
        (jobs.State(RUN, instance="i"), instance(phase="ended", ended_at=5.0, exit_code=0), "complete", None),
        (jobs.State(RUN, instance="i", failed=5), failed(), "retry", None),
        (jobs.State(RUN, instance="i", failed=6), failed(), "fail", None),
        (jobs.State(RUN, instance="i", failed=6), failed(user_fault=False), "retry", None),
        (jobs.State(RUN, instance="i", failed=6, tries=running.TRIES_MAX), failed(user_fault=False), "fail", None),
        (jobs.State(RUN, instance="i", backoff_limit=0), failed(), "fail", None),
        (jobs.State(RUN, instance="i"), None, "retry", None),
        (jobs.State(RUN, finished_at=3.0), None, "nothing", None),
        (jobs.State(RUN, finished_at=3.0, ttl_s=60.0), None, "nothing", 63.0),
        (jobs.State(RUN, finished_at=3.0, ttl_s=7.0), None, "forget", None),
    ],
)
def test_what_a_job_does_next(state: jobs.State, seen: Instance | None, does: str, due: float | None) -> None:
    step = running.decide(state, seen, now=10.0)
    assert (step.does, step.due) == (does, due)
    if does == "retry":
        assert step.counts is (seen is not None and seen.failure is not None and seen.failure.user_fault)


def test_pauses_between_tries_double_up_to_six_minutes() -> None:
    assert [running.backoff_s(fails) for fails in (1, 2, 3, 6, 7, 50)] == [10.0, 20.0, 40.0, 320.0, 360.0, 360.0]


def test_the_status_of_a_job_is_as_kubernetes_writes_it() -> None:
    row = Applied("m", "w", "default", "batch/v1", "Job", "fill", 1, "{}", "", (), {"after": ["x"]}, 0.0, 0.0)
    done = jobs.condition("Complete", "CompletionsReached", "well", 90.0)
    state = jobs.State(RUN, started_at=60.0, finished_at=90.0, succeeded=1, conditions=(done,))
    made = jobs.with_state(row, state)
    assert made.status["succeeded"] == 1 and made.status["completionTime"] == "1970-01-01T00:01:30Z"
    assert made.status["after"] == ["x"] and made.status["conditions"][0]["type"] == "Complete"
    assert jobs.state_of(made) == state and jobs.succeeded(made) and not jobs.succeeded(row)
    stored = replace(made, status=msgspec.json.decode(msgspec.json.encode(made.status)))
    assert jobs.state_of(stored) == state
