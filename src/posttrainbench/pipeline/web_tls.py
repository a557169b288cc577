"""A run whose https is looked into: settings of its web door, and the certificates that its sandbox trusts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrainbench.catalog import Benchmark
from posttrainbench.errors import ConfigurationError
from posttrainbench.files import write_atomic
from posttrainbench.pipeline.spec import RunSpec
from posttrainbench.workspace import paths

INTERCEPT = "intercept"
BUNDLE, APT = "certificates.pem", "apt.conf"
# For OpenSSL, Python, httpx, uv, Go and Rust; requests; curl; Node; pip; git; npm; the AWS tools; cargo; Deno.
VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "npm_config_cafile",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
)
"""Variables that name the file with the certificates that a program trusts."""


def settings(spec: RunSpec, benchmark: Benchmark, network: str, hub: Mapping[str, Any] | None) -> dict[str, Any]:
    """The web door's configuration.

    Args:
        spec, benchmark: of the run.
        network: policy of the web door.
        hub: configuration of the hub door, which knows the hashes of test data; `None` for a run without one.

    Raises:
        ConfigurationError: the interceptor is asked for and not installed, or the policy cannot be read.
    """
    from posttrainbench.gateway import intercept_install
    from posttrainbench.gateway.hub_config import HubConfig
    from posttrainbench.gateway.web_config import WebConfig

    rules = HubConfig.from_json(hub or {"benchmark": benchmark.id}).rules()
    known = sorted(set().union(*(entry.hashes for entry in rules.test_data)))
    engine = str(intercept_install.require().path) if spec.web_tls == INTERCEPT else ""
    config = WebConfig(policy=network, tls=spec.web_tls, engine=engine, benchmark=benchmark.id, known=tuple(known))
    config.rules()
    return config.to_json()


def check(spec: RunSpec, *, closed: bool) -> None:
    """See that the wish fits the run's network.

    Raises:
        ConfigurationError: there is no web door whose TLS could be looked into.
    """
    if spec.web_tls == INTERCEPT and closed:
        raise ConfigurationError("--web-tls intercept needs a web door; this run's network is closed (see --network)")


def authority(run: str) -> dict[str, str]:
    """A certificate authority for one run; its key is for the gateway only.

    Raises:
        ConfigurationError: the interceptor is not installed.
        InfrastructureError: it does not start.
    """
    from posttrainbench.gateway import intercept_install

    return intercept_install.new_authority(intercept_install.require(), f"PostTrainBench run {run}"[:60])


def hand_over(control: Path, certificate: str) -> dict[str, str]:
    """Leave the certificates in the directory that the sandbox reads; returns the environment that names them.

    The host's usual ones are among them, for tunnels that are passed on as they are.
    """
    from posttrainbench.gateway.intercept import trusted

    usual = trusted()
    known = Path(usual).read_text(encoding="utf-8", errors="replace") if usual else ""
    inside = f"{paths.CONTROL}/{BUNDLE}"
    write_atomic(control / BUNDLE, f"{known.rstrip()}\n{certificate}")
    # apt has no variable for it, only one that names a file of settings
    write_atomic(control / APT, f'Acquire::https::CaInfo "{inside}";\n')
    for name in (BUNDLE, APT):
        (control / name).chmod(0o644)
    return {**dict.fromkeys(VARIABLES, inside), "APT_CONFIG": f"{paths.CONTROL}/{APT}"}
