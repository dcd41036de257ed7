"""Decide whether a run compiles its model, and try the compiler before it does."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.training.engine import Engine


def compile_model(model: Megabyte, engine: Engine) -> list[str]:
    """Compile the engine's model as `train.compile` asks. Every rank has to call it.

    Returns:
        Lines for the log.
    Raises:
        ValueError: if the config demands a compiler, and a rank has none that works.
    """
    choice, device = engine.config.train.compile, engine.device
    if choice == "off" or (choice == "auto" and device.type != "cuda"):
        return []
    problems = engine.gather([compiler_problem(device)])
    if problem := next(filter(None, problems), ""):
        if choice == "on":
            raise ValueError(
                f"train.compile is on, and PyTorch's compiler does not work here ({problem}): "
                "`bytelm doctor` names what it needs; or set train.compile to auto or off"
            )
        return [f"the model is not compiled, since PyTorch's compiler does not work: {problem}"]
    if engine.zero_stage == 3:
        _gather_by_block(model)
    model.compile_regions()
    return ["the first steps also compile the model"]


def _gather_by_block(model: Megabyte) -> None:
    """Make ZeRO 3 gather parameters where a block or a stage is called, not one of its modules.

    DeepSpeed gathers a module's parameters in hooks of the module, which no compiled region can
    run. So a block's parameters become the block's own ones, and those of a stage outside of its
    blocks the stage's; the modules between lose their hooks. DeepSpeed has "leaf modules" for that,
    but reduces the gradients of one after its first backward pass, and a block has one a chunk.
    """
    import deepspeed

    for stage in model.stages:
        blocks = list(stage.blocks)
        in_blocks = {module for block in blocks for module in block.modules()}
        outside = [module for module in stage.modules() if module not in in_blocks]
        for caller, called in [(stage, outside), *((b, list(b.modules())) for b in blocks)]:
            for module in called:
                if module is caller:
                    continue
                module._forward_pre_hooks.clear()
                module._forward_hooks.clear()
                for parameter in module.parameters(recurse=False):
                    deepspeed.zero.register_external_parameter(caller, parameter)


def compiler_problem(device: torch.device) -> str:
    """Why a function cannot be compiled for a device, on one line; empty if it can be.

    It compiles a small function and its gradient, which takes some seconds the first time.
    """
    # It warns of a missing GPU where it looks for the compiler of one.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    x = torch.ones(16, device=device, requires_grad=True)
    try:
        compiled = torch.compile(_trial, fullgraph=True, dynamic=False)
        compiled(x).backward()
    except Exception as error:  # whatever a compiler, a driver or a full disk raises
        return _first_line(error)
    return ""


def _trial(x: Tensor) -> Tensor:
    return (x.sin() * x).sum()


def _first_line(error: Exception) -> str:
    """Class and first line of a compiler's error, which goes on with a trace and advice."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0].strip()}" if lines else type(cause).__name__
