"""Segmentation as a benchmark: pairs of image and mask, a light head on an encoder, Dice and IoU with intervals.

A task is a function of `tasks.py` and a row here.
"""

SEGMENTATIONS = {"bus-bra": "bus_bra", "mmotu-2d": "mmotu", "folder": "folder"}  # name -> function in tasks.py
