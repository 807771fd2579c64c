"""The commands as calls: `import usfmae` is light, names all of them, and the notebook of the docs runs."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usfmae.core import __version__, api
from usfmae.core.cli import COMMANDS

ROOT = Path(__file__).parents[2]


def test_import_is_light_and_gives_every_call_and_the_version() -> None:
    code = (
        "import sys, importlib.util as u; spec = u.spec_from_file_location('installed', sys.argv[1]); "
        "m = u.module_from_spec(spec); spec.loader.exec_module(m); "
        "print(m.__version__, all(callable(getattr(m, n)) for n in m.__all__[1:]), "
        "[name for name in ('torch', 'cv2', 'flwr') if name in sys.modules])"
    )
    file = ROOT / "usfmae" / "installed" / "__init__.py"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{__version__} True []"


def test_the_page_sets_every_call_beside_its_command() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    for name in api.__all__[1:]:
        assert f"usfmae.{name}(" in page, name
        assert inspect.getdoc(getattr(api, name)), name
    assert set(re.findall(r"`usfmae ([a-z]+) ", page)) <= set(COMMANDS)


def test_settings_are_those_of_the_commands_and_wrong_ones_are_named() -> None:
    from usfmae.core.errors import ConfigError

    assert api._bench({"bench.finetune.seeds": (0, 1), "bench.aspect": "keep"}).finetune.seeds == (0, 1)
    with pytest.raises(ConfigError, match=r"bench\.neighbors"):
        api._bench({"bench.neighbors": 3})


def test_features_of_files_and_arrays_are_equal(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoder = api.load_encoder("pixels")
    table = api.features(encoder, [tmp_path / "a.png", pixels, np.stack([pixels] * 3, -1)])
    assert table.shape == (3, 32 * 32) and np.array_equal(table[0], table[1]) and np.array_equal(table[1], table[2])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As installed: in a checkout `usfmae` is a namespace.
    spec = importlib.util.spec_from_file_location("usfmae", ROOT / "usfmae" / "installed" / "__init__.py")
    assert spec and spec.loader
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    installed.__path__ = list(sys.modules["usfmae"].__path__)
    monkeypatch.setitem(sys.modules, "usfmae", installed)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    space: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), space)
    losses, exported = space["losses"], space["exported"]
    assert losses[-1] < losses[0] and exported.difference < 1e-4  # type: ignore[index, attr-defined]
