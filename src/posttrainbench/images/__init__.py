"""The system inside container sandboxes: built from a lock file, named by digest.

    kinds.py    what can be built: base image, lock
    context.py  the directory that a build reads; Containerfile, Apptainer definition
    engines.py  the command lines of podman, docker and apptainer
    build.py    a build, and the user's record of it
    identity.py what an image is, for `run.json`

The contract with the back ends is in docs/images.md.
"""

from posttrainbench.images.build import Built, Order, build, prepare, records
from posttrainbench.images.identity import LABEL, PACKAGE_INSIDE, PYTHON_INSIDE, Identity, identity
from posttrainbench.images.kinds import KINDS, Kind, get_kind

__all__ = [
    "KINDS",
    "LABEL",
    "PACKAGE_INSIDE",
    "PYTHON_INSIDE",
    "Built",
    "Identity",
    "Kind",
    "Order",
    "build",
    "get_kind",
    "identity",
    "prepare",
    "records",
]
