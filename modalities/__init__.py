"""The registry of modalities: by name, by code, and by the id that opens a segment."""

from bytelm.modalities.audio import Audio
from bytelm.modalities.base import Modality
from bytelm.modalities.image import Image
from bytelm.modalities.text import Text

BY_CODE: tuple[Modality, ...] = (Text(), Image(), Audio())
"""BY_CODE[modality.code] is the modality."""
MODALITIES: dict[str, Modality] = {modality.name: modality for modality in BY_CODE}
"""The modalities by name, in the order of their codes."""
BY_SOM: dict[int, Modality] = {modality.som: modality for modality in BY_CODE}
"""The modalities by `som`, the id that opens a segment of them."""

assert [modality.code for modality in BY_CODE] == list(range(len(BY_CODE)))
