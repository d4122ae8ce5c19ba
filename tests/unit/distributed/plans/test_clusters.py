"""Clusters: by name, with changes, from files; what makes no sense is told with its remedy."""

from dataclasses import replace
from pathlib import Path

import pytest

from torchrec_mt.distributed.plans.clusters import GIB, catalogue, parse_cluster
from torchrec_mt.distributed.plans.estimates import topology_of
from torchrec_mt.errors import UserError


def test_names() -> None:
    cluster = parse_cluster("2x8xH100-80GB")
    assert (cluster.hosts, cluster.ranks_per_host, cluster.world_size, cluster.label) == (2, 8, 16, "2x8xH100-80GB")
    assert cluster.device_bytes == int(79.6 * GIB)
    assert cluster.host_bytes == 2048 * GIB // 8
    assert parse_cluster("h200").label == "1x1xH200-141GB"
    assert parse_cluster("1x2xcpu").device_bytes == 0


def test_changes() -> None:
    cluster = parse_cluster("2x8xA100-40GB, memory_gib=79, price_per_hour=60.5")
    assert cluster.device == replace(catalogue()["A100-40GB"], memory_gib=79.0)
    assert cluster.price_per_hour == 60.5


def test_every_device_says_where_its_figures_are_from() -> None:
    for name, device in catalogue().items():
        assert len(device.source) > 40, name
        assert (device.memory_gib > 0) == (device.kind == "cuda"), name
        assert device.intra_host_gb_s >= device.inter_host_gb_s > 0, name


def test_a_file_and_back(tmp_path: Path) -> None:
    cluster = parse_cluster("4x8xB200-180GB,inter_host_gb_s=100")
    file = tmp_path / "cluster.toml"
    file.write_text(cluster.to_toml())
    assert parse_cluster(str(file)) == cluster
    file.write_text('hosts = 2\nranks_per_host = 4\nname = "L4-24GB"\n')
    assert parse_cluster(str(file)).device == catalogue()["L4-24GB"]


def test_links_that_nobody_uses_may_be_missing() -> None:
    assert parse_cluster("1x8xH100,inter_host_gb_s=0").device.inter_host_gb_s == 0
    assert parse_cluster("8x1xH100,intra_host_gb_s=0").device.intra_host_gb_s == 0


def test_a_source_in_any_script(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "CPU"\nhosts = 1\nranks_per_host = 1\nsource = "📏 \u00e9"\n')
    cluster = parse_cluster(str(tmp_path / "a.toml"))
    (tmp_path / "b.toml").write_text(cluster.to_toml())
    assert parse_cluster(str(tmp_path / "b.toml")) == cluster


def test_topology_has_bandwidths_of_a_rank_in_bytes_per_millisecond() -> None:
    topology = topology_of(parse_cluster("2x8xH100-80GB"))
    assert (topology.world_size, topology.local_world_size, topology.compute_device) == (16, 8, "cuda")
    assert topology.hbm_mem_bw == pytest.approx(3350e6)
    assert topology.ddr_mem_bw == pytest.approx(614e6 / 8)
    assert (topology.intra_host_bw, topology.inter_host_bw) == (pytest.approx(450e6), pytest.approx(50e6))
    assert topology.devices[3].storage.hbm == int(79.6 * GIB)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2x8xV100", "no cluster '2x8xV100': write HOSTSxRANKSxDEVICE, e.g. 2x8xH100-80GB, with a device of A100-40GB"),
        ("0x8xH100", "no cluster '0x8xH100'"),
        ("8xH100", "no cluster '8xH100'"),
        ("", "no cluster ''"),
        ("1x8xH100,memory=80", "--cluster 1x8xH100,memory=80: unknown key 'memory': one of hosts, ranks_per_host"),
        ("1x8xH100,memory_gib=lots", "'memory_gib=lots' is not of the form KEY=NUMBER"),
        ("1x8xH100,memory_gib=-1", "memory_gib = -1.0: must be a number from 0"),
        ("1x8xH100,hosts=1.5", "hosts = 1.5: must be a whole number from 1"),
        ("nowhere.toml", "no cluster file 'nowhere.toml'"),
        ("1x8xH100,memory_gib=0", "1x8xH100,memory_gib=0: memory_gib = 0.0: must be at least 1e-06 for 1x8xH100-80GB"),
        ("1x8xH100,memory_gib=1e-12", "memory_gib = 1e-12: must be at least 1e-06"),
        ("1x1xCPU,host_memory_gib=0", "host_memory_gib = 0.0: must be at least 1e-06"),
        ("2x8xH100,inter_host_gb_s=0", "inter_host_gb_s = 0.0: must be at least 1e-06"),
        ("99999999x8xH100", "99999999x8xH100: 799,999,992 ranks, and plans are for at most 65,536"),
        ("1x1xH100,hosts=1e11", "100,000,000,000 ranks, and plans are for at most 65,536"),
    ],
)
def test_what_makes_no_sense(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_cluster(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts = ", "is not valid TOML"),
        ("hosts = 2\n", "lacks ranks_per_host, kind, memory_gib"),
        ('name = "CPU"\nhosts = "two"\nranks_per_host = 1\n', "hosts = 'two': must be a whole number from 1"),
        ('name = "CPU"\nhosts = 1\nranks_per_host = 1\nkind = "tpu"\n', "kind = 'tpu': must be cuda or cpu"),
        ('name = "CPU"\nhosts = 1\nranks_per_host = 1\nkind = "cuda"\n', "memory_gib = 0: must be at least 1e-06"),
        ('name = "CPU"\nhosts = true\nranks_per_host = 1\n', "hosts = True: must be a whole number from 1"),
        ('name = "CPU"\nhosts = 1\nranks_per_host = 1\nsource = 5\n', "source = 5: must be a text"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse_cluster(str(file))
    assert said in str(error.value)
