"""Simulated ultrasound with known burnt-in text: for the demo, the tests and the seed. No patient, no licence."""

from usfmae.core.phantom.dicom import write_cine, write_still
from usfmae.core.phantom.screen import Screen, draw_screen
from usfmae.core.phantom.tissue import Tissue, simulate

__all__ = ["Screen", "Tissue", "draw_screen", "simulate", "write_cine", "write_still"]
