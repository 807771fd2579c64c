"""Settings: every source, every wrong key named at once, and YAML's traps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from usfmae.core.config import AugmentSettings, Settings, TrainRecipe, TrainSettings, load, template
from usfmae.core.errors import ConfigError, UsageError


def _file(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_later_sources_win_and_say_where_a_value_came_from(tmp_path: Path) -> None:
    file = _file(tmp_path, "train: {lr: 1e-4, mask_ratio: 0.5, seed: 1}")
    environment = {"USFMAE_TRAIN__MASK_RATIO": "0.6", "USFMAE_TRAIN__SEED": "2", "HOME": "/x"}
    settings, origins = load(Settings, file, ["train.seed=3"], environment)
    assert (settings.train.lr, settings.train.mask_ratio, settings.train.seed) == (1e-4, 0.6, 3)
    assert origins == {"train.lr": str(file), "train.mask_ratio": "environment", "train.seed": "--set"}


def test_names_that_others_put_into_the_environment_are_not_ours() -> None:
    """Kubernetes names a service's address after it; a container must start all the same."""
    link = {"USFMAE_SERVER_PORT": "tcp://10.0.0.1:8443", "USFMAE_SERVER_PORT_8443_TCP_PROTO": "tcp"}
    plain = {"name": "a", "server": "https://x:1"}
    from usfmae.core.config.site import SiteSettings

    overrides = [f"{key}={value}" for key, value in plain.items()]
    settings, origins = load(SiteSettings, None, overrides, {**link, "USFMAE_SERVICE_HOST": "h", "USFMAE_POLL": "7"})
    assert settings.poll == 7 and origins["poll"] == "environment" and settings.server == "https://x:1"
    with pytest.raises(ConfigError, match=r"cstore\.prot: unknown key; did you mean 'cstore\.port'"):
        load(SiteSettings, None, overrides, {"USFMAE_CSTORE__PROT": "1"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {mask_ratio: 25}", "train.mask_ratio: input should be less than 1, got 25"),
        ("train: {learning_rate: 1}\nmodle: {}", "modle: unknown key; did you mean 'model"),
        ("mask_ratio: 0.3", "mask_ratio: unknown key; did you mean 'train.mask_ratio'?"),
        ("[1, 2]", "holds no mapping"),
        ("a: [", "not YAML"),
        ("model: {patch_size: 15}", "no multiple of patch_size 15"),
    ],
)
def test_mistakes_are_named_with_value_and_cure(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Settings, _file(tmp_path, text), (), {})
    assert said in str(caught.value) and caught.value.exit_code == 3


def test_a_site_of_an_older_version_is_told_which_key_is_gone(tmp_path: Path) -> None:
    from usfmae.core.config.site import SiteSettings

    old = _file(tmp_path, "name: a\nserver: https://x:1\npoll_seconds: 2\ncstore: {aet: USFMAE}")
    with pytest.raises(ConfigError) as caught:
        load(SiteSettings, old, (), {})
    assert "c.yaml has 2 problem(s)" in str(caught.value)
    assert "poll_seconds: unknown key" in str(caught.value) and "cstore.aet: unknown key" in str(caught.value)


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 3 problem"):
        load(Settings, _file(tmp_path, "train: {mask_ratio: 2, lr: -1}\nwhat: 1"), (), {})


def test_an_absent_file_and_a_broken_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give an existing file"):
        load(Settings, tmp_path / "none.yaml", (), {})
    with pytest.raises(UsageError, match="key=value"):
        load(Settings, None, ["train.lr"], {})


def test_the_template_is_the_defaults() -> None:
    assert Settings.model_validate(yaml.safe_load(template(Settings))) == Settings()


def test_every_key_is_documented() -> None:
    lines = template(Settings).splitlines()
    keys = [i for i, line in enumerate(lines) if not line.lstrip().startswith("#")]
    assert all(lines[i - 1].lstrip().startswith("#") for i in keys)


def test_a_site_follows_no_link_out_of_its_sources_unless_it_says_so() -> None:
    from usfmae.core.config.site import SiteSettings

    base = {"name": "s", "server": "https://h:1"}
    assert not SiteSettings.model_validate({**base, "read": {"fps": 3}}).read.follow_links
    assert SiteSettings.model_validate({**base, "read": {"follow_links": True}}).read.follow_links


@pytest.mark.parametrize("key", ["origin=7", "proximal=0.1", "replay=0.5", "replay_corpus=abc"])
def test_what_only_a_request_sets_is_no_key_of_a_person_s_settings(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        load(Settings, None, [f"train.{key}"], {})


def test_a_changed_setting_is_checked_as_if_it_were_read_from_a_file() -> None:
    with pytest.raises(ConfigError, match=r"batch_size: .*greater than or equal to 1, got -3"):
        TrainSettings().model_copy(update={"batch_size": -3})
    with pytest.raises(ConfigError, match="proximal"):
        TrainRecipe.of(TrainSettings(), proximal=-1.0)


def test_a_recipe_is_the_settings_and_what_a_request_adds() -> None:
    settings = TrainSettings(lr=1e-4, augment=AugmentSettings(flips=False))
    recipe = TrainRecipe.of(settings, origin=5)
    assert (recipe.lr, recipe.origin, recipe.augment.flips) == (1e-4, 5, False)
    assert recipe.settings() == settings
