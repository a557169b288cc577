"""What the operator has in the host's cache and may read on the hub is not the agent's, unless the hub shows it to everybody."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from pathlib import Path

from posttrainbench.gateway import Gateway, GatewayConfig, Secrets
from posttrainbench.gateway.hub_config import HubConfig
from tests.gateway.hub_server import COMMIT, TOKEN, Hub
from tests.gateway.test_hub import Open, opened

assert opened
SECRET = b'{"question": "what nobody else has seen", "answer": "42"}\n'


def cached(cache: Path, name: str) -> None:
    """A repository in the host's cache, as the hub's client leaves it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    blob = folder / "blobs" / hashlib.sha256(SECRET).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(SECRET)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "rows.jsonl").symlink_to(blob)


def test_a_private_repository_in_the_hosts_cache_stays_private(opened: Open, tmp_path: Path) -> None:
    cache = tmp_path / "host-cache"
    for name in ("acme/secret", "acme/public", "acme/gated"):
        cached(cache, name)
    files = {"rows.jsonl": SECRET}
    hub = Hub(
        {"acme/secret": files, "acme/public": files, "acme/gated": files}, private={"acme/secret"}, gated={"acme/gated"}
    )
    inside = opened(hub, policy="open", token=TOKEN)
    for path in ("resolve/main/rows.jsonl", f"resolve/{COMMIT}/rows.jsonl"):
        assert "nobody else" not in inside.curl(f"/acme/secret/{path}")
    assert "rows.jsonl" not in inside.curl("/api/models/acme/secret/tree/main")
    assert "rows.jsonl" not in inside.curl("/api/models/acme/secret")
    assert "nobody else" in inside.curl("/acme/public/resolve/main/rows.jsonl")
    assert "nobody else" in inside.curl("/acme/gated/resolve/main/rows.jsonl")


def test_without_a_network_the_hosts_cache_is_all_there_is(tmp_path: Path) -> None:
    cached(tmp_path / "cache", "acme/public")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nowhere = f"http://127.0.0.1:{gone.getsockname()[1]}"
    config = HubConfig(upstream=nowhere, policy="open", cache=str(tmp_path / "cache"), tries=1)
    with (
        Gateway(GatewayConfig(hub=config.to_json()), Secrets(), tmp_path / "gateway") as gateway,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        gateway.adopt(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hub/acme/public/resolve/main/rows.jsonl"
        done = subprocess.run(["curl", "-sS", url], capture_output=True, check=False)
    assert done.stdout == SECRET
