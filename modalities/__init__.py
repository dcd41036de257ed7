"""The modalities, by name and in the order of their codes."""

from bytelm.modalities.audio import Audio
from bytelm.modalities.base import Modality
from bytelm.modalities.image import Image
from bytelm.modalities.text import Text

MODALITIES: dict[str, Modality] = {m.name: m for m in (Text(), Image(), Audio())}

assert [m.code for m in MODALITIES.values()] == list(range(len(MODALITIES)))
