"""Writes texts on two ranks; the leader alone knows of cancels, deadlines and failures. Prints what each rank saw."""

import json

import torch
from harness.byte_models import llama
from harness.ranks import tell

from torchd_workers.handlers.parallel.generation import LeaderFailed, Text, write
from torchd_workers.handlers.parallel.models import Alike
from torchd_workers.handlers.parallel.ranks import join_ranks, leave_ranks
from torchd_workers.handlers.parallel.sampling import Sampling
from torchd_workers.handlers.parallel.tensor_parallel import settle, split

torch.set_num_threads(1)
ranks = join_ranks()
model = llama()
split(model, ranks)
settle(model)
running = Alike(model, ranks)


def texts_of(*samplings: Sampling) -> list[Text]:
    return [Text(list(range(65, 70 + 3 * row)), sampling) for row, sampling in enumerate(samplings)]


def written(texts, is_over=lambda row: False, on_token=lambda row, token: None):
    with running.reading() as next_tokens:
        write(texts, next_tokens, ranks, ends={257}, pad=256, is_over=is_over, on_token=on_token)
    return [[text.tokens, text.why] for text in texts]


told = {}
greedy, seeded = Sampling(max_new_tokens=10), Sampling(max_new_tokens=6, temperature=1.0, top_k=20, top_p=0.9, seed=7)
told["mixed"] = written(texts_of(greedy, seeded, greedy))
told["seeded again"] = written(texts_of(greedy, seeded))[1]

seen: list[int] = []
told["cancelled"] = written(
    texts_of(greedy, greedy), lambda row: row == 0 and len(seen) >= 6, lambda row, token: seen.append(row)
)
steps: list[int] = []
endless = Sampling(max_new_tokens=400)
told["all cancelled"] = written(texts_of(endless), lambda row: len(steps) >= 3, lambda row, token: steps.append(token))


def broken(row: int, token: int) -> None:
    raise OSError("nobody listens")


try:
    written(texts_of(greedy), on_token=broken)
except LeaderFailed as error:
    told["failed"] = [str(error), repr(error.__cause__)]
told["after"] = written(texts_of(greedy))
leave_ranks()
tell(json.dumps(told))
