"""TorchServe: ts/utils/util.py."""

from torchd_workers.classes import classes_in as list_classes_from_module
from torchd_workers.failures import PredictionException
from torchd_workers.handlers.labels import load_label_mapping, map_class_to_label
from torchd_workers.handlers.pt2 import check_valid_pt2_backend

__all__ = [
    "PredictionException",
    "check_valid_pt2_backend",
    "list_classes_from_module",
    "load_label_mapping",
    "map_class_to_label",
]
