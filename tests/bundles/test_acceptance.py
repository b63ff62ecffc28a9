"""What every bundle must pass before it is published: the commands and consumers that MONAI promises it works with.

The suite runs over every folder in ``bundles/``. A new bundle adds its tiny network to ``TINY`` in
``tests/commands.py`` and its two-step numbers by

    MONAI_KD_UPDATE_GOLDEN=1 python -m pytest tests/bundles/test_acceptance.py -k golden

which writes ``golden/<bundle>.json`` for all bundles; look at the difference before it is committed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from commands import TINY, bundle_run, monai_bundle
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.data import load_net_with_metadata
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor, nn

from monai_kd.data import case_id
from monai_kd.handlers.provenance import file_sha256
from monai_kd.handlers.scalars import raw_scalars

HERE = Path(__file__).parent
BUNDLES = sorted(path.name for path in (HERE.parents[1] / "bundles").glob("[!_]*") if path.is_dir())
UPDATE_GOLDEN = "MONAI_KD_UPDATE_GOLDEN"
SMALL_PATCH = [16, 24, 16]
FLAT = ("gkd", "mtms-kd")  # bundles of 2-D networks
PHOTOGRAPHS = ("gkd",)  # bundles of 2-D images

# MONAI's hints to trust the source of a configuration and to give the schema's hash
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file"),
    pytest.mark.filterwarnings("ignore:executing the bundle config"),
    pytest.mark.filterwarnings("ignore:No hash value provided"),
]


# networks that cannot be scripted, whose trace must hold for other sizes as well
TRACED = {
    "distill-dsm": {"use_trace": True, "input_shape": [1, 1, 32, 48, 5]},
    "gkd": {"use_trace": True, "input_shape": [1, 1, 32, 48]},
    "mtcm-kd": {"use_trace": True, "input_shape": [1, 1, 32, 48, 40]},
    "mtms-kd": {"use_trace": True, "input_shape": [1, 1, 32, 48]},
}


# bundles that train more than the student, and the keys of that in a distiller's state
TRAINS_BESIDE = ("mtcm-kd", "mtms-kd")
BESIDE = ("teachers.", "parts.", "losses.", "adapters.")
# what makes two steps of large patches quick
QUICK = {
    "gkd": {
        "patch_size": [32, 32],
        "num_samples": 2,
        # with random weights the U-Net's bottleneck does not reach its output
        "teacher_def": {"_target_": "monai_kd.networks.nets.ERFNet", "in_channels": 1, "out_channels": 2},
        "teacher_features": 128,
    },
    "mtcm-kd": {"patch_size": [16, 16, 16], "roi_size": [32, 32, 32], "teacher_val_interval": 0},
}


def golden_file(bundle: str) -> Path:
    return HERE / "golden" / f"{bundle}.json"


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest, repository: Path) -> Path:
    """The bundle as it is shipped; nothing may be written there."""
    return repository / "bundles" / request.param


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """The bundle's folder alone, as a download leaves it."""
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "*.onnx", "*.ts")
    return shutil.copytree(bundle, tmp_path / "download" / bundle.name, ignore=ignore)


def small_patch(bundle: Path) -> list[int]:
    return TINY[bundle.name].get("patch_size") or ([32, 32] if bundle.name in FLAT else SMALL_PATCH)


def configs(bundle: Path, *names: str) -> list[str]:
    return [str(bundle / "configs" / name) for name in names]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_bundle_is_found_and_has_what_this_suite_needs(bundles, tiny):
    assert [path.name for path in bundles] == BUNDLES, "a folder in bundles/ without configs/metadata.json"
    assert len(BUNDLES) >= 2
    assert {"teacher", "student"} <= set(BUNDLES)
    assert set(tiny) == set(BUNDLES), "commands.py: TINY"
    assert sorted(path.stem for path in (HERE / "golden").glob("*.json")) == BUNDLES


# ---- metadata -------------------------------------------------------------------------------------------------------

TEXT = {"type": "string", "minLength": 1}
VERSION = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
VERSIONS = {"type": "object", "additionalProperties": VERSION}
SHAPE = {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 2, "maxItems": 3}
CHANNELS = {"type": "object", "additionalProperties": TEXT, "minProperties": 1}
# what MONAI, the model zoo and MONAI Label read, and its type
METADATA: dict[str, dict[str, Any]] = {
    "schema": TEXT,
    "version": VERSION,
    "changelog": {"type": "object", "additionalProperties": TEXT, "minProperties": 1},
    "monai_version": VERSION,
    "pytorch_version": VERSION,
    "numpy_version": VERSION,
    "required_packages_version": VERSIONS,
    "name": TEXT,
    "task": TEXT,
    "description": TEXT,
    "authors": TEXT,
    "copyright": TEXT,
    "network_data_format": {"type": "object"},
    "network_data_format::inputs": {"type": "object"},
    "network_data_format::inputs::image": {"type": "object"},
    "network_data_format::inputs::image::spatial_shape": SHAPE,
    "network_data_format::outputs": {"type": "object"},
    "network_data_format::outputs::pred": {"type": "object"},
    "network_data_format::outputs::pred::channel_def": CHANNELS,
}


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON schema that requires every key of ``METADATA``; the published one cannot be downloaded offline."""
    root: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
    for config_id, kind in METADATA.items():
        *parents, key = config_id.split("::")
        node = root
        for parent in parents:
            node = node["properties"][parent]
        node.setdefault("properties", {})[key] = dict(kind)
        node.setdefault("required", []).append(key)
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    path.write_text(json.dumps(root))
    return path


def test_metadata_fits_the_schema(bundle, schema):
    monai.bundle.verify_metadata(meta_file=configs(bundle, "metadata.json"), filepath=schema)


@pytest.mark.parametrize("config_id", list(METADATA))
def test_metadata_without_a_key_is_refused(bundle, schema, tmp_path, config_id):
    metadata = read(bundle / "configs" / "metadata.json")
    *parents, key = config_id.split("::")
    node = metadata
    for parent in parents:
        node = node[parent]
    del node[key]
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=f"[`']{key}[`']"):
        monai.bundle.verify_metadata(meta_file=str(path), filepath=schema)


@pytest.mark.slow
def test_verify_metadata_works_as_a_command(repository, schema, tmp_path):
    (file,) = configs(repository / "bundles" / BUNDLES[0], "metadata.json")
    printed = monai_bundle(tmp_path / "cwd", "verify_metadata", "--meta_file", file, "--filepath", str(schema)).stdout
    assert "metadata is verified with no error" in printed


# ---- the shipped network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_network_takes_and_gives_what_the_metadata_says(bundle, n):
    """``n`` fills in the shape of the metadata, e.g. ``8*n``; 1 is the command's default."""
    (meta_file,), (config_file,) = configs(bundle, "metadata.json"), configs(bundle, "inference.yaml")
    monai.bundle.verify_net_in_out("network_def", meta_file=meta_file, config_file=config_file, device="cpu", n=n)


def test_network_with_other_channels_than_the_metadata_is_refused(bundle):
    (meta_file,), (config_file,) = configs(bundle, "metadata.json"), configs(bundle, "inference.yaml")
    other = {"network_def::out_channels": 7}
    with pytest.raises(ValueError, match="output channel number `7`"):
        monai.bundle.verify_net_in_out("network_def", meta_file, config_file, device="cpu", n=3, **other)


@pytest.fixture
def shipped(bundle: Path) -> nn.Module:
    """The network of inference.yaml with the shipped weights, loaded strictly by PyTorch alone."""
    parser = ConfigParser(ConfigParser.load_config_file(configs(bundle, "inference.yaml")[0]))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", map_location="cpu", weights_only=True))
    return network.eval()


def random_image(bundle: Path, batch: int, *size: int) -> Tensor:
    """Return noise of a size; of as many of its axes as the bundle's images have."""
    facts = read(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    size = size[: len(facts["spatial_shape"])]
    return torch.randn(batch, facts["num_channels"], *size, generator=torch.Generator().manual_seed(0))


def logits(network: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(image)


def export_arguments(bundle: Path, filepath: Path) -> dict[str, Any]:
    return {
        "net_id": "network_def",
        "filepath": str(filepath),
        "ckpt_file": str(bundle / "models" / "model.pt"),
        "meta_file": configs(bundle, "metadata.json")[0],
        "config_file": configs(bundle, "inference.yaml")[0],
    }


def test_torchscript_gives_the_networks_logits_and_carries_configuration_and_metadata(bundle, shipped, tmp_path):
    monai.bundle.ckpt_export(**export_arguments(bundle, tmp_path / "model.ts"), **TRACED.get(bundle.name, {}))
    script, metadata, files = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=("inference.json",))
    for image in (random_image(bundle, 1, 24, 32, 24), random_image(bundle, 2, 16, 16, 32)):
        torch.testing.assert_close(logits(script.eval(), image), logits(shipped, image), rtol=1e-4, atol=1e-4)
    expected = read(bundle / "configs" / "metadata.json")
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(files["inference.json"]) == ConfigParser.load_config_file(configs(bundle, "inference.yaml")[0])


@pytest.mark.slow
def test_onnx_gives_the_networks_logits_at_other_sizes_and_batches_than_the_exported(bundle, shipped, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    axes = {0: "batch", 2: "h", 3: "w"}
    dynamic = {"image": axes if bundle.name in FLAT else {**axes, 4: "d"}}
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": dynamic}
    exported = random_image(bundle, 2, 32, 48, 32)
    arguments = export_arguments(bundle, tmp_path / "model.onnx")
    monai.bundle.onnx_export(**arguments, input_shape=list(exported.shape), converter_kwargs=names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(arguments["filepath"], options, providers=["CPUExecutionProvider"])
    for image in (random_image(bundle, 1, 40, 56, 40), random_image(bundle, 3, 16, 24, 32)):
        (found,) = session.run(["pred"], {"image": image.numpy()})
        expected = logits(shipped, image).numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-3


def test_bundle_load_gives_the_very_network_of_inference(bundle, data_for, tmp_path, monkeypatch):
    monkeypatch.setattr("monai.bundle.workflows.fileConfig", lambda *_, **__: None)  # other tests keep their logging
    root, weights = bundle.parent, bundle / "models" / "model.pt"
    network = monai.bundle.load(bundle.name, workflow_type="infer", bundle_dir=root, source="github", device="cpu")
    assert isinstance(network, nn.Module)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    flow = create_workflow(
        config_file=configs(bundle, "inference.yaml"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(data_for(bundle.name, images=True)),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    flow.evaluator.fire_event(Events.STARTED)  # that is when its CheckpointLoader loads
    image = random_image(bundle, 1, 24, 32, 24)
    assert torch.equal(logits(network.eval(), image), logits(flow.evaluator.network.eval(), image))


# ---- the folder alone, from another folder --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_copied_folder_trains_evaluates_and_segments_from_elsewhere(copied, tiny, data_for, tmp_path):
    before, cwd = file_sha256(copied / "models" / "model.pt"), tmp_path / "elsewhere"
    small = tiny[copied.name]
    data = {**small, "dataset_dir": data_for(copied.name), "split_file": "''"}
    bundle_run(copied, ["train.yaml"], cwd, epochs=1, **{**data, "patch_size": small_patch(copied)})
    trained, weights = read(copied / "models" / "model.json"), file_sha256(copied / "models" / "model.pt")
    assert (trained["kind"], trained["status"], trained["epochs"]) == ("training", "finished", 1)
    assert trained["network"]["weights_sha256"] == weights != before

    bundle_run(copied, ["train.yaml", "evaluate.yaml"], cwd, **data)
    (run_dir,) = (copied / "runs").glob("evaluate-*")
    scored = read(run_dir / "run.json")
    assert (scored["kind"], scored["status"], scored["summary"]["n_cases"]) == ("evaluation", "finished", 6)
    assert scored["network"]["weights_sha256"] == weights
    assert (run_dir / "metrics.csv").is_file()

    segmented = data_for(copied.name, images=True)
    bundle_run(copied, ["inference.yaml"], cwd, dataset_dir=segmented, **small)
    found = segmented / "imagesTs" if (segmented / "imagesTs").is_dir() else segmented
    images = {case_id(path) for path in found.iterdir()}
    ending = "png" if copied.name in PHOTOGRAPHS else "nii.gz"
    assert {path.name for path in (copied / "eval").iterdir()} == {f"{name}_seg.{ending}" for name in images}
    assert len(images) == 2


@pytest.mark.slow
def test_two_processes_train_one_network_together(copied, tiny, data_for, tmp_path):
    launcher = ("torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2", "-m")
    given = {
        "dataset_dir": data_for(copied.name),
        "split_file": "''",
        "patch_size": small_patch(copied),
        "batch_size": 1,
        "epochs": 1,
    }
    given |= tiny[copied.name]
    bundle_run(copied, ["train.yaml", "multi_gpu_train.yaml"], tmp_path / "elsewhere", launcher, **given)
    (run_dir,) = (copied / "runs").iterdir()
    record = read(run_dir / "run.json")
    assert (record["status"], record["epochs"], record["processes"]) == ("finished", 1, 2)
    # one validation case, handed to both processes, counts once
    assert record["validation"]["n_cases"] == 1
    assert len(list(run_dir.glob("events.out.*"))) == 2, "curves of training and of validation, by one process"
    published = copied / "models" / "model.pt"
    assert record["network"]["weights_sha256"] == file_sha256(published)
    parser = ConfigParser({"network_def": record["config"]["network_def"]})
    parser.get_parsed_content("network_def").load_state_dict(torch.load(published, weights_only=True))


# ---- two optimizer steps --------------------------------------------------------------------------------------------


def kernels(network: nn.Module) -> Tensor:
    """All convolution kernels in one vector.

    Biases before an instance normalization are left out: their gradient is rounding noise, which Adam scales up.
    """
    return torch.cat([p.detach().double().flatten() for p in network.parameters() if p.ndim > 1])


def two_steps(flow: ConfigWorkflow) -> dict[str, float]:
    """Train one epoch of two steps: each step's loss and terms, the norm of the kernels and of their change."""
    *preparations, training = range(len(flow.parser.get("run")))
    for number in preparations:
        flow.parser.get_parsed_content(f"run::{number}")
    network, trainer = (flow.parser.get_parsed_content(name) for name in ("network", "train::trainer"))
    start, numbers = kernels(network), {}

    def keep(engine: Engine) -> None:
        for name, value in raw_scalars(engine.state.output).items():
            numbers[f"{name}_{engine.state.iteration}"] = value

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    flow.parser.get_parsed_content(f"run::{training}")
    assert trainer.state.iteration == 2
    end = kernels(network)
    return {**numbers, "kernel_norm": end.norm().item(), "update_norm": (end - start).norm().item()}


def differing(found: dict[str, float], golden: dict[str, float]) -> set[str]:
    """The names of the numbers that one side lacks or that differ by more than 0.1 %."""
    common = found.keys() & golden.keys()
    apart = {name for name in common if not math.isclose(found[name], golden[name], rel_tol=1e-3)}
    return apart | (found.keys() ^ golden.keys())


@pytest.fixture
def numbers(bundle: Path, workflow: Callable[..., ConfigWorkflow]) -> Callable[..., dict[str, float]]:
    """Two steps of train.yaml as it stands, with a tiny network, on the 4 training cases of the phantoms."""
    fixed = {"epochs": 1, "batch_size": 2, "device": "cpu", **QUICK.get(bundle.name, {})}
    return lambda **overrides: two_steps(workflow(bundle, ("train.yaml",), **fixed, **overrides))


def test_two_steps_give_the_golden_numbers(bundle, numbers):
    found, path = numbers(), golden_file(bundle.name)
    if os.environ.get(UPDATE_GOLDEN):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        pytest.skip(f"{path} was written, nothing compared: {UPDATE_GOLDEN} is set")
    assert {"loss_1", "loss_2", "kernel_norm", "update_norm"} <= found.keys()
    assert differing(found, read(path)) == set(), f"found {found}"


# where one of many terms is small, one percent of it is nothing
MORE = {"mtcm-kd": 2.0, "gkd": 100.0, "mtms-kd": 100.0}


def slightly_more(bundle: str) -> dict[str, dict[str, float]]:
    """Overrides by name: the learning rate, and the weight of every term or, without terms, of the cross-entropy."""
    train = ConfigParser.load_config_file(configs(HERE.parents[1] / "bundles" / bundle, "train.yaml")[0])
    more = MORE.get(bundle, 1.01)
    weights = {f"terms::{name}::weight": more * term["weight"] for name, term in train.get("terms", {}).items()}
    changed = {"learning_rate": 1.01 * train["learning_rate"], **(weights or {"loss::lambda_ce": 1.01})}
    return {name: {name: value} for name, value in changed.items()}


KNOBS = [(bundle, name, override) for bundle in BUNDLES for name, override in slightly_more(bundle).items()]


@pytest.mark.parametrize(
    ("bundle", "override"),
    [(bundle, override) for bundle, _, override in KNOBS],
    ids=[f"{bundle}-{name}" for bundle, name, _ in KNOBS],
    indirect=["bundle"],
)
def test_slightly_more_learning_rate_or_loss_weight_breaks_the_golden_numbers(bundle, numbers, override):
    apart = differing(numbers(**override), read(golden_file(bundle.name)))
    # the first loss is computed before the first step, and AdamW's steps hardly depend on the scale of the loss
    assert ("update_norm" if "learning_rate" in override else "loss_1") in apart


# ---- federated learning ---------------------------------------------------------------------------------------------


@pytest.fixture
def client(
    copied: Path,
    tiny: dict[str, Any],
    data_for: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MonaiAlgo]:
    """A federated client as NVFlare makes it: it stands elsewhere, and the bundle is a folder of its app.

    Its first ``initialize`` still has the bundle_root of the configuration, ``.``; the teacher is the bundle's own.
    """
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")
    given = {**tiny[copied.name], "dataset_dir": str(data_for(copied.name)), "split_file": "", "device": "cpu"}
    algo = MonaiAlgo(
        bundle_root=copied.name,
        send_weight_diff=False,
        config_train_filename="configs/train.yaml",
        train_kwargs={**given, "patch_size": small_patch(copied)},
        config_evaluate_filename=["configs/train.yaml", "configs/evaluate.yaml"],
        eval_kwargs=given,
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(copied.parent)})
    yield algo
    algo.finalize()


@pytest.mark.slow
def test_a_federated_client_trains_and_evaluates_the_weights_it_is_sent(client, copied, tmp_path):
    definition = ConfigParser({"network_def": client.train_workflow.parser.get("network_def")})
    sent = definition.get_parsed_content("network_def").state_dict()  # random weights, other than the client's
    client.train(ExchangeObject(weights=sent))
    returned = client.get_weights().weights
    # what is trained beside the student, by a method that does, has keys of its own
    assert [name for name in returned if not name.startswith(BESIDE)] == list(sent), "the bare network"
    assert (copied.name in TRAINS_BESIDE) == any(name.startswith(BESIDE) for name in returned)
    returned = {name: returned[name].clone() for name in sent}  # as over a network
    learned = {name: value for name, value in sent.items() if "running_" not in name and "num_batches" not in name}
    changes = [(returned[name] - value).abs().max().item() for name, value in learned.items()]
    steps, rate = client.trainer.state.iteration, client.trainer.optimizer.defaults["lr"]
    cases, batch = (
        len(client.train_workflow.parser.get_parsed_content("train::dataset")),
        client.train_workflow.parser["batch_size"],
    )
    assert steps == math.ceil(cases / batch), "one epoch"
    assert 0 < max(changes) < 1.5 * steps * rate, "an AdamW step moves a weight by about the learning rate"

    metrics = client.evaluate(ExchangeObject(weights=returned)).metrics
    assert 0 <= metrics["val_mean_dice"] <= 1
    state = client.evaluator.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in returned.items())

    client.train(ExchangeObject(weights=returned))  # the next round
    assert client.trainer.state.iteration == 2 * steps
    assert list((tmp_path / "workspace").iterdir()) == []


@pytest.mark.slow
def test_a_federated_evaluation_leaves_the_record_of_the_training_alone(client, copied):
    weights = {name: value.clone() for name, value in client.get_weights().weights.items()}  # as over a network
    client.train(ExchangeObject(weights=weights))
    client.evaluate(client.get_weights())
    records = [read(path)["kind"] for path in (copied / "runs").glob("*/run.json")]
    assert sorted(records) == ["evaluation", "training"]
