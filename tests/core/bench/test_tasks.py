"""Benchmarks are read as published, no split parts a patient, and every fault is named before anything is trained."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usfmae.core.bench.tasks import load
from usfmae.core.bench.tasks.base import BenchmarkTask, Example, Split, checked, only
from usfmae.core.errors import SourceError, UsageError


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16)).astype(np.uint8)).save(path)


def assert_whole_patients(task: BenchmarkTask) -> None:
    for split in task.splits:
        parts = [set(task.groups[p]) for p in (split.train, split.validation, split.test)]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def edit(path: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_bus_bra_keeps_official_folds_and_whole_patients(bus_bra: Path) -> None:
    task = load("bus-bra", bus_bra)
    assert_whole_patients(task)
    assert [s.name for s in task.splits] == [f"fold-{k}" for k in range(1, 6)] and task.headline == ("fold-1",)
    tested = np.concatenate([s.test for s in task.splits])
    assert sorted(tested.tolist()) == list(range(60))  # each image is tested once
    assert {task.examples[i].id[:8] for i in task.splits[0].test} == {f"bus_{c:04d}" for c in (1, 6, 11, 16, 21, 26)}


def test_bus_bra_sends_a_parted_patient_where_its_first_image_goes(bus_bra: Path) -> None:
    task = load("bus-bra", bus_bra)
    validated = {task.examples[i].group for i in task.splits[1].validation}
    assert "6" not in validated and "3" in validated  # patient 6: image l trains, image r is marked for validation


def test_bus_bra_says_when_it_is_partial(bus_bra: Path) -> None:
    task = load("bus-bra", bus_bra)
    assert not task.complete and "60 of 1,875" in task.notes[0]


def test_bus_bra_from_a_zip_is_the_same_task(bus_bra: Path) -> None:
    packed = shutil.make_archive(str(bus_bra.parent / "archive" / "BUSBRA"), "zip", bus_bra.parent, "BUSBRA")
    one, other = load("bus-bra", bus_bra), load("bus-bra", Path(packed))
    assert [(e.id, e.label, e.group) for e in one.examples] == [(e.id, e.label, e.group) for e in other.examples]
    assert one.examples[0].entry.read() == other.examples[0].entry.read()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("absent image", "bus_0003-l"),
        ("unlisted image", "bus_9999-l"),
        ("no patient", "bus_0004-r"),
        ("unknown class", "normal"),
        ("no table", "5-fold-cv.csv"),
        ("lost column", "kFold"),
        ("parted patient", "parts patient 2"),
        ("too many", "fold 1"),
        ("half a zip", "not a whole zip"),
        ("twice", "listed 2 times"),
    ],
)
def test_every_fault_of_bus_bra_is_named_with_exit_code_4(bus_bra: Path, fault: str, named: str) -> None:
    folds, data, root = bus_bra / "5-fold-cv.csv", bus_bra / "bus_data.csv", bus_bra
    if fault == "absent image":
        (bus_bra / "Images" / "bus_0003-l.png").unlink()
    elif fault == "unlisted image":
        paint(bus_bra / "Images" / "bus_9999-l.png", 1)
    elif fault == "no patient":
        edit(data, lambda rows: rows.remove(next(r for r in rows if r["ID"] == "bus_0004-r")))
    elif fault == "unknown class":
        edit(folds, lambda rows: rows[5].update(Pathology="normal"))
    elif fault == "no table":
        folds.unlink()
    elif fault == "lost column":
        folds.write_text(folds.read_text().replace("kFold", "fold"))
    elif fault == "parted patient":
        edit(folds, lambda rows: rows[2].update(kFold="1", valid_1="NaN", valid_2="1"))
    elif fault == "too many":
        edit(folds, lambda rows: [rows.append({**rows[0], "ID": "bus_0001-l"}) for _ in range(400)])
    elif fault == "twice":
        edit(folds, lambda rows: rows.append(rows[0]))
    else:
        packed = Path(shutil.make_archive(str(bus_bra.parent / "half" / "BUSBRA"), "zip", bus_bra.parent, "BUSBRA"))
        packed.write_bytes(packed.read_bytes()[:-400])
        root = packed
    with pytest.raises(SourceError, match=named) as caught:
        load("bus-bra", root)
    assert caught.value.exit_code == 4


def test_mmotu_uses_the_official_lists_and_validates_by_block(mmotu: Path) -> None:
    task = load("mmotu-2d", mmotu)
    (split,) = task.splits
    assert (len(split.train) + len(split.validation), len(split.test)) == (1000, 469)
    assert task.complete and task.positive is None and not task.groups_known
    assert_whole_patients(task)


def test_mmotu_with_another_class_count_is_refused(mmotu: Path) -> None:
    path = mmotu / "val_cls.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(SourceError, match="lists"):
        load("mmotu-2d", mmotu)


def test_mmotu_list_that_names_an_absent_image_is_refused(mmotu: Path) -> None:
    (mmotu / "images" / "7.JPG").unlink()
    with pytest.raises(SourceError, match="image 7"):
        load("mmotu-2d", mmotu)


@pytest.mark.parametrize(("gist", "words"), [(263, "authors"), (251, "papers")])
def test_gist514_says_which_of_the_two_published_counts_it_found(
    gist514: Callable[[int], Path], gist: int, words: str
) -> None:
    task = load("gist514", gist514(gist))
    assert words in task.notes[1] and [len(s.test) for s in task.splits] == [106, 103, 103, 103, 99]
    assert task.classes[task.positive or 0] == "GIST" and (task.labels == 1).sum() == gist


def test_gist514_with_other_counts_is_refused(gist514: Callable[[int], Path]) -> None:
    with pytest.raises(SourceError, match="300 GIST"):
        load("gist514", gist514(300))


def test_a_hospitals_tree_is_split_by_patient_folder(folder_task: Path) -> None:
    task = load("folder", folder_task)
    assert task.classes == ("normal", "other") and task.groups_known and len(task.splits) == 5
    assert_whole_patients(task)


def test_a_table_with_split_column_is_honoured_and_checked(folder_task: Path) -> None:
    files = sorted(p.relative_to(folder_task).as_posix() for p in folder_task.rglob("*.png"))
    rows = [f"{f},{f.split('/')[0]},{f.split('/')[1]},{'test' if '-1/' in f or '-2/' in f else 'train'}" for f in files]
    (folder_task / "labels.csv").write_text("\n".join(["file,label,group,split", *rows]) + "\n")
    task = load("folder", folder_task)
    assert [s.name for s in task.splits] == ["given"] and len(task.splits[0].test) == 8
    parted = rows[0].replace(",train", ",test") if rows[0].endswith("train") else rows[0].replace(",test", ",train")
    (folder_task / "labels.csv").write_text("\n".join(["file,label,group,split", parted, *rows[1:]]) + "\n")
    with pytest.raises(SourceError, match="parts patient normal-0"):
        load("folder", folder_task)


@pytest.mark.parametrize(
    ("line", "named"), [("gone.png,other,p", "gone.png"), ("normal/normal-0/0.png,other,", "no group")]
)
def test_a_table_with_faults_is_refused(folder_task: Path, line: str, named: str) -> None:
    (folder_task / "labels.csv").write_text(f"file,label,group\nnormal/normal-1/0.png,normal,q\n{line}\n")
    with pytest.raises(SourceError, match=named):
        load("folder", folder_task)


def test_one_class_is_no_task(tmp_path: Path) -> None:
    paint(tmp_path / "t" / "only" / "p" / "1.png", 1)
    with pytest.raises(SourceError, match="1 class"):
        load("folder", tmp_path / "t")


def test_absent_folder_and_unknown_names_are_refused(tmp_path: Path, folder_task: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        load("bus-bra", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="bus-bra"):
        load("imagenet", folder_task)
    with pytest.raises(UsageError, match="fold-1"):
        only(load("folder", folder_task), ["fold-9"])


def test_a_training_part_without_a_class_is_refused(folder_task: Path) -> None:
    task = load("folder", folder_task)
    normal, other = np.flatnonzero(task.labels == 0), np.flatnonzero(task.labels == 1)
    split = Split("bad", normal[:20], normal[20:], other)
    with pytest.raises(SourceError, match="no training image of class other"):
        checked(BenchmarkTask("folder", task.classes, task.examples, (split,)))


def test_real_copies_at_hand_load_and_keep_patients_whole(shared_data: Path) -> None:
    for name, folder, images in (("bus-bra", "bus_bra", 615), ("mmotu-2d", "mmotu_2d", 251)):
        task = load(name, shared_data / folder)
        assert len(task.examples) == images and not task.complete
        assert_whole_patients(task)


@pytest.mark.parametrize("form", ["5.0", ";", "; and 5,0", "tabs in UTF-16", "BOM", "spaces", "Windows code page"])
def test_bus_bra_reads_its_tables_as_spreadsheets_write_them(bus_bra: Path, form: str) -> None:
    plain = load("bus-bra", bus_bra)
    for name in ("bus_data.csv", "5-fold-cv.csv"):
        with (bus_bra / name).open() as file:
            rows = list(csv.reader(file))
        if "5" in form:
            rows = [[f"{c}{',' if ',0' in form else '.'}0" if c.isdigit() else c for c in row] for row in rows]
        if form == "spaces":
            rows = [[f" {c} " for c in row] for row in rows]
        if form == "Windows code page":
            rows = [[*row, "Größe" if n == 0 else "für"] for n, row in enumerate(rows)]
        mark = ";" if ";" in form else "\t" if "tabs" in form else ","
        text = "\n".join(mark.join(f'"{c}"' if mark in c else c for c in row) for row in rows) + "\n\n"
        encoding = {"tabs in UTF-16": "utf-16", "BOM": "utf-8-sig", "Windows code page": "cp1252"}.get(form, "utf-8")
        (bus_bra / name).write_bytes(text.encode(encoding))
    read = load("bus-bra", bus_bra)
    assert [(e.id, e.label, e.group) for e in read.examples] == [(e.id, e.label, e.group) for e in plain.examples]
    assert all((a.validation == b.validation).all() for a, b in zip(read.splits, plain.splits, strict=True))


def test_own_tables_take_backslashes_usual_names_of_parts_and_spaces_in_labels(folder_task: Path) -> None:
    files = sorted(p.relative_to(folder_task).as_posix() for p in folder_task.rglob("*.png"))
    parts = ["Train", "val", "test", "training"]
    rows = [
        f"{f.replace('/', chr(92))};{f.split('/')[0]}{' ' * (n % 2)};{f.split('/')[1]};{parts[int(f.split('-')[1].split('/')[0]) % 4]}"
        for n, f in enumerate(files)
    ]
    (folder_task / "labels.csv").write_text("File;Label;Group;Split\n" + "\n".join(rows) + "\n")
    task = load("folder", folder_task)
    assert task.classes == ("normal", "other") and len(task.examples) == len(files)
    assert [len(p) for p in (task.splits[0].train, task.splits[0].validation, task.splits[0].test)] == [24, 12, 12]


def test_a_table_without_the_columns_says_how_to_name_them(folder_task: Path) -> None:
    (folder_task / "labels.csv").write_text("filename,class\na.png,x\n")
    with pytest.raises(SourceError, match=r"it has filename, class - name its columns file,label,group"):
        load("folder", folder_task)


def test_masks_beside_the_images_are_no_examples_and_a_zipped_folder_is_understood(tmp_path: Path) -> None:
    root, random = tmp_path / "Dataset_BUSI", np.random.default_rng(0)
    for kind in ("benign", "malignant"):
        (root / kind).mkdir(parents=True)
        for n in range(12):
            Image.fromarray(random.integers(0, 200, (60, 60)).astype(np.uint8)).save(root / kind / f"{kind} ({n}).png")
            mask = (np.indices((60, 60)).sum(0) < 50) * 255
            Image.fromarray(mask.astype(np.uint8)).save(root / kind / f"{kind} ({n})_mask.png")
    shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, "Dataset_BUSI")
    for place in (root, tmp_path / "archive.zip"):
        task = load("folder", place)
        assert task.classes == ("benign", "malignant") and len(task.examples) == 24
        assert not any("mask" in e.id for e in task.examples) and any("24 label mask" in note for note in task.notes)


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    from usfmae.core.bench.tasks.base import picture
    from usfmae.core.openus46.archive import entries

    gray = np.random.default_rng(0).integers(0, 200, (40, 40))
    Image.fromarray((gray * 64).astype(np.uint16)).save(tmp_path / "deep.png")
    found = picture(Example("deep", entries(tmp_path)[0], 0, "p"))
    assert found.dtype == np.uint8 and np.abs(found[..., 0] - gray * 255 / gray.max()).max() <= 1
