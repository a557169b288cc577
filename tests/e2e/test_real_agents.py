"""The four real CLIs in the sandbox, driven by a scripted model through a post-training of the tiny model, to a score."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from posttrainbench.errors import ConfigurationError
from tests.sandbox.conftest import lab
from tests.support.agent_runs import AGENTS, KEYS, Finished, solved, upstreams, whole
from tests.support.model_server import ModelServer, Script

pytestmark = pytest.mark.slow

TRAIN = """
from pathlib import Path
from posttrainbench.scaffolds.scripted import sft
from posttrainbench.smoke import generate, render_prompt
examples = [{"prompt": render_prompt(p.question), "completion": p.solution} for p in generate(70 * 32, 7)]
sft.fine_tune(examples, sft.base_model(), Path("final_model"), sft.Recipe(steps=70, batch_size=32, seed=7))
"""

# Every file and process that the agent can read, searched for the marker that all real keys share. The marker is put
# together here, so that the search does not find itself in the agent's own transcripts.
SEARCH = """
import os
marker = "REAL" + "KEY-"
found = []
for top in ("/home", "/tmp", "/run", "/etc", "/opt", "/var", "/models", "/mnt", "/srv", "/root", "/proc"):
    for folder, names, files in os.walk(top):
        if top == "/proc":
            names[:] = [n for n in names if n.isdigit()] if folder == "/proc" else []
            files = [f for f in files if f in ("environ", "cmdline")]
        for name in files:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path) and marker.encode() in open(path, "rb").read(50_000_000):
                    found.append(path)
            except OSError:
                pass
print("searched; found", len(found), found[:5])
"""

NETWORK = (
    "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' | tr '\\n' ','; "
    "python3 -c \"import socket; s = socket.socket(); s.settimeout(3); print('direct', s.connect_ex(('192.0.2.1', 443)))\"; "
    "ps -eo args | grep -c 'Post-train\\|post-train a' || true"
)

SCRIPT = Script.of(
    "ls; bash timer.sh; head -5 prompt.md",
    f"cat > search.py <<'END'\n{SEARCH}\nEND\npython3 search.py; env | grep -c PTB_ ; {NETWORK}",
    f"cat > train.py <<'END'\n{TRAIN}\nEND\necho written",
    "python train.py 2>&1 | tail -3",
    "python evaluate.py --model-path final_model --limit 20 --json-output-file mine.json; ls final_model",
    "The model is in final_model.",
)


@pytest.fixture
def run(request: pytest.FixtureRequest, agents_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    agent, _, sandbox = request.param.partition(" in ")
    place = {"sandbox": sandbox, "image": lab()} if sandbox else {}
    with ModelServer(SCRIPT) as server:
        upstreams(server, monkeypatch)
        finished = whole(AGENTS[agent], "ptb-tiny-base", tmp_path, hours=0.5, **place)
        finished.requests = list(server.requests)
        return finished


@pytest.mark.parametrize("run", [*AGENTS, "claude-code in podman"], indirect=True)
def test_from_the_prompt_to_the_score(run: Finished) -> None:
    result = run.result
    assert (result["status"], result["verdict"], result["ending"]) == ("scored", "clean", "finished"), run.trace[-3000:]
    # the untouched base model has 0; 70 steps of honest training are worth much more than a guess
    assert result["own_score"] > 0.3
    assert result["tokens"]["output"] > 0 and result["sessions"] == 1

    # no key in there, no way but the gateway
    assert "searched; found 0 []" in run.trace, run.trace[-4000:]
    assert "lo,direct 101" in run.trace.replace("\\n", "")
    for secret in KEYS.values():
        for path in run.run.path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path

    # the gateway put the real key into every call, and logged each
    asked = [each for each in run.requests if each.ask is not None]
    sent = " ".join(" ".join(each.headers.values()) for each in asked)
    assert "REALKEY-" in sent and "ptb-run-" not in sent
    calls = [line for line in run.lines("ledger") if not line.get("refusal")]
    assert len(calls) >= len([each for each in asked if each.ask.shell])
    for line in calls:
        # Codex hangs up at the answer's last event, which may be before the connection's own end
        assert line["complete"] or (line["error"] == "the client went away" and line["tokens"]["output"]), line

    # the prompt went in by another way than the command line, and the trace tells the story in one form for all
    record = json.loads((run.run.path / "run.json").read_text())
    assert record["agent"]["version"] and record["provenance"]
    trajectory = json.loads((run.run.path / "trace" / "trajectory.json").read_text())
    commands = json.dumps([step.get("tool_calls") for step in trajectory["steps"]])
    assert "python train.py" in commands and "evaluate.py" in commands


LOGINS = {
    "claude-code": ("claude-code:claude-opus-4-8+subscription", "claude-max"),
    "codex-cli": ("codex-cli:gpt-5.5+subscription", "chatgpt"),
}


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_stays_on_the_host(
    name: str, agents_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subscription classes: the CLI inside shows a worthless login, the model's service sees the real one."""
    agent, provider = LOGINS[name]
    login = tmp_path / "host" / "auth.json"
    login.parent.mkdir()
    claims = {"exp": 4102444800, "https://api.openai.com/auth": {"chatgpt_account_id": "REALKEY-account"}}
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    real = f"eyJhbGciOiJub25lIn0.{middle}.REALKEY-signature"
    tokens = {
        "id_token": real,
        "access_token": real,
        "refresh_token": "REALKEY-refresh",
        "account_id": "REALKEY-account",
    }
    login.write_text(json.dumps({"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens}))
    login.chmod(0o600)
    with ModelServer(Script.of("python3 search.py 2>/dev/null; cat .codex/auth.json; env", "Done.")) as server:
        upstreams(server, monkeypatch)
        monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-REALKEY-login")
        monkeypatch.setenv("CODEX_HOME", str(login.parent))
        monkeypatch.setenv(f"PTB_UPSTREAM_{provider.upper().replace('-', '_')}", f"{server.url}/{provider}")
        finished = solved(agent, "ptb-tiny-base", tmp_path / "results", hours=0.1)
        asked = [request for request in server.requests if request.ask is not None]
    assert finished.solve["ending"] == "finished", finished.trace[-3000:]
    sent = " ".join(" ".join(request.headers.values()) for request in asked)
    assert "REALKEY-" in sent and "ptb-run-" not in sent
    assert "REALKEY-" not in finished.trace
    record = finished.run.record()
    assert record["agent"]["subscription"] and not record["agent"]["mounts_credentials"]
    # tokens are counted; a flat login has no cost per call
    usage = finished.solve["usage"]
    assert usage["tokens"]["output"] > 0 and not usage["cost_usd"]


def test_a_missing_key_is_said_before_anything_starts(
    agents_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*KEYS, "PTB_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="no credential for anthropic: set ANTHROPIC_API_KEY"):
        solved(AGENTS["claude-code"], "ptb-tiny-base", tmp_path)
    assert list(tmp_path.glob("*/*")) == []


def test_reprompting_goes_on_in_the_same_session(
    agents_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first session ends at once, with most of the time left; the third one meets the end of the script's patience."""
    script = Script.of("echo one", "First stop.", usage=None)
    with ModelServer(script) as server:
        upstreams(server, monkeypatch)
        finished = solved(
            "codex-cli:gpt-5.5", "ptb-tiny-base", tmp_path, hours=40 / 3600, reprompt=True, reprompt_floor_h=25 / 3600
        )
    sessions = finished.solve["sessions"]
    assert len(sessions) >= 2 and finished.run.record()["agent"]["name"] == "codex-cli:gpt-5.5+reprompt"
    assert {session["session"] for session in sessions} == {sessions[0]["session"]}
    assert sessions[1]["resumed"] == sessions[0]["session"]
    assert "of your time are left" in finished.trace
