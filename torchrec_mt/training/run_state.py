"""Everything that a training must remember to go on as if it had never stopped, as a checkpoint takes it.

    tables.NAME.weight, .sum        tables and their optimizer's sums, whatever the sharding
    dense.NAME                      all other weights; average.NAME their moving averages, where there are any
    slots.NAME.KEY                  the dense optimizer's, by weight
    memory.*, frequencies.*         what the objective remembers of earlier steps

beside them as JSON the step, the reader's position, the early stop, which validations were good, the sharding plan, and
what the balancer remembers, and of every rank its random state. Learning rates follow from the step and the config.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.data.reader import Reader
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.planning import describe_plan
from torchrec_mt.distributed.runtime import Runtime, seed_everything
from torchrec_mt.distributed.sharding import is_table
from torchrec_mt.distributed.table_state import LoadReport, load_tables, table_layout, table_state
from torchrec_mt.errors import UserError
from torchrec_mt.training.checkpoints.commit import DamagedCheckpointError
from torchrec_mt.training.checkpoints.store import CheckpointStore, Loaded
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import Optimizers

Value = Tensor | Pieces


class Good(NamedTuple):
    """A validation whose checkpoint stays, and by which mark."""

    value: float
    step: int
    mark: str


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a run goes on from.

    Args:
        step: last one that was taken. path: of the checkpoint. refused: why newer ones were not used.
    """

    step: int
    stop: EarlyStop
    good: tuple[Good, ...]
    path: str
    report: LoadReport
    refused: tuple[str, ...]


def dense_weights(model: DistributedModelParallel) -> dict[str, Tensor]:
    """All weights but tables, by name and by reference."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if not is_table(name)}


class RunState:
    """The state of a training, spread over model, optimizers, objective, balancer and reader.

    Args:
        seed: what a rank draws from where the number of ranks has changed, and its own random state is none of those
            saved.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        objective: Objective,
        balancer: Balancer,
        reader: Reader,
        runtime: Runtime,
        *,
        seed: int,
        batches_per_step: int = 1,
    ) -> None:
        self._model, self._optimizers, self._objective = model, optimizers, objective
        self._balancer, self._reader, self._runtime, self._seed = balancer, reader, runtime, seed
        self._batches_per_step = batches_per_step

    def tensors(self) -> dict[str, Value]:
        """By name; views of what training changes."""
        tables = table_state(self._model, self._optimizers.table_rule, self._optimizers.combined)
        dense = {f"dense.{name}": weight for name, weight in dense_weights(self._model).items()}
        average = self._optimizers.average
        averages = {f"average.{name}": value for name, value in average.averages.items()} if average else {}
        slots = {f"slots.{name}.{key}": value for name, key, value in self._optimizers.dense_slots()}
        return {**tables, **dense, **averages, **slots, **self._objective.tensors()}

    def numbers(self, step: int, stop: EarlyStop, good: Iterable[Good]) -> dict[str, Any]:
        """The rest, the same on every rank."""
        average = self._optimizers.average
        return {
            "step": step,
            "world_size": self._runtime.world_size,
            # Not the batches handed out: on a GPU one is ahead of its step.
            "reader": self._reader.state_dict() | {"step": step * self._batches_per_step},
            "stop": {
                "best": stop.best if math.isfinite(stop.best) else None,
                "best_step": stop.best_step,
                "since_best": stop.since_best,
            },
            "good": [list(one) for one in good],
            "layout": table_layout(self._model, self._optimizers.table_rule),
            "plan": describe_plan(self._model.plan),
            "slots": [
                [name, key, str(value.dtype).removeprefix("torch."), list(value.shape), str(value.device.type)]
                for name, key, value in self._optimizers.dense_slots()
            ],
            "average_updates": average.updates if average else None,
            "objective": self._objective.numbers(),
            "balancing": self._balancer.state_dict(),
        }

    def of_rank(self) -> dict[str, Any]:
        """This rank's random state."""
        state = {"cpu": torch.get_rng_state().numpy().tobytes().hex()}
        if self._runtime.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._runtime.device).numpy().tobytes().hex()
        return {"random": state}

    def restore(self, store: CheckpointStore, newest: Loaded, patience: int) -> Restored:
        """Takes the state of the newest whole checkpoint. Called on every rank.

        Args:
            newest: as `store` told of it, tensors left out.

        Raises:
            UserError: on every rank; no checkpoint is whole, or it is of another model.
        """
        refused, steps = list(newest.refused), store.steps()
        for step in steps[steps.index(newest.step) :]:
            try:
                found = newest if step == newest.step else store.load({}, step=step, partial=True)
                return self._restore(store, found, patience, tuple(refused))
            except DamagedCheckpointError as error:
                refused.append(str(error))
                store.refuse(step)
        raise UserError("no checkpoint is whole: " + "; ".join(refused))

    def _restore(self, store: CheckpointStore, found: Loaded, patience: int, refused: tuple[str, ...]) -> Restored:
        numbers = found.state
        slots = self._optimizers.make_dense_slots(numbers["slots"])
        wanted: dict[str, Value] = {f"dense.{name}": value for name, value in dense_weights(self._model).items()}
        average = self._optimizers.average
        if average:
            average.updates = numbers["average_updates"] or 0
            if numbers["average_updates"] is not None:
                wanted |= {f"average.{name}": value for name, value in average.averages.items()}
        wanted |= {f"slots.{name}.{key}": value for name, key, value in slots}
        wanted |= self._objective.restore(numbers["objective"])

        def read(tables: dict[str, Value]) -> None:
            store.load({**tables, **wanted}, step=found.step, partial=True)

        rule, optimizer = self._optimizers.table_rule, self._optimizers.combined
        report = load_tables(self._model, numbers["layout"], read, rule, optimizer)
        report.restored.extend(wanted)
        if average and numbers["average_updates"] is None:
            average.start_over()
            report.reinitialised.update({f"average.{n}": "the checkpoint has no averages" for n in average.averages})
        if "balancing" in numbers:  # older checkpoints are of runs with static weights
            self._balancer.load_state_dict(numbers["balancing"])
        self._reader.load_state_dict(numbers["reader"])
        self._take_random(found)
        stop = EarlyStop(patience, best_step=numbers["stop"]["best_step"], since_best=numbers["stop"]["since_best"])
        if numbers["stop"]["best"] is not None:
            stop.best = numbers["stop"]["best"]
        return Restored(
            step=found.step,
            stop=stop,
            good=tuple(Good(*one) for one in numbers["good"]),
            path=found.path,
            report=report,
            refused=refused,
        )

    def _take_random(self, found: Loaded) -> None:
        if found.state["world_size"] != self._runtime.world_size:
            seed_everything(self._seed + 1 + self._runtime.rank + found.step)
            return
        state = found.rank_states[self._runtime.rank]["random"]
        torch.set_rng_state(_bytes(state["cpu"]))
        if self._runtime.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(_bytes(state["cuda"]), self._runtime.device)


def load_weights(model: DistributedModelParallel, store: CheckpointStore, mark: str) -> None:
    """Takes a checkpoint's weights into a model to be judged: averages where it has them.

    Raises:
        UserError: on every rank; no such checkpoint, a damaged one, or one of another shape.
    """
    numbers = store.load({}, mark=mark, partial=True).state
    prefix = "dense" if numbers["average_updates"] is None else "average"
    dense = {f"{prefix}.{name}": value for name, value in dense_weights(model).items()}

    def read(tables: dict[str, Value]) -> None:
        store.load({**tables, **dense}, mark=mark, partial=True)

    load_tables(model, numbers["layout"], read, None)


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
