"""Loading and using a model needs none of the packages of training, and none that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.commands import environment
from helpers.served import write_model
from helpers.sets import SetMaker, text

SCRIPT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"deepspeed", "webdataset", "tensorboard", "huggingface_hub"}:
            raise ImportError(f"{name} is absent")

sys.meta_path.insert(0, Absent())
import bytelm
from bytelm.pipelines.cli.main import main

folder, shard_set = sys.argv[1:]
model = bytelm.load(folder)
assert model.score("call me").shape == (7,)
assert len(model.generate("text", max_bytes=9)) == 1
assert model.generate("image", size=(2, 2))[0].size == (2, 2)
assert model.decompress(model.compress(b"whale")) == b"whale"
assert main(["evaluate", folder, "--data", shard_set, "--split", "val", "--json"]) == 0
"""


HEAVY = """
import sys

import bytelm

bytelm.load(sys.argv[1]).compress(b"whale")
print(sorted({"torch._dynamo", "sympy", "huggingface_hub"} & set(sys.modules)))
"""


def test_a_model_is_used_where_deepspeed_and_webdataset_cannot_be_imported(
    make_set: SetMaker, tmp_path: Path
) -> None:
    shard_set = make_set([[text(b"a whale")]], val=[[text(b"call me Ishmael")]])
    model = write_model(tmp_path / "model")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(shard_set.location)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert '"bits_per_byte"' in result.stdout


def test_a_model_in_a_folder_loads_without_pytorchs_compiler(tmp_path: Path) -> None:
    """The compiler takes seconds to import, longer than all else before the first byte."""
    model = write_model(tmp_path / "model")
    line = [sys.executable, "-c", HEAVY, str(model)]
    assert subprocess.check_output(line, env=environment(), text=True) == "[]\n"
