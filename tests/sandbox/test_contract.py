"""What a program finds in the sandbox, and what it does not: docs/security.md, point by point, with the real back ends."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

import posttrainbench
from posttrainbench.errors import ConfigurationError, InfrastructureError
from posttrainbench.sandbox import Backend, Spec, get_backend
from posttrainbench.workspace import paths


def test_output_and_status_come_back(run):
    result, output = run("echo out; echo err >&2; exit 7")
    assert (result.returncode, result.reason, output) == (7, "exit", "out\nerr\n")


def test_signal_death_is_128_plus_n(run):
    assert run("kill -SEGV $$")[0].returncode == 139


def test_command_not_found_is_127(run):
    assert run(argv=["no-such-program"])[0].returncode == 127


def test_environment_is_exactly_what_was_given(run, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "do-not-leak")
    _, output = run(
        "env; { tr '\\0' '\\n' </proc/1/environ | grep -v ^container= | sed s/^/init:/; } 2>/dev/null",
        env={"A": "1 2", "LANG": "C", "npm.x-y": "3"},
    )
    lines = {line for line in output.splitlines() if not line.startswith("PWD=")}
    assert lines == {"HOME=/home/agent", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C", "A=1 2"}


def test_variable_names_that_a_shell_would_drop(run):
    assert "npm.x-y=1 2\n" in run(argv=["env"], env={"npm.x-y": "1 2"})[1]


def test_no_host_path_and_no_secret_in_proc(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_KEY", "do-not-leak")
    _, output = run("cat /proc/*/cmdline /proc/*/environ | tr '\\0' ' '", ro={"/data": tmp_path})
    assert "do-not-leak" not in output
    assert str(tmp_path) not in output


def test_the_files_of_the_harness_are_there_beside_the_way_out(run, tmp_path):
    """The clock reads one of them, CLIs get their settings from them; the sandbox must not put its own in their place."""
    control = tmp_path / "control"
    control.mkdir()
    (control / "deadline").write_text("12345")
    for path in (control, control / "deadline"):
        path.chmod(0o755)
    listeners = {8700: lambda listener: listener.close()}
    script = f"cat {paths.DEADLINE}; echo x >{paths.DEADLINE}"
    result, output = run(script, ro={paths.CONTROL: control}, listeners=listeners)
    assert output.startswith("12345") and "Read-only file system" in output and result.returncode != 0


def test_own_namespaces(run, agent):
    _, output = run("readlink /proc/self/ns/pid /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts; hostname; id")
    inside = output.split()
    for line, kind in zip(inside, ("pid", "net", "ipc", "uts"), strict=False):
        assert line != str(Path(f"/proc/self/ns/{kind}").readlink())
    assert inside[4] == "sandbox"
    assert f"uid={agent}(agent) gid={agent}(agent)" in output


def test_no_control_group_can_be_changed(run):
    # those that limit the sandbox belong to the user who may also be the agent's, where systemd delegates them
    script = "import os; print([p for p, _, n in os.walk('/sys/fs/cgroup') if n and not os.statvfs(p).f_flag & os.ST_RDONLY])"
    assert run(argv=["/usr/bin/python3", "-c", script])[1] == "[]\n"


def test_only_standard_descriptors(run):
    descriptor = os.open("/", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        _, output = run("ls /proc/$$/fd; true")
    finally:
        os.close(descriptor)
    assert output.split() == ["0", "1", "2"]


def test_stdin_text_and_reopening_standard_files(run):
    text = "line\n" * 100_000  # more than a pipe holds
    assert run("wc -l", stdin=text)[1].split() == ["100000"]
    if os.geteuid() == 0:  # an ordinary user's is a socket, which has no name
        assert run("echo hi >/dev/stdout")[1] == "hi\n"
    assert run("cat /dev/stdin", stdin="x")[1] == "x"
    assert run("cat; echo end")[1] == "end\n"


def test_system_is_read_only_but_home_and_tmp_are_not(run, tmp_path):
    _, output = run(
        "for d in / /usr /etc /opt/data /var /root; do touch $d/x 2>/dev/null && echo wrote $d; done;"
        "touch /tmp/x /home/agent/x /dev/shm/x /run/x /var/tmp/x && echo fine",
        ro={"/opt/data": tmp_path},
    )
    assert output == "fine\n"


def test_rw_files_belong_to_a_user_who_is_not_root(run, tmp_path):
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    (work / "deep" / "old").write_text("old")
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (work / "link").symlink_to(outside)
    os.link(outside, work / "hard")
    result, _ = run(
        "echo new >>deep/old && echo made >made && rm link", rw={"/home/agent/w": work}, cwd="/home/agent/w"
    )
    assert result.returncode == 0
    assert (work / "deep" / "old").read_text() == "oldnew\n"
    assert (work / "made").stat().st_uid != 0
    assert outside.stat().st_uid == os.geteuid()
    if os.geteuid() == 0:  # its other name is outside: it stays root's
        assert run("echo broken >>hard", rw={"/w": work}, cwd="/w")[0].returncode != 0
        assert outside.read_text() == "untouched"


def test_binds_nest_from_the_outside_in(run, tmp_path):
    for name in ("outer", "outer/inner", "ro", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "ro" / "f").write_text("ro")
    (tmp_path / "tmp" / "t").write_text("tmp")
    _, output = run(
        "cd /home/agent/w; cat inner/f /tmp/t; touch inner/x 2>/dev/null || touch x && ls /home/agent",
        ro={"/home/agent/w/inner": tmp_path / "ro"},
        rw={"/home/agent/w": tmp_path / "outer", "/tmp": tmp_path / "tmp"},
    )
    assert output == "rotmpw\n"
    assert (tmp_path / "outer" / "x").exists()


def test_binds_below_var_tmp(run, backend, tmp_path):
    """Where a checkout with its environment may lie; otherwise /var/tmp is /tmp by another name."""
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    (place / "f").write_text("there")
    result, output = run("cat /var/tmp/deep/er/f; touch /var/tmp/x", ro={"/var/tmp/deep/er": place})
    assert output.startswith("there")
    if backend.name != "bubblewrap":
        return  # there it is always a place of its own
    assert result.returncode == 1
    assert run("echo here > /var/tmp/x && cat /tmp/x")[1] == "here\n"


def test_hide_covers_directories_and_files(run, tmp_path):
    (tmp_path / "d" / "secret").mkdir(parents=True)
    (tmp_path / "d" / "secret" / "s").write_text("s")
    (tmp_path / "d" / "file").write_text("s")
    _, output = run(
        "ls -A /d/secret; cat /d/file; touch /d/secret/x 2>/dev/null && echo wrote; ls /d",
        ro={"/d": tmp_path / "d"},
        hide=["/d/secret", "/d/file", "/d/missing"],
    )
    assert output.split() == ["file", "secret"]


def test_programs_inside_can_talk_over_loopback(run, backend):
    script = (
        "import socket;s=socket.create_server(('127.0.0.1',0));c=socket.create_connection(s.getsockname(),2);"
        "c.send(b'hi');print(s.accept()[0].recv(2).decode())"
    )
    runtime = backend.runtime()
    assert run(argv=[runtime.executable, "-I", "-S", "-c", script], ro=runtime.ro)[1] == "hi\n"


def test_harness_python_and_package_work_where_the_runtime_says(run, backend):
    runtime = backend.runtime()
    script = "import sys,posttrainbench,json;print(json.dumps([sys.executable, posttrainbench.__path__[0]]))"
    # no package of another installation, whatever the place: the harness's own is bound
    _, output = run(
        argv=[runtime.executable, "-c", script], ro=runtime.ro, env={"PYTHONPATH": str(Path(runtime.package).parent)}
    )
    assert json.loads(output) == [runtime.executable, runtime.package]
    assert runtime.inside(Path(posttrainbench.__file__)) == f"{runtime.package}/__init__.py"


def test_setuid_bit_gains_nothing(run, agent, tmp_path):
    tool = tmp_path / "w" / "id"
    tool.parent.mkdir()
    tool.write_bytes(Path("/usr/bin/id").read_bytes())
    tool.chmod(0o4755)
    assert run("/t/id -u", ro={"/t": tool.parent})[1] == f"{agent}\n"
    assert stat.S_IMODE(tool.stat().st_mode) == 0o4755


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ro": {"/x": Path("/no/such")}}, "No such file"),
        ({"ro": {"x": Path("/usr")}}, "must be absolute"),
        ({"ro": {"/a/../b": Path("/usr")}}, "must be absolute"),
        ({"rw": {"/x": Path("/etc")}}, "system directory"),
        ({"rw": {"/x": Path("/usr/lib/os-release")}}, "symbolic link|must be a directory"),
        ({"ro": {"/x": Path("/usr")}, "rw": {"/x": Path("/tmp")}}, "bound twice"),
        ({"gpus": [77]}, "GPU 77 is not on this machine"),
        ({"argv": []}, "empty"),
        ({"env": {"A": "x\0--bind"}}, "NUL"),
        ({"env": {"A=B": "x"}}, "variable name"),
    ],
)
def test_wrong_specs_are_one_clear_line(backend: Backend, fields, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        backend.run(Spec(**{"argv": ["true"], **fields}))
    assert "\n" not in str(caught.value)


def test_planted_link_is_refused(backend: Backend, tmp_path):
    (tmp_path / "final_model").symlink_to("/var/lib")
    with pytest.raises(ConfigurationError, match="symbolic link"):
        backend.run(Spec(argv=["true"], rw={"/x": tmp_path / "final_model"}))


def test_setup_failure_says_what_is_wrong(backend: Backend, tmp_path):
    with pytest.raises(InfrastructureError, match=r"could not be set up: .*nested"):
        backend.run(Spec(argv=["true"], ro={"/d": tmp_path, "/d/nested/x": Path("/usr")}))


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("bubblewrap", None, "apt-get install bubblewrap"),
        ("podman", "x", "apt-get install podman"),
        ("docker", "x", "install Docker Engine"),
        ("apptainer", "x", "ask the cluster's administrators"),
    ],
)
def test_missing_program_names_what_to_do(monkeypatch, name, image, words):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InfrastructureError, match=words):
        get_backend(name, image=image).run(Spec(argv=["true"]))


def test_unknown_backend():
    with pytest.raises(ConfigurationError, match="unknown sandbox 'jail'"):
        get_backend("jail")


@pytest.mark.parametrize("image", [None, "", "--privileged"])
def test_containers_need_an_image(image):
    with pytest.raises(ConfigurationError, match=r"--image NAME|no name of an image"):
        get_backend("podman", image=image)
