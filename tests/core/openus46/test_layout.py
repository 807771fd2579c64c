"""Every adapter finds the scans of its data set, and only them, in folders and zips; other trees are reported."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import yaml

from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import entries
from usfmae.core.openus46.layout import USABLE, check, check_all, group_of, scans
from usfmae.core.openus46.registry import dataset, registry

TREES = yaml.safe_load(Path(__file__).with_name("openus46_trees.yaml").read_text())
SECRET = b"secret"


def grow(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def pack(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def test_every_data_set_has_a_tree() -> None:
    assert set(TREES) == set(registry())


@pytest.mark.parametrize("id_", registry())
def test_extracted_archive_gives_the_scans_and_nothing_else(id_: str, tmp_path: Path) -> None:
    tree = TREES[id_]
    grow(tmp_path / id_, tree["scans"] + tree["others"])
    found = check(dataset(id_), tmp_path, accept=[id_])
    chosen = {scan.path.relative_to(tmp_path / id_).as_posix() for scan in scans(found, SECRET)}
    assert chosen == set(tree["scans"])
    assert not [name for p in found.places for name in p.unexplained]


@pytest.mark.parametrize("id_", registry())
def test_zip_gives_the_same_scans_as_members(id_: str, tmp_path: Path) -> None:
    tree = TREES[id_]
    pack(tmp_path / f"{id_}.zip", tree["scans"] + tree["others"])
    found = check(dataset(id_), tmp_path, accept=[id_])
    assert {scan.member for scan in scans(found, SECRET)} == set(tree["scans"])
    assert {scan.path.name for scan in scans(found, SECRET)} == {f"{id_}.zip"}


@pytest.mark.parametrize("id_", registry())
def test_a_tree_of_another_layout_is_reported_not_guessed(id_: str, tmp_path: Path) -> None:
    grow(tmp_path / id_, ["somewhere/else/a.xyz", "masks/1.dat"])
    found = check(dataset(id_), tmp_path, accept=[id_])
    assert found.status == "mismatch" and not found.scans
    assert "somewhere/else" in found.detail and dataset(id_).layout in found.detail  # what was found, what expected
    with pytest.raises(SourceError, match="mismatch"):
        list(scans(found, SECRET))


def test_zips_inside_a_folder_are_read_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "aul"
    folder.mkdir()
    for kind in ("Benign", "Malignant"):
        pack(folder / f"{kind}.zip", [f"{kind}/image/1.jpg", f"{kind}/segmentation/mass/1.json"])
    found = check(dataset("aul"), tmp_path)
    assert found.scans == 2 and {s.path.name for s in scans(found, SECRET)} == {"Benign.zip", "Malignant.zip"}


def test_a_zip_beside_its_extracted_folder_counts_once(tmp_path: Path) -> None:
    grow(tmp_path / "stu_hospital", ["Hospital/Test_Image_1.png"])
    pack(tmp_path / "stu_hospital.zip", ["Hospital/Test_Image_1.png"])
    assert check(dataset("stu_hospital"), tmp_path).scans == 1


def test_archives_that_must_be_unpacked_are_named(tmp_path: Path) -> None:
    grow(tmp_path / "fast_u_net", ["Dataset/AC/AC_image1.rar", "Dataset/HC/HC_mask.rar"])
    found = check(dataset("fast_u_net"), tmp_path)
    assert found.status == "packed" and "AC_image1.rar" in found.detail and "unar -d" in found.detail


def test_a_damaged_member_is_named_and_a_new_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "STU.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Hospital/1.png", bytes(range(256)) * 40)
    whole = path.read_bytes()
    (entry,) = entries(path)
    assert entry.read() == bytes(range(256)) * 40
    path.write_bytes(whole[:60] + b"\xff" * 60 + whole[120:])
    with pytest.raises(SourceError, match=r"Hospital/1\.png"):
        entry.read()
    path.write_bytes(whole)
    assert entry.read() == bytes(range(256)) * 40


def test_half_an_archive_is_damaged(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.zip", [f"Hospital/Test_Image_{n}.png" for n in range(42)]).read_bytes()
    (tmp_path / "stu_hospital.zip").write_bytes(whole[: len(whole) // 2])
    found = check(dataset("stu_hospital"), tmp_path)
    assert found.status == "damaged" and "stu_hospital.zip" in found.detail and found.status not in USABLE


@pytest.mark.parametrize(("files", "status"), [(42, "present"), (41, "partial"), (43, "more")])
def test_completeness_is_told_from_the_count(files: int, status: str, tmp_path: Path) -> None:
    grow(tmp_path / "stu_hospital", [f"Hospital/Test_Image_{n}.png" for n in range(files)])
    assert check(dataset("stu_hospital"), tmp_path).status == status


def test_pictures_that_the_layout_does_not_explain_are_counted(tmp_path: Path) -> None:
    grow(tmp_path / "stu_hospital", ["Hospital/Test_Image_1.png", "Hospital/Extra.png", "Hospital/mask_1.png"])
    found = check(dataset("stu_hospital"), tmp_path)
    assert found.scans == 1 and "Hospital/Extra.png" in found.detail


@pytest.mark.parametrize("id_", ["dfhi", "feft"])
def test_a_layout_nobody_confirmed_asks_first(id_: str, tmp_path: Path) -> None:
    grow(tmp_path / id_, TREES[id_]["scans"])
    found = check(dataset(id_), tmp_path)
    assert found.status == "unverified" and "found" in found.detail
    assert check(dataset(id_), tmp_path, accept=[id_]).status in USABLE


def test_3d_frames_in_the_common_folder_never_pass_for_the_2d_benchmark(tmp_path: Path) -> None:
    grow(tmp_path / "MMOTU", ["OTU_3d/images/1.JPG", "OTU_3d/annotations/1.PNG"])
    assert check(dataset("mmotu_2d"), tmp_path).status == "mismatch"
    assert check(dataset("mmotu_3d"), tmp_path).scans == 1


def test_files_of_one_patient_share_a_group(tmp_path: Path) -> None:
    grow(tmp_path / "blues", TREES["blues"]["scans"])
    groups = {scan.path.name: scan.group for scan in scans(check(dataset("blues"), tmp_path), SECRET)}
    assert groups["patient_1_L1.mp4"] == groups["patient_1_R3_2.mp4"] != groups["patient_12_L1.mp4"]
    assert group_of(dataset("hc18"), "hc18/training_set/083_2HC.png") == group_of(
        dataset("hc18"), "hc18/training_set/083_HC.png"
    )


def test_the_seven_data_sets_at_hand_are_read_honestly(shared_data: Path) -> None:
    found = {f.dataset.id: f for f in check_all(registry().values(), shared_data)}
    here = {id_: (f.status, f.scans) for id_, f in found.items() if f.status != "missing"}
    assert here == {
        "blues": ("partial", 124),
        "bus_bra": ("partial", 615),
        "fast_u_net": ("partial", 3),
        "hc18": ("partial", 48),
        "mmotu_2d": ("partial", 251),
        "pocus": ("partial", 569),
        "stu_hospital": ("present", 42),
    }
    assert found["hc18"].overlaps == ("fast_u_net",)
    assert not any("mask" in scan.path.name.lower() for f in found.values() if f.scans for scan in scans(f, SECRET))
