"""What a person saw in the pictures of one data set, as one JSON file that holds nothing of the pictures.

A picture is known by its name below the data set's folder and the SHA-256 of its file; a shape is a box or a stroke in
pixels of the native size. A picture that is `done` and has no shape is one in which nothing is drawn.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from usfmae.core.errors import SourceError
from usfmae.core.files import write_atomic

LARGEST_SIDE = 65_535  # pixels
MOST_SHAPES = 1000  # on one picture

Coordinate = int
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
Point = tuple[Coordinate, Coordinate]


class Mark(StrEnum):
    """What is burnt into a picture."""

    IDENTIFIER = "text-identifier"  # a name, a number or a date of a patient, a person or a place of care
    TEXT = "text-other"  # any other word: organ, side, device, setting
    DIGITS = "digits"  # figures that stand alone: of a caliper, a depth, a scale
    CALIPER = "caliper"  # crosses, measuring lines, dotted outlines
    ARROW = "arrow"  # arrows and pointing hands
    RULER = "ruler"  # ticks and dots of a scale, the focus mark
    BAR = "bar-icon"  # gray and colour bars, a maker's sign, an icon, the frame of a colour box or a window
    BODY_MARKER = "body-marker"
    FACE = "face-photo"
    OTHER = "other"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(Record):
    """One drawn thing: a box `x0, y0, x1, y1` (half open), or a stroke of points `x, y` that is `width` pixels wide."""

    label: Mark
    box: Box | None = None
    stroke: tuple[Point, ...] = Field(default=(), max_length=2000)
    width: int = Field(default=3, ge=1, le=200)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.box is None) == (not self.stroke):
            raise ValueError("a shape is a box or a stroke")
        if self.box and not (0 <= self.box[0] < self.box[2] and 0 <= self.box[1] < self.box[3]):
            raise ValueError("a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return self

    def points(self) -> tuple[Point, ...]:
        """The corners of the box, the last pixel inside it, or the points of the stroke."""
        return ((self.box[0], self.box[1]), (self.box[2] - 1, self.box[3] - 1)) if self.box else self.stroke

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """The pixels of the shape (H, W)."""
        mask = np.zeros((height, width), np.bool_)
        if self.box:
            mask[self.box[1] : self.box[3], self.box[0] : self.box[2]] = True
            return mask
        # A line of one pixel, then all that is nearer to it than half the width.
        beside = np.ones((height, width), np.uint8)
        cv2.polylines(beside, [np.array((*self.stroke, self.stroke[-1]), np.int32)], False, 0, 1)
        return np.asarray(cv2.distanceTransform(beside, cv2.DIST_L2, 5) <= (self.width - 1) / 2)


class LabelledPicture(Record):
    """One picture and what is drawn in it."""

    name: str = Field(min_length=1, max_length=1000)  # below the data set's folder, with "/"
    frame: int = Field(default=0, ge=0)  # of a clip
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the file
    width: int = Field(ge=1, le=LARGEST_SIDE)
    height: int = Field(ge=1, le=LARGEST_SIDE)
    done: bool = False  # a person has said that nothing is missing
    shapes: tuple[Shape, ...] = Field(default=(), max_length=MOST_SHAPES)

    @model_validator(mode="after")
    def _is_inside(self) -> Self:
        for shape in self.shapes:
            if not all(0 <= x < self.width and 0 <= y < self.height for x, y in shape.points()):
                raise ValueError("a shape reaches beyond the picture")
        return self

    def masks(self) -> dict[Mark, NDArray[np.bool_]]:
        """Label -> the pixels (H, W) of all its shapes."""
        masks: dict[Mark, NDArray[np.bool_]] = {}
        for shape in self.shapes:
            mask = shape.mask(self.height, self.width)
            masks[shape.label] = masks[shape.label] | mask if shape.label in masks else mask
        return masks


class Truth(Record):
    """The labels of one data set."""

    format: Literal["usfmae-truth-1"] = "usfmae-truth-1"
    dataset: str = Field(max_length=200)
    pictures: tuple[LabelledPicture, ...] = ()

    def with_picture(self, picture: LabelledPicture) -> Truth:
        """As this, with the picture in place of an older one of its name and frame; pictures stay sorted by name."""
        others = [p for p in self.pictures if (p.name, p.frame) != (picture.name, picture.frame)]
        ordered = sorted([*others, picture], key=lambda p: (p.name, p.frame))
        return self.model_copy(update={"pictures": tuple(ordered)})

    def save(self, path: Path) -> None:
        """One picture a line, so that a change of one is a change of one line. ResourceError where the disk is full."""
        lines = [p.model_dump_json(exclude_defaults=True) for p in self.pictures]
        head = json.dumps({"format": self.format, "dataset": self.dataset})[:-1]
        write_atomic(path, (head + ', "pictures": [\n' + ",\n".join(lines) + "\n]}\n").encode())

    @classmethod
    def load(cls, path: Path) -> Truth:
        """SourceError where the file is none of these, or damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise SourceError(f"labels {path}", f"{place}: {first['msg']}", "mend the file or name another") from None
