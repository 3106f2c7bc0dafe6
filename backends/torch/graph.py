"""A decode step as one CUDA graph: the device is asked once a step, instead of once an operation."""

from __future__ import annotations

import torch

from backends.torch.step import FixedStep

WARM_UPS = 2  # what kernels set up at their first call must not be in the graph


class GraphedStep:
    """A fixed step, captured for its number of rows and of slots that it reads; replayed for each step.

    Not to be used once the rows or what acts on them have changed.
    """

    def __init__(self, step: FixedStep) -> None:
        """Capture the step. What it has moved on by trying is put back."""
        self._step = step
        kept = [tensor.clone() for tensor in step.state()]
        device = step.tokens.device
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step.compute()
                    self._put_back(kept)
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                step.compute()
            self._put_back(kept)

    def _put_back(self, kept: list[torch.Tensor]) -> None:
        for tensor, old in zip(self._step.state(), kept, strict=True):
            tensor.copy_(old)

    @property
    def full(self) -> bool:
        return self._step.full

    def run(self) -> None:
        """One step."""
        self._graph.replay()
        self._step.advance()
