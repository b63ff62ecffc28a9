"""The CUDA path: half precision, compilation, memory format, process group, sliding window. Skips without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU path is not run here"),
    pytest.mark.filterwarnings("ignore:parsing config_file"),
]


@pytest.fixture
def flow_of(repository: Path, phantoms: Path, tmp_path: Path):
    """Build the shipped student's workflow on phantoms, on the GPU, with the teacher it ships with."""

    def build(files: tuple[str, ...] = ("train.yaml",), **overrides: Any) -> ConfigWorkflow:
        bundle = repository / "bundles" / "student"
        given = {"dataset_dir": str(phantoms), "split_file": "", "epochs": 2, **overrides}
        return create_workflow(
            config_file=[str(bundle / "configs" / name) for name in files],
            logging_file=False,
            bundle_root=str(bundle),
            run_dir=str(tmp_path / "run"),
            ckpt_dir=str(tmp_path / "models"),
            **given,
        )

    return build


def losses(tmp_path: Path) -> list[float]:
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["device"]["type"] == "cuda"
    return record["curves"]["loss"]


@pytest.mark.parametrize("amp", [True, False])
def test_training_on_the_gpu_learns(flow_of, tmp_path, amp):
    flow_of(amp=amp).run()
    first, last = losses(tmp_path)
    assert last < first
    assert torch.load(tmp_path / "models" / "model.pt", map_location="cpu", weights_only=True)


def test_half_precision_stays_close_to_single(flow_of, tmp_path):
    found = {}
    for amp in (True, False):
        flow_of(amp=amp, epochs=1).run()
        found[amp] = losses(tmp_path)[0]
    assert found[True] == pytest.approx(found[False], rel=0.05)


def test_a_compiled_training_gives_bare_weights(flow_of, tmp_path):
    flow_of(**{"train::trainer::compile": True, "epochs": 1}).run()
    saved = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert not [key for key in saved if "_orig_mod" in key or "module." in key]


def test_channels_last_changes_the_layout_and_not_the_numbers(flow_of, tmp_path):
    expression = "$@network_def.to(@device, memory_format=torch.channels_last_3d)"
    flow = flow_of(network=expression, amp=False, epochs=1)
    flow.run()
    network = flow.parser.get_parsed_content("network")
    assert any(
        value.is_contiguous(memory_format=torch.channels_last_3d) and not value.is_contiguous()
        for value in network.parameters()
        if value.ndim == 5
    )
    with_layout = losses(tmp_path)[0]
    flow_of(amp=False, epochs=1).run()
    assert with_layout == pytest.approx(losses(tmp_path)[0], rel=0.02)


def test_one_process_on_nccl(repository, phantoms, tmp_path):
    from commands import bundle_run

    launcher = ("torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=1", "-m")
    overrides = {"dataset_dir": phantoms, "split_file": "''", "epochs": 1, "run_dir": tmp_path / "run"}
    bundle = repository / "bundles" / "student"
    names = ["train.yaml", "multi_gpu_train.yaml"]
    bundle_run(bundle, names, tmp_path / "cwd", launcher, ckpt_dir=tmp_path / "models", **overrides)
    assert losses(tmp_path)


def test_sliding_window_on_the_gpu_collects_on_the_cpu():
    torch.manual_seed(0)
    network = UNet(3, 1, 3, (8, 16, 32), (2, 2)).cuda().eval()
    volume = torch.randn(1, 1, 72, 80, 64)
    window = {"roi_size": (40, 56, 40), "overlap": 0.25, "mode": "gaussian"}
    with torch.inference_mode():
        mixed = SlidingWindowInferer(**window, sw_device="cuda", device="cpu")(volume, network)
        on_cpu = SlidingWindowInferer(**window)(volume, network.cpu())
    assert mixed.device.type == "cpu"
    torch.testing.assert_close(mixed, on_cpu, rtol=1e-3, atol=1e-3)
