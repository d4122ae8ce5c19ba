"""A data set of one's own, from CSV, with a household -> product task that no code knows: TOML only."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train

TOML = """
[dataset]
name = "corner-shop"
path = "{root}/prepared"
source = {{ kind = "files", root = "{root}/raw" }}
split = {{ kind = "time" }}

[dataset.tables]
household_id = {{ dim = 16 }}
product_id = {{ dim = 16 }}
words = {{ dim = 16 }}
age = {{ dim = 16 }}

[dataset.entities.household]
path = "households.csv"
id = "household"
features.key = {{ kind = "id", table = "household_id" }}
features.age = {{ kind = "category", column = "age", table = "age" }}

[dataset.entities.product]
path = "products.csv"
id = "sku"
features.key = {{ kind = "id", table = "product_id" }}
features.name = {{ kind = "text", columns = ["name"], table = "words" }}

[dataset.tasks.personal]
anchor = "household"
candidate = "product"
pairs = {{ kind = "given", path = "purchases.csv", anchor = "household", candidate = "sku", time = "day" }}

[dataset.tasks.together]
anchor = "product"
candidate = "product"
pairs = {{ kind = "groups", path = "purchases.csv", group = ["household", "day"], item = "sku", time = "day" }}

[dataset.tasks.early]
anchor = "product"
candidate = "product"
pairs = {{ kind = "groups", path = "early.csv", group = ["household", "day"], item = "sku", time = "day" }}

[model]
dim = 16
[reader]
batch_size = 64
[negatives]
sources = [{{ kind = "in_batch" }}, {{ kind = "uniform", count = 16 }}]
[trainer]
steps = 60
validations = 1
[runtime]
threads = 1
"""


def write_shop(raw: Path) -> None:
    """40 households of 4 tastes, 60 products; a household buys its taste."""
    rng = np.random.default_rng(0)
    raw.mkdir()
    sku = np.arange(60)
    words = np.array(["tea", "wool", "garden", "chess"])
    names = [f"{words[n % 4]} item {n}" for n in sku]
    pd.DataFrame({"sku": sku, "name": names}).to_csv(raw / "products.csv", index=False)
    pd.DataFrame({"household": [f"h{n}" for n in range(40)], "age": ["young", "old"] * 20}).to_csv(
        raw / "households.csv", index=False
    )
    household = rng.integers(0, 40, 2500)
    bought = (household % 4) + 4 * rng.integers(0, 15, 2500)
    days = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 100, 2500)), unit="D")
    purchases = {"household": [f"h{n}" for n in household], "sku": bought, "day": days}
    pd.DataFrame(purchases).to_csv(raw / "purchases.csv", index=False)
    pd.DataFrame(purchases)[:1000].to_csv(raw / "early.csv", index=False)  # ends before the other tasks are judged


def test_a_user_task_by_toml_only(tmp_path: Path) -> None:
    write_shop(tmp_path / "raw")
    config = tmp_path / "shop.toml"
    config.write_text(TOML.format(root=tmp_path))
    assert prepare([str(config)]) == 0
    assert train([str(config), "--output", str(tmp_path / "run"), "--json"]) == 0
    assert evaluate([str(tmp_path / "run")]) == 0
    tasks = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["tasks"]
    assert set(tasks) == {"personal", "together", "early"}
    early = tasks["early"]
    assert early.pop("num_anchors") == early.pop("num_without_positives") == 0
    assert early == {"systems": {}, "intervals": {}, "lists": {}, "comparisons": {}, "slices": {}}
    personal = tasks["personal"]["systems"]
    assert "bm25" not in personal  # households have no text
    assert personal["model"]["recall@10"] > 1.5 * personal["popularity"]["recall@10"]
