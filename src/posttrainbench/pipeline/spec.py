"""What a run is asked to be: the options of `ptb run`, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.request import DEFAULT_GRADER
from posttrainbench.sandbox import DEFAULT as DEFAULT_SANDBOX

_SHORTEST_H = 1 / 3600
_LONGEST_H = 24 * 31.0
DISK_QUOTA = ("watchdog", "exact")
TEST_DATA = ("visible", "sealed")
TEST_FEEDBACK = ("score", "items")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One attempt at a cell.

    Attributes:
        agent: `SCAFFOLD`, `SCAFFOLD:MODEL` or the TOML file of a scaffold of the user's own; see `scaffolds.parse_agent`.
        agent_model: the agent's model, where `agent` does not say it.
        effort: its reasoning effort; `None` for the CLI's own choice.
        helper_models: further models that its CLI may ask; empty for the scaffold's own list.
        reprompt: an agent that finishes early is told to go on.
        reprompt_floor_h: with less time left than this it is not.
        subscription: the gateway injects a login of the host's instead of an API key.
        agent_env: extra environment of the agent.
        network: policy of the web door: `closed`, `guarded`, `open` or a TOML file; `None` for the agent's default.
        web_tls: `intercept` to look into https at the web door, `passthrough` to pass it on (docs/web.md).
        budget_tokens: tokens that the agent's model calls may use; `None` for no limit.
        budget_usd: the same in US dollars at list prices.
        server_tools: tools that run at the model's provider and that the agent may use, such as `web_search`.
        base_model: catalogue name, hub id or directory.
        benchmark: catalogue id.
        hours: the agent's time; fractions allowed.
        grace_s: seconds between SIGTERM at the deadline and SIGKILL.
        memory_gib: memory of the agent's process tree; `None` for what the machine has, less a reserve.
        disk_gib: what the agent may write; `None` for what the disk has, less a reserve.
        disk_quota: how that limit is kept: `watchdog` (the agent is ended) or `exact` (its writes fail; see `quota`).
        processes: processes and threads of the agent.
        gpus: indices of the GPUs the agent gets; `None` for the first one, if there is any.
        instruct: instruct counterpart, for base models that the catalogue does not have.
        seed: seed of the final evaluation.
        data_dir: directory of the benchmark's original data files, instead of the hub.
        grader: Inspect model that grades the LLM-graded benchmarks.
        sandbox: back end that confines the agent and the evaluation, see `sandbox.get_backend`.
        image: container image or its file, for the back ends that need one.
        test_data: `visible`, as in the paper, or `sealed`: no test item is in the sandbox, and the harness evaluates.
        test_feedback: with sealed data: `score`, or `items` for right or wrong by item as well.
        test_calls: with sealed data: evaluations that the agent may ask for.
        test_hours: with sealed data: hours that these may take together; `None` for the agent's whole time.
    """

    agent: str
    base_model: str
    benchmark: str
    agent_model: str | None = None
    effort: str | None = None
    helper_models: tuple[str, ...] = ()
    reprompt: bool = False
    reprompt_floor_h: float = 0.5
    subscription: bool = False
    agent_env: Mapping[str, str] = field(default_factory=dict)
    network: str | None = None
    web_tls: str = "passthrough"
    budget_tokens: int | None = None
    budget_usd: float | None = None
    server_tools: tuple[str, ...] = ()
    hours: float = 10.0
    grace_s: float = 30.0
    memory_gib: float | None = None
    disk_gib: float | None = None
    disk_quota: str = "watchdog"
    processes: int = 4096
    gpus: tuple[int, ...] | None = None
    instruct: str | None = None
    seed: int = 0
    data_dir: str | None = None
    grader: str = DEFAULT_GRADER
    sandbox: str = DEFAULT_SANDBOX
    image: str | None = None
    test_data: str = "visible"
    test_feedback: str = "score"
    test_calls: int = 100
    test_hours: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigurationError: a number that cannot be.
        """
        if not math.isfinite(self.hours) or not _SHORTEST_H <= self.hours <= _LONGEST_H:
            raise ConfigurationError(
                f"--hours {self.hours:g} cannot be; give a number from {_SHORTEST_H:.5f} (one second) to {_LONGEST_H:g}"
            )
        if not math.isfinite(self.grace_s) or self.grace_s < 0:
            raise ConfigurationError(f"--grace {self.grace_s:g} cannot be; give seconds >= 0")
        for option, value in (("--memory-gib", self.memory_gib), ("--disk-gib", self.disk_gib)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"{option} {value:g} cannot be; give GiB > 0")
        if not math.isfinite(self.reprompt_floor_h) or self.reprompt_floor_h < 0:
            raise ConfigurationError(f"--reprompt-floor {self.reprompt_floor_h:g} cannot be; give hours >= 0")
        for option, amount in (("--budget-tokens", self.budget_tokens), ("--budget-usd", self.budget_usd)):
            if amount is not None and not (math.isfinite(amount) and amount > 0):
                raise ConfigurationError(f"{option} {amount:g} cannot be; give a number > 0")
        if self.disk_quota not in DISK_QUOTA:
            raise ConfigurationError(f"--disk-quota {self.disk_quota!r} cannot be; known: {', '.join(DISK_QUOTA)}")
        self._check_test_data()
        if self.web_tls not in ("passthrough", "intercept"):
            raise ConfigurationError(f"--web-tls is to be passthrough or intercept, not {self.web_tls!r}")
        if self.processes < 16:
            raise ConfigurationError(f"--processes {self.processes} cannot be; an agent needs at least 16")

    def _check_test_data(self) -> None:
        for option, chosen, known in (
            ("--test-data", self.test_data, TEST_DATA),
            ("--test-feedback", self.test_feedback, TEST_FEEDBACK),
        ):
            if chosen not in known:
                raise ConfigurationError(f"{option} {chosen!r} cannot be; known: {', '.join(known)}")
        if self.test_data == "visible" and (self.test_feedback, self.test_hours) != ("score", None):
            raise ConfigurationError("--test-feedback and --test-hours need --test-data sealed")
        if not 1 <= self.test_calls <= 9999:
            raise ConfigurationError(f"--test-calls {self.test_calls} cannot be; give a number from 1 to 9999")
        if self.test_hours is not None and not (math.isfinite(self.test_hours) and self.test_hours > 0):
            raise ConfigurationError(f"--test-hours {self.test_hours:g} cannot be; give hours > 0")

    def as_json(self) -> dict[str, Any]:
        """Plain data for run.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RunSpec:
        """Read what `as_json` wrote; what an imported run does not tell (`null`) takes the default."""
        gpus = value.get("gpus")
        lists = {name: tuple(value.get(name) or ()) for name in ("helper_models", "server_tools")}
        known = {name: entry for name, entry in value.items() if entry is not None}
        return cls(**{**known, **lists, "gpus": None if gpus is None else tuple(gpus)})
