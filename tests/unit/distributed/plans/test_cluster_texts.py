"""A cluster has a text that gives it back, and another number of the same machines has one, too."""

import dataclasses
from pathlib import Path

import pytest

from torchrec_mt.distributed.plans.clusters import parse_cluster, resized


@pytest.mark.parametrize(
    "text", ["2x8xH100-80GB", "1x2xCPU,host_memory_gib=15.5", "1x8xL4-24GB,memory_gb_s=250.0,price_per_hour=9.75"]
)
def test_the_spec_gives_the_cluster_back(text: str) -> None:
    assert parse_cluster(text).spec == text
    assert parse_cluster(parse_cluster(text).spec) == parse_cluster(text)


def test_resized() -> None:
    assert resized("h100", hosts=1, ranks_per_host=2) == "1x2xH100-80GB"
    text = resized("1x8xH100-80GB, inter_host_gb_s=100, price_per_hour=20", hosts=3, ranks_per_host=8)
    assert text == "3x8xH100-80GB,inter_host_gb_s=100,price_per_hour=60"


def test_resized_file(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    keys = ["memory_gib", "memory_gb_s", "host_memory_gib", "host_memory_gb_s", "host_link_gb_s", "intra_host_gb_s"]
    numbers = "\n".join(f"{key} = 10" for key in [*keys, "inter_host_gb_s"])
    file.write_text(f'hosts = 2\nranks_per_host = 4\nprice_per_hour = 8\nkind = "cuda"\nsource = "ours"\n{numbers}\n')
    text = resized(f"{file},memory_gib=20", hosts=2, ranks_per_host=6)
    assert text == f"{file},hosts=2,ranks_per_host=6,memory_gib=20,price_per_hour=12"
    before = parse_cluster(f"{file},memory_gib=20")
    assert parse_cluster(text) == dataclasses.replace(before, ranks_per_host=6, price_per_hour=12.0)
