"""From the bytes of a file to an upright, opaque RGB image: where hostile bytes arrive.

A file is read in four steps. Its first bytes decide what it is (`kinds`). A module per format reads
what the file says of its samples, refuses what it does not know by what it is, and drops what the
picture does not need (`formats`; `layouts` is the table of all). The rest goes to Pillow's
decoder of this format, within a budget of bytes that all decoders of the process share (`limits`).
"""

from drexperts.runtime.decoding.image import Source as Source
from drexperts.runtime.decoding.image import decode as decode
from drexperts.runtime.decoding.image import decoder_version as decoder_version
from drexperts.runtime.decoding.image import describe as describe
