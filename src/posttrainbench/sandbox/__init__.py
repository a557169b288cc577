"""How untrusted programs are confined: one interface, one file per back end."""

from posttrainbench.sandbox.spec import Backend, Capabilities, Check, Limits, Reason, Result, Spec

__all__ = ["Backend", "Capabilities", "Check", "Limits", "Reason", "Result", "Spec"]
