"""How untrusted programs are confined: one interface, one file per back end."""

from posttrainbench.errors import ConfigurationError
from posttrainbench.sandbox.environment import python_runtime
from posttrainbench.sandbox.spec import Backend, Capabilities, Check, Limits, Reason, Result, Runtime, Spec

__all__ = [
    "DEFAULT",
    "Backend",
    "Capabilities",
    "Check",
    "Limits",
    "Reason",
    "Result",
    "Runtime",
    "Spec",
    "get_backend",
    "python_runtime",
]


DEFAULT = "bubblewrap"
CONTAINERS = ("podman", "docker", "apptainer")


def get_backend(name: str = DEFAULT, *, image: str | None = None) -> Backend:
    """The sandbox back end with this name. Looks at nothing on the machine yet; `preflight` does.

    Args:
        name: see `ptb doctor --help`.
        image: the system inside, for back ends that do not use the host's.

    Raises:
        ConfigurationError: there is none with this name, or it takes no image.
    """
    if name == "bubblewrap":
        if image is not None:
            raise ConfigurationError(f"the sandbox bubblewrap uses this machine's system and takes no image ({image})")
        from posttrainbench.sandbox.bubblewrap import Bubblewrap  # here: importing this package must stay cheap

        return Bubblewrap()
    if name in CONTAINERS:
        from posttrainbench.sandbox import engines

        return engines.ENGINES[name](image)
    raise ConfigurationError(f"unknown sandbox {name!r}: choose {', '.join((DEFAULT, *CONTAINERS))}")
