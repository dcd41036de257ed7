"""Load a checkpoint of any number of ranks and any ZeRO stage into any other.

DeepSpeed's own converter (`ds_to_universal`) knows Adam's two moments only and never changes the
stage. This one takes the state of any optimizer that keeps tensors of the size of its parameters,
and scalars beside them. The tensors are put together from the files of every rank; each rank cuts
its part out of them into a shard as it would have saved it, and DeepSpeed loads that.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bytelm.model.stored_names import parameter_from_stored

WEIGHT = "fp32"
"""Key of a parameter's weights, beside the keys of its optimizer state."""


def load(zero: Any, module: torch.nn.Module, stage: int, saved: SavedTensors) -> None:
    """Load weights and optimizer state into an engine. Every rank has to call it.

    Args:
        zero: the engine's optimizer: torch's own at stage 0, otherwise DeepSpeed's around it.
        stage: the engine's ZeRO stage.
    """
    if stage == 0:
        _load_unsharded(zero, module, saved)
    elif stage == 3:
        zero.checkpoint_event_prologue()
        shard = _shard_of_stage_3(zero, module, saved)
        zero.load_state_dict([shard] * dist.get_world_size())
        zero.checkpoint_event_epilogue()
    else:
        shard = _shard_of_stage_1_or_2(zero, module, saved)
        zero.load_state_dict([shard] * dist.get_world_size(), load_from_fp32_weights=True)


def parameter_names(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> list[str]:
    """List the names of an optimizer's parameters in its order, group by group."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]


class SavedTensors:
    """The tensors of a checkpoint by parameter, put together from the parts of all ranks.

    The files are mapped into memory, so a rank reads only what it uses.
    """

    def __init__(self, folder: Path, ranks: int, zero_stage: int, names: Sequence[str]):
        """
        Args:
            folder: of DeepSpeed's files. They are opened with pickle, so check them before.
            ranks: number of ranks that wrote them.
            zero_stage: ZeRO stage under which they were written.
            names: names of the parameters in the order of the optimizer, group by group.
        """
        self._parts: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self._scalars: dict[str, dict[str, Any]] = defaultdict(dict)
        if zero_stage == 0:
            self._read_unsharded(_open(folder / "mp_rank_00_model_states.pt"), names)
        for rank in range(ranks if zero_stage > 0 else 0):
            shard = _open(folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            if zero_stage == 3:
                states = _open(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
                self._read_stage_3(
                    shard["optimizer_state_dict"], states["param_shapes"], rank, ranks
                )
            else:
                self._read_stage_1_or_2(shard["optimizer_state_dict"])

    def keys(self, name: str) -> list[str]:
        """List the keys of a parameter's tensors: WEIGHT, and those of the optimizer state."""
        return list(self._parts[name])

    def tensor(self, name: str, key: str) -> Tensor:
        """Return one whole tensor of a parameter, flat."""
        return torch.cat(self._parts[name][key])

    def scalars(self, name: str) -> dict[str, Any]:
        """Return the parts of a parameter's optimizer state that are no tensors of its size.

        They are copied: a counter that two parameters shared would count twice as fast.
        """
        return copy.deepcopy(self._scalars[name])

    def _read_unsharded(self, saved: Mapping[str, Any], names: Sequence[str]) -> None:
        state = saved["optimizer"]["state"]
        weights = {parameter_from_stored(name): w for name, w in saved["module"].items()}
        for index, name in enumerate(names):
            weight = weights[name]
            self._add(name, weight.flatten(), state.get(index, {}), 0, weight.numel())

    def _read_stage_1_or_2(self, saved: Mapping[str, Any]) -> None:
        state = saved["base_optimizer_state"]["state"]
        groups = zip(
            saved["single_partition_of_fp32_groups"], saved["param_slice_mappings"], strict=True
        )
        for index, (flat, fragments) in enumerate(groups):
            for name, fragment in fragments.items():
                self._add(name, flat, state.get(index, {}), fragment.start, fragment.numel)

    def _read_stage_3(
        self, saved: Mapping[str, Any], shapes: Sequence[Mapping[str, Any]], rank: int, ranks: int
    ) -> None:
        state = saved["optimizer_state_dict"]["state"]
        groups = zip(saved["fp32_flat_groups"], shapes, strict=True)
        for index, (flat, group_shapes) in enumerate(groups):
            start = 0
            for name, shape in group_shapes.items():
                size = math.prod(shape)
                part = part_size(size, ranks)
                unpadded = max(0, min(part, size - rank * part))
                self._add(name, flat, state.get(index, {}), start, unpadded)
                start += part

    def _add(
        self, name: str, flat: Tensor, state: Mapping[str, Any], start: int, size: int
    ) -> None:
        """Add one rank's part of a parameter, elements [start, start + size) of flat tensors."""
        name = parameter_from_stored(name)
        self._parts[name][WEIGHT].append(flat[start : start + size])
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                self._parts[name][key].append(value.flatten()[start : start + size])
            else:
                self._scalars[name][key] = value


def _load_unsharded(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, saved: SavedTensors
) -> None:
    names = parameter_names(optimizer, module)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        tensors = {key: saved.tensor(name, key).view_as(parameter) for key in saved.keys(name)}
        parameter.data.copy_(tensors.pop(WEIGHT))
        state[index] = {**tensors, **saved.scalars(name)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _shard_of_stage_1_or_2(
    zero: Any, module: torch.nn.Module, saved: SavedTensors
) -> dict[str, Any]:
    """This rank's part of each group's flat tensor; the weights also go into the module."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    shard = zero.state_dict()
    weights, state = [], {}
    for index, group in enumerate(zero.bit16_groups):
        flat = _FlatGroup(zero.single_partition_of_fp32_groups[index])
        for parameter in group:
            name = names[parameter]
            parameter.data.copy_(saved.tensor(name, WEIGHT).view_as(parameter))
            mapping = parameter._hp_mapping
            if mapping is not None:  # this rank holds some of it
                target, source = mapping.hp_fragment_address, mapping.lp_fragment_address
                source_end = source.start + source.numel
                flat.copy(saved, name, target.start, source.start, source_end)
        weights.append(flat.weights)
        state[index] = flat.state
    shard["single_partition_of_fp32_groups"] = weights
    shard["base_optimizer_state"] = {**shard["base_optimizer_state"], "state": state}
    return shard


def _shard_of_stage_3(zero: Any, module: torch.nn.Module, saved: SavedTensors) -> dict[str, Any]:
    """This rank's part of each parameter, one after another in the group's flat tensor."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    shard = zero.state_dict()
    weights, state = [], {}
    for index, group in enumerate(zero.fp16_groups):
        flat = _FlatGroup(zero.fp32_partitioned_groups_flat[index])
        start = 0
        for parameter in group:
            part = part_size(parameter.ds_numel, dist.get_world_size())
            begin = dist.get_rank() * part
            flat.copy(saved, names[parameter], start, begin, begin + part)
            start += part
        weights.append(flat.weights)
        state[index] = flat.state
    shard["fp32_flat_groups"] = weights
    shard["optimizer_state_dict"] = {**shard["optimizer_state_dict"], "state": state}
    return shard


class _FlatGroup:
    """One rank's part of a parameter group: flat weights, and optimizer state of the same size."""

    def __init__(self, like: Tensor):
        self._size = like.numel()
        self.weights = torch.zeros(self._size)
        self.state: dict[str, Any] = {}

    def copy(self, saved: SavedTensors, name: str, start: int, begin: int, end: int) -> None:
        """Copy elements [begin, end) of a parameter's tensors, as far as they exist, to `start`."""
        self.state.update(saved.scalars(name))
        for key in saved.keys(name):
            part = saved.tensor(name, key)[begin:end]
            if key != WEIGHT and key not in self.state:
                self.state[key] = torch.zeros(self._size)
            target = self.weights if key == WEIGHT else self.state[key]
            target[start : start + len(part)] = part


def part_size(size: int, ranks: int) -> int:
    """Return the elements of a parameter that each rank holds at ZeRO 3, padding included."""
    return -(-size // ranks)


def _open(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
