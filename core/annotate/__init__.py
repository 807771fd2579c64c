"""Labelling by eye: which text and drawings are burnt into real pictures, as boxes and strokes with a label each."""

from usfmae.core.annotate.truth import LabelledPicture, Mark, Shape, Truth

__all__ = ["LabelledPicture", "Mark", "Shape", "Truth"]
