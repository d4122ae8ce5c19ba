"""Methods that weigh tasks by their losses alone: losses_T and a state -> weights_T and the next state.

All expect losses above 0. Weights are such that a task with nothing special about it weighs about 1. Legend: T tasks.
"""

import numpy as np
from numpy.typing import NDArray

from torchrec_mt.balancing.methods import Dwa, Famo, Uncertainty

Vector = NDArray[np.float64]
State = dict[str, list[float]]
"""What a method remembers, by name; as JSON."""

LEAST_LOSS = 1e-8


def softmax(logit_T: Vector) -> Vector:
    """Shares that sum to 1."""
    exp_T = np.exp(logit_T - logit_T.max())
    return exp_T / exp_T.sum()


def uncertainty(method: Uncertainty, losses_T: Vector, state: State) -> tuple[Vector, State]:
    """Kendall, Gal & Cipolla, CVPR 2018: the sum of exp(-s) loss + s is minimised over the log variances s, too.

    The weight exp(-s) tends to 1 / loss. One step of gradient descent on s at each step of training.
    """
    log_variance_T = np.array(state.get("log_variance", np.zeros(len(losses_T))))
    weights_T = np.exp(-log_variance_T)
    log_variance_T = log_variance_T - method.rate * (1 - weights_T * losses_T)
    return weights_T, {"log_variance": log_variance_T.tolist()}


def dwa(method: Dwa, losses_T: Vector, state: State) -> tuple[Vector, State]:
    """Dynamic Weight Average, Liu, Johns & Davison, CVPR 2019: T softmax(rate / temperature), where a task's rate is
    its mean loss over the last window, divided by that over the one before; all 1 until there are two windows."""
    weights_T = np.ones(len(losses_T))
    if "older" in state:
        rate_T = np.array(state["newer"]) / np.maximum(state["older"], LEAST_LOSS)
        weights_T = len(losses_T) * softmax(rate_T / method.temperature)
    sum_T, count = losses_T + np.array(state.get("sum", 0.0)), state.get("count", [0])[0] + 1
    if count < method.window:
        return weights_T, state | {"sum": sum_T.tolist(), "count": [count]}
    ended = {"newer": (sum_T / count).tolist()}
    return weights_T, ended | ({"older": state["newer"]} if "newer" in state else {})


def log(losses_T: Vector) -> Vector:
    """1 / loss, the gradient of log(loss): the loss part of DB-MTL, Lin et al., arXiv 2308.12029.

    A loss times any number has the same share of the gradient.
    """
    return 1 / np.maximum(losses_T, LEAST_LOSS)


def famo(method: Famo, losses_T: Vector, state: State) -> tuple[Vector, State]:
    """FAMO, Liu et al., NeurIPS 2023 (algorithm 1): tasks whose log loss falls less get more of the next steps.

    The change is taken between the losses of two steps' batches; the paper computes a batch's losses again after the
    update, at the price of another forward pass.
    """
    losses_T = np.maximum(losses_T, LEAST_LOSS)
    logit_T = np.array(state.get("logits", np.zeros(len(losses_T))))
    if "losses" in state:
        share_T, fall_T = softmax(logit_T), np.log(state["losses"]) - np.log(losses_T)
        gradient_T = share_T * (fall_T - share_T @ fall_T)
        logit_T = logit_T - method.rate * (gradient_T + method.decay * logit_T)
    share_T = softmax(logit_T) / losses_T
    state = {"logits": logit_T.tolist(), "losses": losses_T.tolist()}
    return len(losses_T) * share_T / share_T.sum(), state
