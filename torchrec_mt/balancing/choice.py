"""The choice of a method: `balancing.method`. A new one is a file here and an arm of the match."""

from collections.abc import Sequence

import numpy as np

from torchrec_mt.balancing import gradients, losses
from torchrec_mt.balancing.gradients import Matrix, of_moving_tasks
from torchrec_mt.balancing.losses import State, Vector
from torchrec_mt.balancing.methods import (
    AlignedMtl,
    CaGrad,
    Dwa,
    Famo,
    GradNorm,
    ImtlG,
    Log,
    MetaBalance,
    Mgda,
    MultiBalance,
    NashMtl,
    PcGrad,
    Static,
    Uncertainty,
    UpGrad,
)

LossMethod = Static | Uncertainty | Dwa | Log | Famo
GradientMethod = GradNorm | PcGrad | CaGrad | Mgda | NashMtl | UpGrad | AlignedMtl | ImtlG | MultiBalance | MetaBalance
Method = LossMethod | GradientMethod


def weigh(
    method: Method, losses_T: Vector, gram_TT: Matrix, state: State, *, tasks: Sequence[str], looks: int
) -> tuple[Vector, State]:
    """The method's weights_T, and what it remembers next.

    Args:
        gram_TT: for methods that look at gradients. state: what it remembered. tasks: their names.
        looks: how often gradients were looked at so far.
    """
    match method:
        case Static():
            return np.ones(len(tasks)), state
        case Uncertainty():
            return losses.uncertainty(method, losses_T, state)
        case Dwa():
            return losses.dwa(method, losses_T, state)
        case Log():
            return losses.log(losses_T), state
        case Famo():
            return losses.famo(method, losses_T, state)
        case GradNorm():
            return gradients.gradnorm(method, losses_T, gram_TT, state)
        case MultiBalance():
            return gradients.multibalance(method, gram_TT, state)
        case MetaBalance():
            return gradients.metabalance(method, gram_TT, tasks.index(method.target)), state
        case PcGrad():
            return of_moving_tasks(lambda gram: gradients.pcgrad(gram, looks), gram_TT), state
        case CaGrad():
            return of_moving_tasks(lambda gram: gradients.cagrad(method, gram), gram_TT), state
        case Mgda():
            return of_moving_tasks(gradients.mgda, gram_TT), state
        case NashMtl():
            return of_moving_tasks(gradients.nash_mtl, gram_TT), state
        case UpGrad():
            return of_moving_tasks(gradients.upgrad, gram_TT), state
        case AlignedMtl():
            return of_moving_tasks(gradients.aligned_mtl, gram_TT), state
        case ImtlG():
            return of_moving_tasks(gradients.imtl_g, gram_TT), state
