"""The outcome of one check of a node."""

from __future__ import annotations

from dataclasses import dataclass

from posttrainbench.errors import ConfigurationError, InfrastructureError, PTBError


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        kind: of failure (`launch.failures`), where it does not hold.
        needed: whether nothing is to start without it; else it is a warning.
    """

    name: str
    ok: bool
    detail: str
    kind: str = "sandbox"
    needed: bool = True

    @property
    def stops(self) -> bool:
        """Whether it keeps the cell from running."""
        return self.needed and not self.ok

    @property
    def word(self) -> str:
        """For people."""
        return "ok" if self.ok else "FAIL" if self.needed else "warn"

    def error(self) -> PTBError:
        """The failure as an error, typed by who can mend it."""
        said = f"{self.name}: {self.detail}"
        return ConfigurationError(said) if self.kind == "configuration" else InfrastructureError(said, kind=self.kind)
