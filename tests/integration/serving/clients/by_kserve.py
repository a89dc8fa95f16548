"""KServe's own client against a cloud (NP_URL, NP_KEY): V1, V2 as JSON and V2 in binary form."""

import asyncio
import json
import os

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferOutput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

URL = os.environ["NP_URL"]
HEADERS = {"Authorization": f"Bearer {os.environ['NP_KEY']}"}
FAR, NEAR = [5.5, 5.5], [0.2, 0.2]


async def main() -> dict[str, object]:
    found: dict[str, object] = {}
    one = InferenceRESTClient(RESTConfig(protocol="v1", retries=0))
    two = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    found["ready_v1"] = await one.is_model_ready(URL, "flowers", headers=HEADERS)
    answer = await one.infer(URL, {"instances": [FAR, NEAR]}, model_name="flowers", headers=HEADERS)
    found["v1"] = answer["predictions"]
    found["live"] = await two.is_server_live(URL, headers=HEADERS)
    found["ready"] = await two.is_server_ready(URL, headers=HEADERS)
    found["ready_v2"] = await two.is_model_ready(URL, "flowers", headers=HEADERS)
    found["not_ready"] = await two.is_model_ready(URL, "nobody", headers=HEADERS)
    for binary in (False, True):
        rows = InferInput("input-0", [2, 2], "FP32")
        rows.set_data_from_numpy(np.array([FAR, NEAR], np.float32), binary_data=binary)
        wanted = [RequestedOutput("output-0", {"binary_data": True})] if binary else None
        request = InferRequest("flowers", [rows], request_id="7", request_outputs=wanted)
        answer = await two.infer(URL, request, model_name="flowers", headers=dict(HEADERS))
        output: InferOutput = answer.outputs[0]
        found["binary" if binary else "json"] = [answer.id, answer.model_name, output.as_numpy().tolist()]
    await one.close()
    await two.close()
    return found


print(json.dumps(asyncio.run(main())))
