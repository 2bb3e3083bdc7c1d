"""TorchServe: ts/torch_handler/unit_tests/test_utils/mock_context.py."""

from torchd_workers.torchserve.mock_context import MockContext

__all__ = ["MockContext"]
