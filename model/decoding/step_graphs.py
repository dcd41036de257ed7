"""CUDA graphs of steps: a step's launches are recorded once and then replayed as one.

Everything that only runs on a GPU stands in this file; on a CPU a step is simply called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class StepGraphs:
    """Runs steps, which read and write tensors that stay where they are and return nothing.

    On a GPU the first call of a step runs as it is, which compiles kernels and allocates their
    workspaces. The second is captured, and all further ones are replays. Graphs share the memory of
    what a step computes on the way, since they never run at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_captured = device.type == "cuda"
        self._device = device
        self._has_run: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step; one key stands for one sequence of launches."""
        if not self._is_captured or key not in self._has_run:
            step()
            self._has_run.add(key)
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(step)
        self._graphs[key].replay()

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record the launches of a step, without running them."""
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        # Other threads, as those of the playground, may use the GPU in the meantime.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            step()
        return graph
