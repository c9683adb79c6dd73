"""Tests run on the CPU, with one thread and offline, so that they are exact and need nothing that is not here."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch

torch.set_num_threads(1)
