"""The published pipeline as written, for reproduction.

USF-MAE (arXiv 2510.22990), section on preprocessing: text by Tesseract; contrast-limited equalisation in CIELAB;
colour ink by HSV thresholds and K-means; edges by Canny with contour filtering; morphological closing and opening;
Navier-Stokes inpainting. It is not safe: colour Doppler is taken for ink, and names over tissue stay readable.
"""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.clean.inpaint import inpainted
from usfmae.core.clean.morphology import closed, dilated, gray_of
from usfmae.core.clean.ocr import tesseract_data
from usfmae.core.types import Mask, Pixels

_SATURATION, _VALUE = 40, 20  # ink: more saturated and brighter than these, 0..255
_CLUSTERS = 3  # of colour
_RADIUS = 3.0  # pixels


def equalised(pixels: Pixels) -> Pixels:
    """CLAHE on the lightness channel of CIELAB; (H, W, 3) RGB to RGB."""
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[:, :, 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).astype(np.uint8)


def words(pixels: Pixels) -> Mask:
    """Every word box of Tesseract's automatic page segmentation."""
    mask = np.zeros(pixels.shape[:2], bool)
    data = tesseract_data(gray_of(pixels), "--psm 3")
    for text, x, y, w, h in zip(data["text"], data["left"], data["top"], data["width"], data["height"], strict=True):
        if text.strip():
            mask[y : y + h, x : x + w] = True
    return mask


def ink(pixels: Pixels) -> Mask:
    """Saturated pixels whose K-means cluster (in HSV) is saturated and bright."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    saturated = hsv[:, :, 1] > _SATURATION
    points = hsv[saturated].astype(np.float32)
    if len(points) < _CLUSTERS:
        return np.zeros(saturated.shape, bool)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    cv2.setRNGSeed(0)
    _, labels, centres = cv2.kmeans(points, _CLUSTERS, np.zeros(0, np.int32), criteria, 3, cv2.KMEANS_PP_CENTERS)
    chosen = (centres[:, 1] > _SATURATION) & (centres[:, 2] > _VALUE)
    mask = np.zeros(saturated.shape, bool)
    mask[saturated] = chosen[labels.ravel()]
    return mask


def shapes(pixels: Pixels) -> Mask:
    """Filled small contours of Canny edges: calipers, arrows, markers."""
    edges = cv2.Canny(gray_of(pixels), 100, 200)
    contours, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    small = [c for c in contours if 5 <= cv2.contourArea(c) <= 500]
    drawn = np.zeros(edges.shape, np.uint8)
    cv2.drawContours(drawn, small, -1, 255, cv2.FILLED)
    return drawn > 0


def paper(pixels: Pixels) -> Pixels:
    """(H, W, 3) RGB uint8 to the same shape, annotations inpainted as the paper says."""
    even = equalised(pixels)
    mask = words(pixels) | ink(pixels) | shapes(even)
    square = np.ones((5, 5), np.uint8)
    opened = cv2.morphologyEx(closed(mask, 1).astype(np.uint8), cv2.MORPH_OPEN, square) > 0
    return inpainted(pixels, dilated(opened), _RADIUS)
