"""The registry states the paper's table; the corpora leave out what they promise to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from usfmae.core.cli.datasets import datasets
from usfmae.core.errors import UsageError
from usfmae.core.openus46.registry import BENCHMARKS, TABLE_1_TOTAL, corpus, dataset, registry


def test_forty_six_counts_sum_to_the_papers_total() -> None:
    assert len(registry()) == 46
    assert sum(d.images for d in registry().values()) == TABLE_1_TOTAL == 374_192


def test_reserved_images_are_the_three_benchmarks_and_feft() -> None:
    # "10,578 images reserved for evaluation" in the paper's text.
    assert sum(d.images for d in registry().values() if d.role == "benchmark") == 10_578


@pytest.mark.parametrize(("name", "sets", "images"), [("paper46", 46, 374_192), ("readme43", 43, 370_334)])
def test_corpora_have_the_published_sizes(name: str, sets: int, images: int) -> None:
    chosen = corpus(name)  # type: ignore[arg-type]
    assert (len(chosen), sum(d.images for d in chosen)) == (sets, images)


def test_strict_corpus_holds_no_benchmark_and_nothing_from_its_patients() -> None:
    ids = {d.id for d in corpus("strict42")}
    assert not ids & {*BENCHMARKS, "feft", "mmotu_3d"}
    # 42 data sets, of which MMOTU-3D is held back: 363,614 - 170 images.
    assert sum(d.images for d in corpus("strict42")) == 363_614 - 170 and len(ids) == 41


def test_permissive_filter_keeps_only_licences_that_allow_any_use() -> None:
    chosen = corpus("paper46", "permissive")
    assert chosen and all("NC" not in d.licence and "ND" not in d.licence for d in chosen)
    assert {d.licence_class for d in chosen} == {"permissive"}


def test_overlaps_are_mutual_and_name_known_data_sets() -> None:
    for d in registry().values():
        for other in d.overlaps:
            if d.id != "mmotu_3d":
                assert d.id in registry()[other].overlaps


def test_every_data_set_says_licence_link_and_registration() -> None:
    for d in registry().values():
        assert d.link.startswith("http") and d.licence and d.registration.split()[0] in ("yes", "no", "unknown")


def test_unknown_id_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="datasets list"):
        dataset("imagenet")


def test_the_registry_as_croissant_has_every_data_set_and_field() -> None:
    from usfmae.core.openus46.croissant import FIELDS, metadata

    made = metadata()
    (records,) = made["recordSet"]
    assert len(records["data"]) == len(registry()) == 46
    assert all(set(record) == {f"datasets/{name}" for name in FIELDS} for record in records["data"])


def test_mlcroissant_accepts_it_and_reads_the_records() -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    from usfmae.core.openus46.croissant import metadata

    read = mlcroissant.Dataset(jsonld=metadata())
    assert not read.metadata.ctx.issues.errors
    names = [record["datasets/id"] for record in read.records("datasets")]
    first = next(iter(registry()))
    assert len(names) == 46 and names[0] in (first, first.encode())


def test_a_missing_data_set_is_listed_with_where_to_get_it(tmp_path: Path) -> None:
    listed = CliRunner().invoke(datasets, ["check", "--root", str(tmp_path), "--missing"]).stdout.splitlines()
    assert all(f"get it at {registry()[line.split()[0]].link}" in line for line in listed if " missing " in line)
    assert len(listed) >= 46
