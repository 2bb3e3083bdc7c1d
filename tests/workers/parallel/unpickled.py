"""What this process unpickles, from the import of this module on; programs of ranks import it before anything else."""

from __future__ import annotations

import pickle
import sys

HEARD: list[str] = []
sys.addaudithook(lambda event, found: HEARD.append(str(found)) if event == "pickle.find_class" else None)


def hears_object_collectives(is_leader: bool) -> bool:
    """Whether what torch.distributed's object collectives unpickle is heard; every rank calls it, at the end.

    The leader sends and unpickles nothing. Plain values need no class: those the hook does not hear, `listen` does.
    """
    from torch import Size, distributed

    del HEARD[:]
    distributed.broadcast_object_list([Size([1])])
    of_a_class = len(HEARD)
    del HEARD[:]
    distributed.broadcast_object_list([None])
    return is_leader or (of_a_class > 1 and len(HEARD) == 1)


def listen() -> None:
    """From now on values without a class are heard too, where torch.distributed unpickles them."""
    from torch.distributed import distributed_c10d

    class Loads(pickle.Unpickler):
        def load(self) -> object:
            HEARD.append("a value")
            return super().load()

    distributed_c10d._unpickler = Loads
