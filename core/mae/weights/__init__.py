"""Weights from anywhere: ours, facebookresearch, timm, Hugging Face, training states; read without running code."""
