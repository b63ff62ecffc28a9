"""The job of docs/how_to/federated.md in NVFlare's simulator: two sites distill one student on data of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration.consumer_venv import code_block, run_in, venv_bin
from monai.bundle import ConfigParser

from monai_kd.data import make_phantoms

pytestmark = pytest.mark.integration
PAGE = "how_to/federated.md"
SITES = {"site-1": 4, "site-2": 7}  # labelled cases; unequal, so that they weigh in differently

# a filter of results, shipped with the job: what leaves the site, as it leaves
KEEP_WHAT_IS_SENT = """
from pathlib import Path

import numpy
from nvflare.apis.dxo import DataKind, MetaKey
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_constant import FLContextKey


class KeepWhatIsSent(DXOFilter):
    def __init__(self):
        super().__init__(supported_data_kinds=[DataKind.WEIGHTS], data_kinds_to_filter=None)

    def process_dxo(self, dxo, shareable, fl_ctx):
        folder = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT))
        number = len(list(folder.glob("sent-*.npz"))) + 1
        steps = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
        numpy.savez(folder / f"sent-{number}.npz", _steps=steps, **dxo.data)
        return None
"""


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def client_config(data: Path) -> dict[str, Any]:
    """The page's client, on one site's data, with small patches, and a filter that keeps what it sends."""
    config = json.loads(code_block(PAGE, "job/site-1/config/config_fed_client.json").replace("DATA", str(data)))
    small = {"device": "cpu", "cpu_bfloat16": False}
    config["components"][0]["args"]["train_kwargs"] |= {**small, "patch_size": [16, 24, 16]}
    config["components"][0]["args"]["eval_kwargs"] |= {"device": "cpu"}
    config["task_result_filters"] = [{"tasks": ["train"], "filters": [{"path": "keep.KeepWhatIsSent", "args": {}}]}]
    return config


@pytest.fixture(scope="module")
def workspace(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulator's workspace after the job."""
    nvflare = venv_bin("nvflare")
    folder = tmp_path_factory.mktemp("federation")
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "exported", "*.onnx", "*.ts")
    write(folder / "job" / "meta.json", code_block(PAGE, "job/meta.json"))
    server = "server/config/config_fed_server.json"
    write(folder / "job" / server, code_block(PAGE, f"job/{server}"))
    for number, (site, cases) in enumerate(SITES.items()):
        data = make_phantoms(folder / "data" / site, num_train=cases, num_test=0, seed=number, progress=False)
        write(folder / "job" / site / "config" / "config_fed_client.json", client_config(data))
        write(folder / "job" / site / "custom" / "keep.py", KEEP_WHAT_IS_SENT)
    for app in ("server", *SITES):
        shutil.copytree(repository / "bundles" / "student", folder / "job" / app / "config" / "student", ignore=ignore)
    run_in(nvflare, ["nvflare", "simulator", "job", "-w", "workspace", "-n", "2", "-t", "2"], folder)
    return folder / "workspace"


def site_app(workspace: Path, site: str) -> Path:
    return workspace / site / "simulate_job" / f"app_{site}"


@pytest.fixture(scope="module")
def sent(workspace: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each site sent in each round."""
    found = {}
    for site in SITES:
        files = sorted(site_app(workspace, site).glob("sent-*.npz"))
        found[site] = [dict(np.load(path)) for path in files]
    return found


@pytest.fixture(scope="module")
def result(workspace: Path) -> dict[str, torch.Tensor]:
    """The weights of the global model."""
    path = workspace / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"
    return torch.load(path, map_location="cpu", weights_only=True)["model"]


@pytest.fixture(scope="module")
def start(repository: Path) -> dict[str, torch.Tensor]:
    path = repository / "bundles" / "student" / "models" / "model.pt"
    return torch.load(path, map_location="cpu", weights_only=True)


def test_each_site_sends_the_students_weights_and_nothing_else_in_each_round(sent, start):
    assert {site: len(rounds) for site, rounds in sent.items()} == {"site-1": 2, "site-2": 2}
    for rounds in sent.values():
        for content in rounds:
            assert {name: value.shape for name, value in content.items() if name != "_steps"} == {
                name: tuple(value.shape) for name, value in start.items()
            }


def test_the_global_model_is_the_mean_of_the_last_round_weighted_by_steps(sent, result):
    last = [rounds[-1] for rounds in sent.values()]
    steps = [int(content["_steps"]) for content in last]
    assert steps[0] != steps[1], "equal weights would not show that they are used"
    for name, value in result.items():
        mean = sum(content[name].astype(np.float64) * n for content, n in zip(last, steps, strict=True)) / sum(steps)
        np.testing.assert_allclose(np.asarray(value), mean, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_kernel_changed_at_both_sites_in_both_rounds_and_in_the_global_model(sent, result, start):
    kernels = [name for name, value in start.items() if value.ndim > 1]
    assert len(kernels) > 5
    for rounds in sent.values():
        for name in kernels:
            first, second = (content[name] for content in rounds)
            assert np.abs(first - start[name].numpy()).max() > 0, name
            assert np.abs(second - first).max() > 0, name
    assert all((torch.as_tensor(result[name]) - start[name]).abs().max() > 0 for name in kernels)
    different = [np.abs(sent["site-1"][1][name] - sent["site-2"][1][name]).max() for name in kernels]
    assert min(different) > 0, "each site trained on data of its own"


def test_the_global_model_loads_strictly_into_the_bundles_network(result, repository):
    config = repository / "bundles" / "student" / "configs" / "inference.yaml"
    network = ConfigParser(ConfigParser.load_config_file(str(config))).get_parsed_content("network_def")
    network.load_state_dict(result, strict=True)


def test_each_site_distilled_with_its_own_teacher_on_its_own_cases(workspace, sent):
    for site in SITES:
        bundle = site_app(workspace, site) / "config" / "student"
        (path,) = [path for path in bundle.glob("runs/*/run.json") if not path.parent.name.startswith("evaluate-")]
        assert path.parent.name.startswith(site)
        record = json.loads(path.read_text())
        assert (record["method"], record["teacher"]["source"]) == ("distilled", "live")
        assert record["config"]["dataset_dir"].endswith(site)
        assert [int(content["_steps"]) for content in sent[site]] == [record["protocol"]["n_train"]] * 2
