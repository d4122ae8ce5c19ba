"""trainer.metric is checked before anything is written: the metric, the task, and that there is something to judge."""

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.training.early_stop import check_metric


@pytest.mark.parametrize("name", ["recall@100", "mrr@10", "find/ndcg@10"])
def test_metrics_of_tasks_with_validation_pairs(name: str) -> None:
    check_metric(name, ["find", "alike"])


@pytest.mark.parametrize("name", ["recall@5", "recal@10", "find", "alike/recall@10", "find/recall@5", ""])
def test_no_such_metric(name: str) -> None:
    with pytest.raises(UserError, match=r"trainer.metric = '.*' is none of the validation metrics: .*'find/mrr@10'"):
        check_metric(name, ["find"])


def test_nothing_to_validate_on() -> None:
    with pytest.raises(
        UserError, match=r"no trained task has validation pairs: give dataset.split a larger valid_share"
    ):
        check_metric("recall@10", [])
