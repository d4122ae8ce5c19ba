"""Names are the user's: those that torch's own modules have as attributes train and evaluate like any other."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train

TOML = """
[dataset]
name = "names"
path = "{root}/prepared"
source = {{ kind = "files", root = "{root}/raw" }}
split = {{ kind = "time" }}

[dataset.tables]
items = {{ dim = 8 }}
type = {{ dim = 8 }}
values = {{ dim = 8 }}

[dataset.entities.items]
path = "items.csv"
id = "items"
features.items = {{ kind = "id", table = "items" }}
features.type = {{ kind = "text", columns = ["name"], table = "type" }}

[dataset.entities.keys]
path = "keys.csv"
id = "keys"
features.train = {{ kind = "id", table = "values" }}

[dataset.tasks.train]
anchor = "keys"
candidate = "items"
pairs = {{ kind = "given", path = "pairs.csv", anchor = "keys", candidate = "items", time = "day" }}

[dataset.tasks.values]
anchor = "items"
candidate = "items"
pairs = {{ kind = "groups", path = "pairs.csv", group = ["keys", "day"], item = "items", time = "day" }}

[model]
dim = 8
[reader]
batch_size = 32
[trainer]
steps = 4
validations = 1
[runtime]
threads = 1
"""


def test_names_of_torchs_own_attributes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    pd.DataFrame({"items": range(20), "name": [f"thing {n}" for n in range(20)]}).to_csv(raw / "items.csv", index=False)
    pd.DataFrame({"keys": range(10)}).to_csv(raw / "keys.csv", index=False)
    keys, items, days = rng.integers(0, 10, 600), rng.integers(0, 20, 600), np.sort(rng.integers(0, 50, 600))
    pd.DataFrame({"keys": keys, "items": items, "day": days}).to_csv(raw / "pairs.csv", index=False)
    config = tmp_path / "names.toml"
    config.write_text(TOML.format(root=tmp_path))
    assert prepare([str(config)]) == 0
    assert train([str(config), "--output", str(tmp_path / "run"), "--json"]) == 0
    assert evaluate([str(tmp_path / "run"), "--json"]) == 0
    assert set(json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["tasks"]) == {"train", "values"}
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert {table["name"] for table in plan["tables"]} == {"items", "type", "values"}
