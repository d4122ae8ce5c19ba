"""The choice of an architecture of sharing: `model.sharing`. A new one is a file here and an arm of the match."""

from collections.abc import Callable

from torchrec_mt.models.sharing.adatt import AdaTT, TaskToTask
from torchrec_mt.models.sharing.conditioned import Conditioned, TaskConditioning
from torchrec_mt.models.sharing.mmoe import Mmoe, MultiGate
from torchrec_mt.models.sharing.parts import Parts, SharedTowers, Sizes, TaskSide
from torchrec_mt.models.sharing.ple import Ple, Progressive
from torchrec_mt.models.sharing.shared_bottom import OwnBlocks, SharedBottom
from torchrec_mt.models.sharing.single import OwnTowers, Single
from torchrec_mt.models.sharing.stem import Stem, StemTowers
from torchrec_mt.models.spec import ModelSpec

Sharing = Conditioned | SharedBottom | Single | Mmoe | Ple | AdaTT | Stem


def per_task_candidates(sharing: Sharing) -> bool:
    """Whether a candidate has a vector per task, and so each task an index of its own."""
    return sharing.own_tables or sharing.candidate_side


def build(sharing: Sharing, spec: ModelSpec, sizes: Sizes) -> Parts:
    """The modules of an architecture.

    Args:
        spec: with the tables that the architecture asks for (`with_own_tables`).
    """
    tasks = list(spec.tasks)

    def around(side: Callable[[], TaskSide]) -> Parts:
        """Shared towers, and the same side for anchors and, where it is asked for, candidates."""
        return Parts(SharedTowers(spec.entities, sizes), side(), side() if sharing.candidate_side else None)

    match sharing:
        case Conditioned():
            return around(lambda: TaskConditioning(tasks, sizes, lhuc=sharing.lhuc))
        case SharedBottom():
            return around(lambda: OwnBlocks(tasks, sizes))
        case Mmoe():
            return around(lambda: MultiGate(tasks, sharing, sizes))
        case Ple():
            return around(lambda: Progressive(tasks, sharing, sizes))
        case AdaTT():
            return around(lambda: TaskToTask(tasks, sharing, sizes))
        case Single():
            return Parts(OwnTowers(spec, sizes), OwnBlocks(tasks, sizes))
        case Stem():
            return Parts(StemTowers(spec, sizes), OwnBlocks(tasks, sizes))
