"""TorchScript archives: tensors in, in the order they are given; a tensor, a tuple or a dictionary out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from nanopod.node.engines.serving.answers import Refused
from nanopod.node.engines.serving.formats import number
from nanopod.node.engines.serving.predictors import INPUT, OUTPUT, Predictor, first_line, matrix_of
from nanopod.node.engines.serving.tensors import Facts, Tensor, tensor

FAULTS: Final = (RuntimeError, ValueError, TypeError, IndexError)
"""What torch raises for tensors that a model does not take."""


class TorchScript(Predictor):
    """A scripted module in evaluation mode."""

    platform = "pytorch_libtorch"

    def __init__(self, module: Any, device: Any) -> None:
        self._module = module
        self._device = device
        self.inputs = (Facts(INPUT, "FP32", (-1,)),)
        self.outputs = (Facts(OUTPUT, "FP32", (-1,)),)

    def rows(self, instances: list[Any]) -> Any:
        """Rows of numbers; whole numbers stay whole where they all are."""
        array = matrix_of(instances)
        if array.dtype.kind not in "biuf":
            raise Refused(400, "instances must be numbers, or lists of numbers of one shape")
        found = self._run([array.astype(np.float32) if array.dtype.kind == "f" else array])
        return found[0].array if len(found) == 1 else [
            {one.name: one.array[row].tolist() for one in found} for row in range(len(found[0].array))
        ]  # fmt: skip

    def infer(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """In the order of the request."""
        return self._run([one.array for one in inputs])

    def _run(self, arrays: Sequence[Any]) -> list[Tensor]:
        import torch

        if any(array.dtype == object for array in arrays):
            raise Refused(400, "a TorchScript model takes numbers, not BYTES")
        given = [torch.from_numpy(np.array(array)).to(self._device) for array in arrays]
        try:
            with torch.inference_mode():
                found = self._module(*given)
        except FAULTS as error:
            if "float" in str(error) and any(not one.is_floating_point() for one in given):
                given = [one.float() for one in given]
                with torch.inference_mode():
                    found = self._module(*given)
            else:
                raise Refused(400, f"the model does not take this input: {first_line(error)}") from error
        return outputs_of(found)


def outputs_of(found: Any) -> list[Tensor]:
    """A module's answer as named tensors."""
    if isinstance(found, dict):
        return [tensor(str(name), value.detach().cpu().numpy()) for name, value in found.items()]
    if not isinstance(found, list | tuple):
        found = [found]
    return [tensor(f"output-{place}", value.detach().cpu().numpy()) for place, value in enumerate(found)]


def load_pytorch(path: Path, options: Mapping[str, str]) -> TorchScript:
    """On the first accelerator, else on `nthread` (1) threads of the processor."""
    import torch

    torch.set_num_threads(number(options, "nthread", 1))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = torch.jit.load(str(path), map_location=device)
    module.eval()
    return TorchScript(module, device)
