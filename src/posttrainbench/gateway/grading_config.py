"""Settings of the grading service, as they stand in `GatewayConfig.grader`, and where its key comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrainbench import catalog
from posttrainbench.errors import ConfigurationError
from posttrainbench.evaluation.request import DEFAULT_GRADER
from posttrainbench.gateway.settings import known_settings

FULL_EVALUATIONS = 10
"""Default of what a run may have graded: so many times the benchmark's items. An agent with the paper's 10 hours can look
at its score once an hour. At the list prices of gpt-5-mini in prices.toml a full evaluation was estimated at 2 to 3 USD (500
games, or 1,900 criteria), so that a run costs some 30 USD at most."""

_PASSED_ON = (
    "HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "PTB_CACHE",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
# Inspect's provider -> variables with its key, its variable for a base URL, the provider of the gateway whose
# PTB_UPSTREAM_* replaces it, and what that URL lacks
_PROVIDERS: Mapping[str, tuple[tuple[str, ...], str, str, str]] = {
    "openai": (("OPENAI_API_KEY",), "OPENAI_BASE_URL", "PTB_UPSTREAM_OPENAI", "/v1"),
    "anthropic": (("ANTHROPIC_API_KEY",), "ANTHROPIC_BASE_URL", "PTB_UPSTREAM_ANTHROPIC", ""),
    "google": (("GOOGLE_API_KEY", "GEMINI_API_KEY"), "GOOGLE_BASE_URL", "PTB_UPSTREAM_GEMINI", ""),
}


@dataclass(frozen=True, kw_only=True)
class GraderConfig:
    """What the service grades, with what, and how much of it.

    Attributes:
        benchmark: the run's; nothing else is graded.
        model: Inspect model that grades.
        data_dir: the benchmark's original data files on the host; `None` for the hub's cache.
        answers: answers that may be graded in the run; `None` for ten full evaluations. The same answer to the same item
            counts once.
        answer_chars: longest answer. 16,384 tokens, the protocol's most, are 65,000 characters of usual text.
        job_bytes: largest submission.
        job_s: seconds that grading one submission may take.
        jobs: submissions in the run.
        environment: further variables of the grading process, none of them secret.
    """

    benchmark: str
    model: str = DEFAULT_GRADER
    data_dir: str | None = None
    answers: int | None = None
    answer_chars: int = 200_000
    job_bytes: int = 128 * 1024 * 1024
    job_s: float = 7200.0
    jobs: int = 1000
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def most_answers(self) -> int:
        """`answers`, or its default."""
        return self.answers if self.answers is not None else FULL_EVALUATIONS * catalog.benchmark(self.benchmark).items

    def to_json(self) -> dict[str, Any]:
        """As JSON types. Holds no secret."""
        return {**asdict(self), "environment": dict(self.environment)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GraderConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigurationError: an unknown setting, or no benchmark.
        """
        return cls(**known_settings(cls, value, of="the grading service", needed=("benchmark",)))


def grader_settings(
    benchmark: str,
    *,
    model: str = DEFAULT_GRADER,
    data_dir: str | None = None,
    answers: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[GraderConfig, dict[str, str]]:
    """The service's settings and its secrets, from the host's environment.

    Args:
        benchmark: the run's.
        model: Inspect model that grades, such as `openai/gpt-5-mini`.
        data_dir: directory of the benchmark's original data files.
        answers: see `GraderConfig`.
        environ: the host's: keys (also from `PTB_KEYS_FILE`), base URLs (`PTB_UPSTREAM_OPENAI` ... before
            `OPENAI_BASE_URL` ...), caches.

    Returns:
        for `GatewayConfig.grader` (by `to_json`) and for `Secrets.grader`.

    Raises:
        ConfigurationError: no key for the grader, or a limit that is none.
    """
    from posttrainbench.gateway.providers import check_url, read_keys

    if answers is not None and answers < 0:
        raise ConfigurationError(f"{answers} answers cannot be graded; give a number >= 0")
    parts = model.split("/")
    if len(parts) < 2:
        raise ConfigurationError(f"the grader {model!r} is to be written as PROVIDER/MODEL, such as {DEFAULT_GRADER}")
    name = (parts[1] if parts[0] == "openai-api" else parts[0]).upper().replace("-", "_")
    keys, base, upstream, path = _PROVIDERS.get(
        parts[0], ((f"{name}_API_KEY",), f"{name}_BASE_URL", f"PTB_UPSTREAM_{name}", "")
    )
    file_keys = read_keys(Path(environ["PTB_KEYS_FILE"])) if environ.get("PTB_KEYS_FILE") else {}
    key = next((value for each in keys if (value := environ.get(each) or file_keys.get(each))), None)
    if key is None:
        raise ConfigurationError(
            f"no key for the grader {model}: set {' or '.join(keys)} (or name a file with it in PTB_KEYS_FILE), "
            "or another grader with --grader"
        )
    environment = {variable: environ[variable] for variable in _PASSED_ON if environ.get(variable)}
    url = f"{environ[upstream].rstrip('/')}{path}" if environ.get(upstream) else environ.get(base)
    if url:
        check_url(url, upstream)
        environment[base] = url
    config = GraderConfig(benchmark=benchmark, model=model, data_dir=data_dir, answers=answers, environment=environment)
    return config, {keys[0]: key}
