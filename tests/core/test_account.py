"""Who runs this and where it may write: no name, no home, a folder that is read-only."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from usfmae.core import account
from usfmae.core.cli import shell
from usfmae.core.cli.prepare import site_secret
from usfmae.core.errors import ConfigError, ResourceError


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user: no entry in /etc/passwd, no HOME, no name in the environment."""

    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
def test_an_account_without_a_name_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "")  # restored afterwards
    monkeypatch.delenv("LOGNAME")
    assert account.person() == f"uid-{os.getuid()}"
    account.give_name()
    assert getpass.getuser() == f"uid-{os.getuid()}"


@pytest.mark.usefixtures("nobody")
def test_without_a_home_the_secret_is_asked_for_and_a_given_one_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HOME - is not set.*--secret FILE"):
        site_secret(None)
    assert len(site_secret(tmp_path / "secret")) == 32


def test_a_home_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be made.*--secret FILE"):
        site_secret(None)


@pytest.mark.parametrize("kind", [shell.NewFile, shell.NewFolder])
def test_a_place_that_cannot_be_written_is_said_before_the_work(kind: type[click.ParamType], tmp_path: Path) -> None:
    worked = []

    @click.command()
    @click.option("--out", type=kind())
    def command(out: Path) -> None:
        worked.append(out)

    (tmp_path / "file").write_text("no folder")
    result = CliRunner().invoke(command, ["--out", str(tmp_path / "file" / "deep" / "x")])
    assert isinstance(result.exception, ResourceError) and "--out" in str(result.exception) and not worked
    place = tmp_path / "new" / "deep" / "x"
    assert CliRunner().invoke(command, ["--out", str(place)]).exit_code == 0 and worked == [place]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"], "the question left something behind"


def test_an_error_of_this_machine_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def command() -> None:
        Path("/proc/none/x").write_text("x")

    monkeypatch.setattr("sys.argv", ["usfmae"])
    with pytest.raises(SystemExit) as ended:
        shell.run(command, "usfmae")  # type: ignore[arg-type]
    assert ended.value.code == 7 and "error: /proc/none/x - No such file" in capsys.readouterr().err
