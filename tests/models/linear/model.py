"""One eager model; the test makes its weights."""

import torch


class TinyLinear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, rows):
        return self.layer(rows)
