"""A run whose https is looked into: what the agent has inside, what the record says, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError
from posttrainbench.pipeline.prepare import prepare
from posttrainbench.pipeline.spec import RunSpec
from tests.gateway.test_web_clients import Quiet
from tests.gateway.web_door import interception
from tests.support.agent_runs import solved

AGENT = """
import os, subprocess, sys, urllib.request
url = {url!r}
for name in ("page", "posttrainbench/traces"):
    done = subprocess.run(["curl", "-sS", "-m", "30", url + name], capture_output=True, text=True)
    print("CURL", done.returncode, " ".join(done.stdout.split())[:300], done.stderr[:200].strip(), flush=True)
print("PYTHON", urllib.request.urlopen(url + "page").read(), flush=True)
control = os.listdir("/run/ptb")
text = "".join(open("/run/ptb/" + name).read() for name in control if os.path.isfile("/run/ptb/" + name))
print("KEYS", text.count("PRIVATE KEY"), "CERTIFICATES", text.count("BEGIN CERTIFICATE") > 0, flush=True)
print("APT", open(os.environ["APT_CONFIG"]).read().strip(), flush=True)
"""


def test_https_is_seen(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interception(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "page").write_text("a page\n")
    pem = tmp_path / "server.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.2", "-addext", "subjectAltName=IP:127.0.0.2"]
    files = ["-keyout", str(pem), "-out", f"{pem}.crt"]
    subprocess.run(["openssl", "req", "-x509", *key, *name, *files], check=True, capture_output=True)
    with pem.open("a") as file:
        file.write(Path(f"{pem}.crt").read_text())
    server = ThreadingHTTPServer(("127.0.0.2", 0), partial(Quiet, directory=str(site)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    policy = tmp_path / "company.toml"
    policy.write_text(f'extends = "guarded"\n[[internal]]\nrule = "mirror"\nhosts = ["127.0.0.2"]\nports = [{port}]\n')
    agent = tmp_path / "fetch.py"
    agent.write_text(AGENT.format(url=f"https://127.0.0.2:{port}/"))
    monkeypatch.setenv("SSL_CERT_FILE", f"{pem}.crt")
    try:
        finished = solved(
            f"scripted:{agent}", base_model, tmp_path / "results", network=str(policy), web_tls="intercept"
        )
    finally:
        server.shutdown()
        server.server_close()
    texts = [json.loads(line).get("text", "") for line in finished.trace.splitlines()]
    told = [text for text in texts if text.startswith(("CURL", "PYTHON", "KEYS", "APT"))]
    assert len(told) == 5, finished.trace[-3000:]
    assert told[0].startswith("CURL 0 a page"), told
    assert "rule 'benchmark-pages'" in told[1]
    assert told[2] == "PYTHON b'a page\\n'"
    assert told[3] == "KEYS 0 CERTIFICATES True"
    assert told[4] == 'APT Acquire::https::CaInfo "/run/ptb/certificates.pem";'
    rows = [row for row in finished.lines("web") if "method" in row]
    assert [(row["level"], row["path"], row["allowed"], row["rule"]) for row in rows] == [
        ("request", "/page", True, "mirror"),
        ("request", "/posttrainbench/traces", False, "benchmark-pages"),
        ("request", "/page", True, "mirror"),
    ]
    record = finished.run.record()
    assert record["protocol"]["web_tls"] == record["gateway"]["web"]["tls"] == "intercept"
    assert record["gateway"]["web"]["benchmark"] == record["benchmark"]
    kept = [path for path in finished.run.path.rglob("*") if path.is_file() and os.access(path, os.R_OK)]
    assert not [path for path in kept if b"BEGIN PRIVATE KEY" in path.read_bytes()]


def test_what_cannot_be_is_refused_before_the_run(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text("print('hello')\n")
    common = {"agent": f"scripted:{agent}", "base_model": str(base_model), "benchmark": "smoke-math", "hours": 0.01}
    with pytest.raises(ConfigurationError, match="closed"):
        prepare(RunSpec(**common, web_tls="intercept"), results=tmp_path / "results")
    monkeypatch.setenv("PTB_MITM_ENV", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="ptb doors install"):
        prepare(RunSpec(**common, web_tls="intercept", network="guarded"), results=tmp_path / "results")
    with pytest.raises(ConfigurationError, match="--web-tls"):
        RunSpec(**common, web_tls="open")
    assert not list(tmp_path.glob("results/*/*"))
