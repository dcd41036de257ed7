"""A stand-in for CUDA graphs on a CPU: steps that are recorded and replayed."""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class _Recorder(TorchDispatchMode):
    """Records operations while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, output))
        return output


class TapedSteps:
    """`StepGraphs` on a CPU: the first call of a step is recorded, and replayed from then on.

    A replay runs the recorded operations on the recorded tensors and no Python of the step, so that
    a step gives other numbers than when it is called if anything in it depends on the host.
    """

    def __init__(self, *_: object) -> None:
        self.tapes: dict[Hashable, list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]] = {}

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run or replay a step."""
        if key in self.tapes:
            _replay(self.tapes[key])
            return
        with _Recorder() as recorder:
            step()
        self.tapes[key] = recorder.tape


def _replay(tape: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]) -> None:
    replaced: dict[int, Tensor] = {}  # tensors of the recording by id, those of this replay

    def current(tensor: Tensor) -> Tensor:
        return replaced.get(id(tensor), tensor)

    for func, args, kwargs, old in tape:
        args, kwargs = tree_map_only(Tensor, current, (args, kwargs))
        new = func(*args, **kwargs)
        for before, after in zip(_tensors(old), _tensors(new), strict=True):
            replaced[id(before)] = after


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
