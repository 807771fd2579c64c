"""What lies in deploy/: names exist, hardening is there, and nothing is promised that the code does not do."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from usfmae.core import metrics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
NAME = re.compile(r"usfmae_(?:site|server)_[a-z_]+")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dashboard_and_alerts_name_only_metrics_that_exist() -> None:
    for file in ("grafana/usfmae.json", "prometheus/usfmae.rules.yml"):
        used = set(NAME.findall((DEPLOY / file).read_text()))
        assert used and used <= set(metrics.ALL), file


def test_every_metric_is_on_the_dashboard_with_its_label() -> None:
    text = (DEPLOY / "grafana" / "usfmae.json").read_text()
    for name, metric in metrics.ALL.items():
        assert re.search(rf"{name}\b", text), f"{name} is on no panel"
        if metric.label:
            assert f"{{{{{metric.label}}}}}" in text


def test_labels_used_in_alerts_are_labels_the_metric_has() -> None:
    for group in yaml.safe_load((DEPLOY / "prometheus" / "usfmae.rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["action"], f"{rule['alert']} does not say what to do"
            known = {metrics.ALL[n].label for n in NAME.findall(rule["expr"])}
            used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
            assert used <= known, rule["alert"]


def test_actions_name_commands_that_exist() -> None:
    reference = loaded(ROOT / "docs" / "reference.py")
    known = {name for name, _, _ in reference.every_command()}
    places = [*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.service"), *DEPLOY.rglob("*.sbatch")]
    for file in places:
        for program, command in re.findall(r"\b(usfmae-client|usfmae-server),? ([a-z]+)\b", file.read_text()):
            assert f"{program} {command}" in known, f"{file.name}: {program} {command}"


@pytest.mark.parametrize("name", ["server", "site"])
def test_compose_is_non_root_read_only_and_publishes_little(name: str) -> None:
    (service,) = yaml.safe_load((DEPLOY / "compose" / f"{name}.yaml").read_text())["services"].values()
    assert service["read_only"] and service["user"] == "49152:49152" and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    open_ports = [p for p in service["ports"] if not p.startswith("127.0.0.1:")]
    assert open_ports == (["8443:8443"] if name == "server" else [])
    assert all(":ro" in v for v in service["volumes"] if v.startswith(("./scans", "./handover")))


def test_image_is_non_root_pinned_and_calls_nowhere() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["49152:49152"]
    assert all(re.search(r":\d+\.\d+\.\d+", line) for line in re.findall(r"^FROM .+$", text, re.MULTILINE))
    for switch in ("FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1", "HF_HUB_OFFLINE=1"):
        assert switch in text
    assert "requirements.lock" in text


def test_systemd_units_are_hardened_without_hiding_the_gpu() -> None:
    for name in ("usfmae-server", "usfmae-client", "usfmae-prepare"):
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(DEPLOY / "systemd" / f"{name}.service")
        service = unit["Service"]
        assert service["User"] == "usfmae" and service["NoNewPrivileges"] == "yes"
        assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""
        hides_gpu = service.get("PrivateDevices") == "yes" or "MemoryDenyWriteExecute" in service
        assert hides_gpu == (name == "usfmae-server")
    assert service["PrivateNetwork"] == "yes", "cleaning needs no network"


def test_pods_see_no_addresses_of_other_services_in_their_environment() -> None:
    assert "enableServiceLinks: false" in (DEPLOY / "helm/usfmae/templates/statefulset.yaml").read_text()


def test_helm_chart_has_no_value_that_is_not_declared() -> None:
    chart = DEPLOY / "helm" / "usfmae"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    for template in (chart / "templates").iterdir():
        text = template.read_text()
        opened = re.findall(r"\{\{-? (?:if|with|range|define)\b", text)
        assert len(opened) == len(re.findall(r"\{\{-? end\b", text)), template.name
        for dotted in re.findall(r"\.Values\.([A-Za-z.]+)", text):
            here = values
            for part in dotted.split("."):
                assert part in here, f"{template.name}: {dotted}"
                here = here[part]
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"] == metrics.__version__


def test_wheel_holds_every_module_template_and_table(tmp_path: Path) -> None:
    """Installed as an administrator installs it, not as developers do: pages need their templates."""
    rooms = ("core", "client", "server")
    for room in (*rooms, "usfmae/installed"):
        shutil.copytree(ROOT / room, tmp_path / "src" / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "src")
    wanted = {f"usfmae/{f.relative_to(tmp_path / 'src')}" for f in (tmp_path / "src").rglob("*") if f.is_file()}
    wanted = {name for name in wanted if name.split("/")[1] in rooms}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", tmp_path, tmp_path / "src"], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert {"usfmae/__init__.py", *wanted} - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_images_are_built_from_every_folder_that_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    docker, apptainer = (DEPLOY / name for name in ("docker/Dockerfile", "apptainer/usfmae.def"))
    for folder in project["tool"]["setuptools"]["package-dir"].values():
        assert f"COPY {folder} {folder}\n" in docker.read_text(), folder
        assert f"    {folder} /src/{folder}\n" in apptainer.read_text(), folder


def test_bundle_refuses_a_variant_that_does_not_exist(tmp_path: Path) -> None:
    script = [DEPLOY / "offline" / "bundle.sh", tmp_path, sys.executable]
    done = subprocess.run(script, env={**os.environ, "VARIANT": "gpu"}, capture_output=True, text=True)
    assert done.returncode == 2 and "variant gpu - is neither cuda nor cpu" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one small wheel that stands for all of them."""
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    (folder / "deploy").mkdir()
    info = "usfmae-0.0.1.dist-info"
    with zipfile.ZipFile(folder / "wheels" / "usfmae-0.0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("usfmae_small.py", "def main():\n    print('usfmae, version 0.0.1')\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\nusfmae = usfmae_small:main\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: usfmae\nVersion: 0.0.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    lines = loaded(DEPLOY / "offline" / "hashes.py").lines(folder / "wheels")
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    (folder / "sbom.cdx.json").write_text("{}")
    shutil.copy(DEPLOY / "offline" / "install.sh", folder)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    listed = "find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum"
    sums = subprocess.run(listed, shell=True, cwd=folder, check=True, capture_output=True).stdout
    (folder / "SHA256SUMS").write_bytes(sums)


def install(bundle: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Without any network where that can be had."""
    alone = ["unshare", "-rn"] if shutil.which("unshare") else []
    if alone and subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    return subprocess.run(
        [*alone, str(bundle / "install.sh"), str(target)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_bundle_installs_without_a_network_and_again_as_an_update(bundle: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = install(bundle, tmp_path / "opt")
        assert done.returncode == 0, done.stderr
        assert "usfmae, version 0.0.1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("resealed", [False, True])
def test_a_wheel_that_was_changed_is_not_installed(bundle: Path, tmp_path: Path, resealed: bool) -> None:
    """Also by somebody who could write new checksums: pip compares each wheel with its own hash."""
    (wheel,) = (bundle / "wheels").iterdir()
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("usfmae_evil.py", "")
    if resealed:
        seal(bundle)
    done = install(bundle, tmp_path / "opt")
    assert done.returncode != 0 and not (tmp_path / "opt" / "bin" / "usfmae").exists()
    assert ("THESE PACKAGES DO NOT MATCH THE HASHES" if resealed else "error: the bundle") in done.stderr


def test_install_refuses_a_folder_that_is_something_else(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    done = install(bundle, tmp_path / "home")
    assert done.returncode == 2 and "no earlier installation" in done.stderr


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_the_documented_command_verifies_a_signed_checksum_and_no_other(tmp_path: Path) -> None:
    """The command of docs/air-gapped.md, against a signature as bundle.sh makes it."""
    page = (ROOT / "docs" / "air-gapped.md").read_text()
    verify = re.search(r"\$ (ssh-keygen -Y verify .*)", page)
    sign = re.search(r"(ssh-keygen -q -Y sign .*)", (ROOT / "deploy" / "offline" / "bundle.sh").read_text())
    assert verify and sign
    file = tmp_path / "usfmae-0.2.0.tar.sha256"
    file.write_text("00  usfmae-0.2.0.tar\n")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "allowed_signers").write_text(f"release@usfmae {public}")
    environment = {**os.environ, "SIGNING_KEY": str(tmp_path / "key"), "out": str(tmp_path), "version": "0.2.0"}
    subprocess.run(["bash", "-c", sign[1]], check=True, env=environment)
    assert subprocess.run(["bash", "-c", verify[1]], cwd=tmp_path).returncode == 0
    file.write_text("11  usfmae-0.2.0.tar\n")
    assert subprocess.run(["bash", "-c", verify[1]], cwd=tmp_path).returncode != 0
