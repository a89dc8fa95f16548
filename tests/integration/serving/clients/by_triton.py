"""Triton's own HTTP client against a cloud (NP_URL, NP_KEY): metadata, inference as JSON and binary, its extensions."""

import json
import os

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

# The client adds to what it is given, so every call gets a copy.
HEADERS = {"Authorization": f"Bearer {os.environ['NP_KEY']}"}
client = http.InferenceServerClient(os.environ["NP_URL"].removeprefix("http://"))
found: dict[str, object] = {
    "live": client.is_server_live(headers=dict(HEADERS)),
    "ready": client.is_server_ready(headers=dict(HEADERS)),
    "model_ready": client.is_model_ready("sums", headers=dict(HEADERS)),
    "nobody_ready": client.is_model_ready("nobody", headers=dict(HEADERS)),
    "server": client.get_server_metadata(headers=dict(HEADERS))["name"],
    "model": client.get_model_metadata("sums", headers=dict(HEADERS)),
}
data = np.array([[1, 2], [3, 4]], np.float32)
for binary in (False, True):
    for coding in (None, "gzip"):
        given = http.InferInput("x", [2, 2], "FP32")
        given.set_data_from_numpy(data, binary_data=binary)
        outputs = [http.InferRequestedOutput("sum", binary_data=binary)]
        answer = client.infer(
            "sums",
            [given],
            outputs=outputs,
            request_id="9",
            headers=dict(HEADERS),
            request_compression_algorithm=coding,
        )
        found[f"{'binary' if binary else 'json'} {coding}"] = [
            answer.get_response()["id"], answer.as_numpy("sum").tolist()
        ]  # fmt: skip
# Without `outputs` the client asks for everything in binary form.
everything = client.infer("sums", [given], headers=dict(HEADERS))
found["everything"] = everything.as_numpy("twice").tolist()
refused = {}
for name, call in (
    ("config", lambda: client.get_model_config("sums", headers=dict(HEADERS))),
    ("stats", lambda: client.get_inference_statistics("sums", headers=dict(HEADERS))),
    ("index", lambda: client.get_model_repository_index(headers=dict(HEADERS))),
    ("shape", lambda: client.infer("nobody", [given], headers=dict(HEADERS))),
):
    try:
        call()
    except InferenceServerException as error:
        refused[name] = [error.status(), error.message()]
found["refused"] = refused
with http.InferenceServerClient(os.environ["NP_URL"].removeprefix("http://") + "/services/adder") as service:
    found["by prefix"] = service.infer("sums", [given], headers=dict(HEADERS)).as_numpy("sum").tolist()
client.unload_model("sums", headers=dict(HEADERS))
found["unloaded"] = client.is_model_ready("sums", headers=dict(HEADERS))
client.load_model("sums", headers=dict(HEADERS))
found["loaded"] = client.is_model_ready("sums", headers=dict(HEADERS))
client.close()
print(json.dumps(found))
