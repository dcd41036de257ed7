"""Where payloads lie in a row of ids, and the columns of the codec features.

A segment of the stream opens with an id that names its modality and a header of some bytes; both
say how to read the payload after them. This package imports no modality, so the constants of the
stream stand here again, and a test compares them.
"""

TEXT, IMAGE, AUDIO = 259, 260, 261
"""The ids that open a segment."""
OPENING_LENGTHS = {TEXT: 6, IMAGE: 11, AUDIO: 11}
"""Ids of a segment's opening: the opener and its header. A header ends with a view of one byte and
an offset of four; those of images and audio begin with four bytes by modality and the channels."""
PAD = 256
RASTER, PLANAR, DEEP, S16BE = 0, 1, 3, 1
"""Header codes of the views that are read as pixels and as samples."""

NONE = -1
"""A feature that an id does not have."""
MATCH_LENGTHS = (4, 6, 8)
"""Bytes that agree in each kind of match; the longest fill a number of 64 bits."""
PREDICTIONS = 8
"""The first columns of the features: predictions of a byte of a pixel or a sample."""
PHASE = PREDICTIONS
"""The column of the byte's position in its pixel or frame; NONE in all other payloads."""
MATCHES = PHASE + 1
"""The first column of the match candidates."""
RUNS = MATCHES + len(MATCH_LENGTHS)
"""The first column of the lengths of the candidates' runs, which sounds lack."""
FEATURES = RUNS + len(MATCH_LENGTHS)
"""J, the codec features of an id."""

KIND, UNIT, LINE, PLACE, SIZE, IS_LOW = range(6)
"""Columns of an id's place in its payload: how it is read (`state.BYTES` and so on); bytes of a
pixel or of a frame (a sample of each channel); bytes of a line of pixels; its index in its unit;
bytes of the payload before it; 1 in the low byte of a sample."""
PLACES = 6
