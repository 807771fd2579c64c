"""Containers of clips, looked into where FFmpeg says too little: what is whole, what is transparent."""
