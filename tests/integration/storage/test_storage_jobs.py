"""Jobs of manifests in a real cloud: a volume that is filled before its service starts, tries, ends, deletion."""

from __future__ import annotations

import base64
import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.cloud import Cloud

sys.path.insert(0, str(Path(__file__).parents[2] / "unit/storage"))
from storage_sites import site

pytestmark = pytest.mark.integration

AROUND = f"""
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
data: {{token: {base64.b64encode(b"hunter2-very-secret").decode()}}}
stringData: {{"other.key": plain}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: words}}
data: {{greeting: hello, names.txt: "one\\ntwo\\n"}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: weights}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
---
"""
JOB = """
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  backoffLimit: {limit}
  {more}
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - name: main
        image: host
        command: [sh, -ec]
        args: [{script}]
        env:
        - {{name: TOKEN, valueFrom: {{secretKeyRef: {{name: keys, key: token}}}}}}
        - {{name: GREETING, valueFrom: {{configMapKeyRef: {{name: words, key: greeting}}}}}}
        - {{name: TARGET, value: /mnt/pvc/model}}
        volumeMounts:
        - {{name: data, mountPath: /mnt/pvc}}
        - {{name: texts, mountPath: /etc/words}}
      volumes:
      - {{name: data, persistentVolumeClaim: {{claimName: weights}}}}
      - {{name: texts, configMap: {{name: words}}}}
---
"""
SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: reader}}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 1
    containers:
    - name: kserve-container
      image: host
      command: [{python}, -c, {code}]
      args: [/mnt/models]
      env: [{{name: STORAGE_URI, value: "pvc://weights/model"}}]
"""
CODE = """
import http.server, json, os, sys
class H(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        found = {name: open(os.path.join(sys.argv[1], name)).read(99) for name in os.listdir(sys.argv[1])}
        data = json.dumps(found).encode()
        self.send_response(200); self.send_header("content-length", str(len(data))); self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"""


def apply(cloud: Cloud, text: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = cloud.api("POST", "/v1/manifests", {"files": [{"name": "f.yaml", "text": text}], **more})
    return found


def job(name: str, script: str, limit: int = 3, more: str = "") -> str:
    return JOB.format(name=name, script=json.dumps(script), limit=limit, more=more)


def status(cloud: Cloud, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.api("GET", f"/v1/manifests/Job/{name}")["manifest"]["status"]
    return found


def printed(cloud: Cloud, name: str) -> str:
    """What a Job's machines printed, tries together."""
    rows = cloud.api("GET", "/v1/instances?limit=100")["data"]
    texts = []
    for row in rows:
        if row["tags"].get("job") == name:
            lines = cloud.api("GET", f"/v1/instances/{row['id']}/logs")["data"]
            texts += [base64.b64decode(line["data"]).decode() for line in lines]
    return "\n".join(texts)


def served(cloud: Cloud, name: str) -> Any:
    """What a service answers at its root."""
    asked = urllib.request.Request(f"{cloud.url}/services/{name}/", headers={"Authorization": f"Bearer {cloud.key}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def test_a_volume_is_filled_before_its_service_starts(cloud: Cloud) -> None:
    # The first try fails; the second finds nothing of it in the volume, fills it and ends well.
    script = (
        'test ! -e "$TARGET"; mkdir -p "$TARGET"; echo "$GREETING $(cat /etc/words/names.txt | wc -l)" > "$TARGET/a"; '
        "test ${#TOKEN} = 19; echo token is $TOKEN; test -e ../../../tried || { touch ../../../tried; exit 3; }"
    )
    service = SERVICE.format(python=json.dumps(sys.executable), code=json.dumps(CODE))
    done = apply(cloud, AROUND + job("fill", script) + service)
    assert {one["kind"]: one["action"] for one in done["documents"]}["Job"] == "created", done
    first = status(cloud, "fill")
    assert not first.get("succeeded") and cloud.api("GET", "/v1/endpoints/reader")["ready_instance_count"] == 0
    cloud.wait_for(lambda: status(cloud, "fill").get("succeeded"), 60, "the Job's success")
    after = status(cloud, "fill")
    assert after["failed"] == 1 and after["conditions"][0]["type"] == "Complete", after
    rows = cloud.api("GET", "/v1/instances?limit=100")["data"]
    assert {row["name"]: row["status"] for row in rows if row["tags"].get("job") == "fill"} == {
        "fill-1": "failed",
        "fill-2": "terminated",
    }
    ready = cloud.wait_ready("reader", 1)
    assert ready["status"] == "ready"
    assert served(cloud, "reader") == {"a": "hello 2\n"}
    said = printed(cloud, "fill")
    assert "token is" in said and "hunter2-very-secret" not in said
    files = cloud.api("GET", "/v1/volumes/weights/files")["files"]
    assert list(files) == ["model/a"], files
    again = apply(cloud, AROUND + job("fill", script) + service)
    assert {one["action"] for one in again["documents"]} == {"unchanged"}, again
    shown = json.dumps(cloud.api("GET", "/v1/manifests/Secret/keys"))
    assert "hunter2" not in shown and base64.b64encode(b"hunter2-very-secret").decode() not in shown


def test_a_job_that_fails_too_often_and_one_that_takes_too_long(cloud: Cloud) -> None:
    apply(cloud, AROUND + job("broken", "echo never; exit 7", limit=1))
    apply(cloud, AROUND + job("slow", "sleep 600", more="activeDeadlineSeconds: 1"))
    cloud.wait_for(lambda: status(cloud, "broken").get("conditions"), 60, "the end of the tries")
    found = status(cloud, "broken")
    assert found["conditions"][0]["reason"] == "BackoffLimitExceeded" and found["failed"] == 2
    assert "7" in found["conditions"][0]["message"]
    cloud.wait_for(lambda: status(cloud, "slow").get("conditions"), 60, "the deadline")
    assert status(cloud, "slow")["conditions"][0]["reason"] == "DeadlineExceeded"

    def gone() -> bool:
        rows = cloud.api("GET", "/v1/instances?limit=100")["data"]
        return all(row["status"] in ("terminated", "failed") for row in rows if row["tags"].get("job") == "slow")

    cloud.wait_for(gone, 60, "the end of the slow one")


def test_a_finished_job_is_forgotten_in_time_and_one_that_is_deleted_ends(cloud: Cloud) -> None:
    apply(cloud, AROUND + job("brief", "true", more="ttlSecondsAfterFinished: 1"))
    apply(cloud, AROUND + job("long", "sleep 600"))

    def jobs() -> list[str]:
        rows = cloud.api("GET", "/v1/manifests?kind=Job")["data"]
        return [row["name"] for row in rows if row["name"] in ("brief", "long")]

    cloud.wait_for(lambda: jobs() == ["long"], 60, "the end of the brief one")
    cloud.wait_for(lambda: status(cloud, "long").get("active"), 60, "the long one's machine")
    cloud.api("DELETE", "/v1/manifests/Job/long")

    def ended() -> bool:
        rows = cloud.api("GET", "/v1/instances?limit=100")["data"]
        return all(row["status"] in ("terminated", "failed") for row in rows if row["tags"].get("job") == "long")

    cloud.wait_for(ended, 60, "the end of the long one")


# --- a bucket that a Secret opens ---

BUCKET = """
apiVersion: v1
kind: Secret
metadata:
  name: s3creds
  annotations:
    serving.kserve.io/s3-endpoint: {endpoint}
    serving.kserve.io/s3-usehttps: "0"
    serving.kserve.io/s3-region: us-east-1
stringData: {{awsAccessKeyID: test, awsSecretAccessKey: test-secret-value}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: opener}}
secrets: [{{name: s3creds}}]
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: bucket}}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 1
    serviceAccountName: opener
    containers:
    - name: kserve-container
      image: host
      command: [{python}, -c, {code}]
      args: [/mnt/models]
      env:
      - {{name: STORAGE_URI, value: "s3://served/{prefix}"}}
      - {{name: STORAGE_IGNORE_PATTERNS, value: "*.tmp"}}
"""


SLOW = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: slow}}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 1
    containers:
    - name: kserve-container
      image: host
      command: [{python}, -c, {code}]
      args: [/mnt/models]
      env: [{{name: STORAGE_URI, value: "gs://b/slow"}}, {{name: STORAGE_EMULATOR_HOST, value: "{source}"}}]
"""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Host and port of an S3 service with a bucket `served`."""
    moto = pytest.importorskip("moto.server", reason="pip install 'moto[s3,server]'")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    where = ":".join(map(str, server.get_host_and_port()))
    client = boto3.client(
        "s3", endpoint_url=f"http://{where}", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="served")
    for key in ("m/a", "m/b.tmp", "m-2/c"):
        client.put_object(Bucket="served", Key=key, Body=key.encode())
    yield where
    server.stop()


def test_a_secret_opens_a_bucket_and_what_is_missing_is_said(cloud: Cloud, endpoint: str) -> None:
    words = {"endpoint": endpoint, "python": json.dumps(sys.executable), "code": json.dumps(CODE)}
    apply(cloud, BUCKET.format(prefix="m", **words))
    cloud.wait_ready("bucket", 1)
    assert served(cloud, "bucket") == {"a": "m/a"}
    assert "test-secret-value" not in json.dumps(cloud.api("GET", "/v1/endpoints/bucket"))
    apply(cloud, BUCKET.format(prefix="nothing", **words))

    def failure() -> str:
        found = cloud.api("GET", "/v1/endpoints/bucket").get("failure") or {}
        return f"{found.get('stage')}: {found.get('message')}"

    cloud.wait_for(lambda: "storage: s3://served/nothing holds no files" in failure(), 60, "the failure")
    assert served(cloud, "bucket") == {"a": "m/a"}, "the earlier revision goes on"


def test_how_far_the_files_are_is_shown(cloud: Cloud) -> None:
    with site() as source:
        source.files, source.gate = {"b/slow/big": bytes(8 << 20)}, threading.Event()
        text = SLOW.format(python=json.dumps(sys.executable), code=json.dumps(CODE), source=source.url)
        apply(cloud, text)

        def shown() -> Any:
            found = cloud.api("GET", "/v1/endpoints/slow")
            return (found["reasons"], found["instances"]) if "fetching gs://b/slow: " in str(found["reasons"]) else None

        reasons, instances = cloud.wait_for(shown, 60, "progress")
        assert "an instance waits: fetching gs://b/slow: " in str(reasons) and " of 8.4 MB" in str(reasons)
        assert instances[0]["phase"] == "preparing" and instances[0]["reason"].startswith("fetching gs://b/slow")
        source.gate.set()
        cloud.wait_ready("slow", 1)
    cloud.api("DELETE", "/v1/manifests/InferenceService/slow")
