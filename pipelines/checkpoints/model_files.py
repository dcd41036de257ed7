"""The files of an exported model.

MODEL/model.safetensors    weights
MODEL/config.json          sizes and options, and what the model was trained on
MODEL/README.md            the model card
MODEL/samples/             what the model drew, and samples.json
"""

from __future__ import annotations

from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE, WEIGHTS_FILE

CARD_FILE = "README.md"
EXPORTED_SAMPLES = "samples"
EXPORTED_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
THIS_FOLDER = '"."'
"""The argument of `bytelm.load` in a card's snippet, in place of which a pushed card has its
repository's id."""
