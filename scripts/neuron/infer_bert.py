#!/usr/bin/env python3
"""Sends a full batch of requests at once, the first half of them paraphrases, and prints each answer as it comes.

Fewer requests (--requests) wait for max_batch_delay and are then answered without the rest of the batch.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script, it has only its own folder on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.paraphrase.pairs import Pair, demo_pairs

from neuron.target import REQUEST_SECONDS, Parts, Refused, RestConnection, Target, add_options, parts_of, target_of
from torchd_clients import Client, TorchdError

Ask = Callable[[Parts], bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks and prints; 1 where an answer is not the one a person would give, or there is none."""
    parser = argparse.ArgumentParser(
        prog="infer_bert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, metavar="N", help="how many to send (the batch size)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    add_options(parser)
    options = parser.parse_args(arguments)
    target = target_of(options)
    pairs = _pairs(options.requests or target.batch_size, target.batch_size)
    try:
        if target.rest:
            return run(pairs, lambda parts: _ask_rest(target, parts), as_json=options.json)
        with Client(target.grpc, token=target.shown, tls=target.tls, timeout=REQUEST_SECONDS) as client:
            return run(pairs, lambda parts: client.predict(target.model, parts), as_json=options.json)
    except (Refused, TorchdError, OSError, http.client.HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(pairs: Sequence[Pair], ask: Ask, *, as_json: bool) -> int:
    """Sends every pair from a thread of its own."""
    answers: dict[int, Any] = {}
    started = time.perf_counter()
    with ThreadPoolExecutor(len(pairs)) as threads:
        asked = {threads.submit(ask, parts_of(pair.seq_0, pair.seq_1)): place for place, pair in enumerate(pairs)}
        for future in as_completed(asked):
            place = asked[future]
            answers[place] = json.loads(future.result())
            if not as_json:
                print(place, answers[place], flush=True)
    if as_json:
        seconds = round(time.perf_counter() - started, 3)
        print(json.dumps({"answers": [answers[place] for place in sorted(answers)], "seconds": seconds}))
    wrong = [place for place, pair in enumerate(pairs) if answers[place] != pair.answer]
    for place in wrong:
        print(f"{place} should be {pairs[place].answer}, not {answers[place]}", file=sys.stderr)
    return int(bool(wrong))


def _pairs(requests: int, batch_size: int) -> list[Pair]:
    """So many pairs: paraphrases in the first half of each batch, others in the second."""
    positive = [pair for pair in demo_pairs() if pair.paraphrase]
    negative = [pair for pair in demo_pairs() if not pair.paraphrase]
    half = (batch_size + 1) // 2
    return [
        (positive if place % batch_size < half else negative)[place % batch_size % half % len(positive)]
        for place in range(requests)
    ]


def _ask_rest(target: Target, parts: Parts) -> bytes:
    with closing(RestConnection(target)) as connection:
        connection.send(parts)
        return connection.receive()


if __name__ == "__main__":
    sys.exit(main())
