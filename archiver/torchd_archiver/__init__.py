"""Model archives: packing them as torch-model-archiver does, and unpacking them without trusting them."""
