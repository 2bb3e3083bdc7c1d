"""TorchServe: ts/utils/util.py."""

from torchd_workers.classes import classes_in as list_classes_from_module
from torchd_workers.failures import PredictionException
from torchd_workers.handlers.labels import load_label_mapping, map_class_to_label
from torchd_workers.handlers.pt2 import PT2Backend, check_valid_pt2_backend
from torchd_workers.handlers.text_utils import CLEANUP_REGEX
from torchd_workers.torchserve.util import deprecated, get_yaml_config

__all__ = [
    "CLEANUP_REGEX",
    "PT2Backend",
    "PredictionException",
    "check_valid_pt2_backend",
    "deprecated",
    "get_yaml_config",
    "list_classes_from_module",
    "load_label_mapping",
    "map_class_to_label",
]
