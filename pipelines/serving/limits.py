"""Sizes that the playground accepts and makes. Time and queue have their limits in `jobs`."""

from __future__ import annotations

from bytelm.modalities.base import Limits

MAX_UPLOAD_BYTES = 32 << 20
"""Bytes of an uploaded file."""
MAX_UPLOADS_BYTES = 1 << 30
"""Bytes of all uploads that the server keeps; the oldest go first."""
UPLOAD_SECONDS = 3600
"""Uploads older than this are removed."""
MAX_REQUEST_BYTES = MAX_UPLOAD_BYTES + (1 << 20)
"""Bytes of a request's body."""
DECODE_LIMITS = Limits(max_bytes=1 << 27, max_side=16_384)
"""128 MB of pixels or samples: a photograph of 44 million pixels, a sound of 12 minutes."""

MAX_COUNT = 4
"""Results that are drawn at once."""
MAX_TEXT_BYTES = 4096
"""Longest text that is drawn, and longest prompt."""
MAX_SIDE = 256
"""Pixels of the side of an image that is drawn."""
MAX_SECONDS = 10.0
"""Length of a sound that is drawn."""
MAX_DRAWN_BYTES = 1 << 20
"""Payload bytes of all results of a request."""
MAX_SCORED_BYTES = 3 << 16
"""Payload bytes that a surprise map or a compression reads: an image of 256 x 256 pixels."""
