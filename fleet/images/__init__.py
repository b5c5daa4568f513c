"""Images on one host: names, content by digest, safe unpacking, load/import/pull, sharing with other nodes.

The package turns a name (``nginx:1.27``) or a file (``docker save``, a root file system) into directories an overlay
can be mounted from, and hands the same bytes to other nodes by digest. It knows nothing about containers, clusters or
the HTTP API: callers give it sources to fetch from, byte streams to load, and the set of image ids that are in use.

``ImageStore`` is the way in; the other names are the values it speaks in. README.md has the drawing.
"""

from fleet.images.config import HistoryEntry, ImageConfig
from fleet.images.manifest import Descriptor, Manifest, Platform, host_platform
from fleet.images.progress import Progress
from fleet.images.push import RegistryTarget
from fleet.images.reference import Reference, parse_reference
from fleet.images.registry import Credentials, RegistryOptions, RegistrySource, parse_registry_auth
from fleet.images.sources import PeerSource, Source
from fleet.images.store import Image, ImageStore
from fleet.images.unpack import UnpackLimits

__all__ = [
    "ImageStore",
    "Image",
    "ImageConfig",
    "HistoryEntry",
    "UnpackLimits",
    "Source",
    "PeerSource",
    "RegistrySource",
    "RegistryTarget",
    "RegistryOptions",
    "Credentials",
    "parse_registry_auth",
    "Manifest",
    "Descriptor",
    "Platform",
    "host_platform",
    "Progress",
    "Reference",
    "parse_reference",
]
