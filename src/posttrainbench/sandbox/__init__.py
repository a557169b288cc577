"""How untrusted programs are confined: one interface, one file per back end."""

from posttrainbench.errors import ConfigurationError
from posttrainbench.sandbox.environment import python_runtime
from posttrainbench.sandbox.spec import Backend, Capabilities, Check, Limits, Reason, Result, Spec

__all__ = [
    "Backend",
    "Capabilities",
    "Check",
    "Limits",
    "Reason",
    "Result",
    "Spec",
    "get_backend",
    "python_runtime",
]


def get_backend(name: str = "bubblewrap") -> Backend:
    """The sandbox back end with this name. Looks at nothing on the machine yet; `preflight` does.

    Raises:
        ConfigurationError: there is none with this name.
    """
    if name == "bubblewrap":
        from posttrainbench.sandbox.bubblewrap import Bubblewrap  # here: importing this package must stay cheap

        return Bubblewrap()
    raise ConfigurationError(f"unknown sandbox {name!r}: choose bubblewrap")
