"""A mistake of the user's gets one line that says what is wrong, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import posttrainbench
from posttrainbench.cli import main

RUN = [
    "run",
    "--agent",
    "scripted:idle",
    "--model",
    "MODEL",
    "--benchmark",
    "smoke-math",
    "--hours",
    "0.01",
    "--out",
    "OUT",
]


def replaced(**changes: str) -> list[str]:
    """The good command with some option values changed."""
    arguments = list(RUN)
    for name, value in changes.items():
        arguments[arguments.index(f"--{name}") + 1] = value
    return arguments


CASES = {
    "unknown agent": (replaced(agent="scripted:honest"), "did you mean 'honest-sft'"),
    "unknown scaffold": (replaced(agent="cursor:x"), "unknown agent 'cursor:x'"),
    "scaffold without program": (replaced(agent="scripted"), "lacks its program"),
    "scaffold without model": (replaced(agent="claude-code"), "lacks its model"),
    "missing program": (replaced(agent="scripted:./none.py"), "there is no file"),
    "unknown model": (replaced(model="ptb-tny"), "unknown base model 'ptb-tny'"),
    "missing model directory": (replaced(model="./none/there"), "there is no model directory"),
    "directory without a model": (replaced(model="/tmp"), "it has no config.json"),
    "instruct model as base": (replaced(model="Qwen/Qwen3-4B"), "instruct counterpart of 'Qwen3-4B-Base'"),
    "unknown benchmark": (replaced(benchmark="smokemath"), "did you mean 'smoke-math'"),
    "negative hours": (replaced(hours="-1"), "--hours -1 cannot be"),
    "zero hours": (replaced(hours="0"), "--hours 0 cannot be"),
    "hours not finite": (replaced(hours="nan"), "--hours nan cannot be"),
    "hours not a number": (replaced(hours="ten"), "not a valid float"),
    "results not writable": (replaced(out="/proc/none"), "cannot be made"),
    "results is a file": (replaced(out="/etc/passwd"), "cannot be made"),
    "GPU that is not there": ([*RUN, "--gpus", "63"], "GPU 63 does not exist"),
    "negative memory": ([*RUN, "--memory-gib", "-2"], "--memory-gib -2 cannot be"),
    "missing option": (RUN[:3], "Missing option '--model'"),
    "unknown command": (["rnu"], "No such command"),
    "resume of no run": (["resume", "/tmp"], "is not a run directory"),
    "show of nothing": (["show", "/nowhere"], "is not a run directory"),
    "leaderboard of nothing": (["leaderboard", "/nowhere"], "there is no results directory"),
    "evaluate nothing": (["evaluate", "/nowhere", "--benchmark", "smoke-math"], "there is no model directory"),
    "evaluate without benchmark": (["evaluate", "MODEL"], "--benchmark is missing"),
    "evaluate no items": (["evaluate", "MODEL", "--benchmark", "smoke-math", "--limit", "0"], "--limit 0 cannot be"),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES.keys())
def test_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    places = {"MODEL": str(base_model), "OUT": str(out)}
    with pytest.raises(SystemExit) as ended:
        main([places.get(argument, argument) for argument in arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1, error
    assert not list(out.rglob("run.json")) and not list(out.rglob("*.tmp")), "a refused run must leave nothing"


def test_model_without_weights(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base_model, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(SystemExit) as ended:
        main(replaced(model=str(broken), out=str(tmp_path / "out")))
    assert ended.value.code == 2
    assert "no weights in safetensors" in capsys.readouterr().err


def _shell(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PTB": f"{sys.executable} -m posttrainbench"}
    return subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def _namespace(arguments: list[str]) -> list[str]:
    command = ["unshare", *arguments]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"`{' '.join(command)}` is not possible here")
    return command


def test_full_disk(base_model: Path, tmp_path: Path) -> None:
    """On a results disk of 1 MiB: one line before anything starts, nothing left behind."""
    command = " ".join(_namespace(["--user", "--map-root-user", "--mount"] if os.geteuid() else ["--mount"]))
    run = " ".join(replaced(model=str(base_model), out="full"))
    done = _shell(
        f"{command} bash -c 'mkdir full; mount -t tmpfs -o size=1m none full; $PTB {run}; echo rc=$?; ls -A full'",
        tmp_path,
    )
    assert done.stdout.splitlines() == ["rc=2"], done.stdout
    assert "too little disk space" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_root_of_a_user_namespace(base_model: Path, tmp_path: Path) -> None:
    """Root of a rootless container cannot give the sandbox another user; the line says what to do."""
    command = " ".join(_namespace(["--user", "--map-root-user"]))
    run = " ".join(replaced(model=str(base_model), out="out"))
    done = _shell(f"{command} $PTB {run}; echo rc=$?", tmp_path)
    assert done.stdout.splitlines()[-1:] == ["rc=2"], done.stdout + done.stderr
    assert "user namespace" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list((tmp_path / "out").rglob("run.json"))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a machine without user namespaces for another user: needs root")
def test_no_user_namespaces(base_model: Path) -> None:
    """Where the kernel grants no user namespaces, the run is refused with the fix."""
    # The ordinary user cannot read root's Python or pytest's directories, so it gets the system's and one of its own.
    system = "/usr/bin/python3"
    site = next((path for path in sys.path if path.endswith("site-packages")), "")
    importable = subprocess.run(
        [
            "setpriv",
            "--reuid",
            "20077",
            "--regid",
            "20077",
            "--clear-groups",
            system,
            "-c",
            "import click, numpy, posttrainbench",
        ],
        env={"PYTHONPATH": f"{site}:{Path(posttrainbench.__file__).parent.parent}"},
        cwd="/",
        capture_output=True,
        check=False,
    )
    if importable.returncode != 0:
        pytest.skip("the system's Python cannot import our packages as another user")
    with tempfile.TemporaryDirectory(prefix="ptb-test-", dir="/tmp") as directory:
        place = Path(directory)
        shutil.copytree(base_model, place / "model", copy_function=shutil.copyfile)
        run = replaced(model=str(place / "model"), out=str(place / "out"))
        place.chmod(0o777)
        (place / "model" / "model.safetensors").chmod(0o644)
        become = "setpriv --reuid 20077 --regid 20077 --clear-groups"
        # the capability is needed to write the limit, and bwrap refuses to start with it
        without = "setpriv --inh-caps=-all --ambient-caps=-all"
        inner = f"echo 0 > /proc/sys/user/max_user_namespaces; {without} {system} -m posttrainbench {' '.join(run)}; echo rc=$?"
        done = subprocess.run(
            f"{become} unshare --user --map-current-user --keep-caps bash -c '{inner}'",
            shell=True,
            cwd="/",
            env={
                **os.environ,
                "PYTHONPATH": f"{site}:{Path(posttrainbench.__file__).parent.parent}",
                "HOME": str(place),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.splitlines()[-1:] == ["rc=2"], done.stdout + done.stderr
        assert "max_user_namespaces" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert not list((place / "out").rglob("run.json"))


def test_no_bubblewrap(base_model: Path, tmp_path: Path) -> None:
    """Without the program bwrap the line names the package."""
    run = replaced(model=str(base_model), out=str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-m", "posttrainbench", *run],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "bubblewrap" in done.stderr and "install" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [("--sandbox", "docker", "--image", "x"), ()])
def test_doctor_of_a_machine_that_is_not_fit(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status says so, too: scripts ask."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert ended.value.code == 2
    assert "not installed" in capsys.readouterr().out
