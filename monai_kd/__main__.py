"""The command line: ``python -m monai_kd COMMAND``.

Every command prints what it did. A mistake of input ends in one line on standard error and exit code 1.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import fire


def pack(bundle: str, out_dir: str = "dist") -> None:
    """Pack a bundle into OUT_DIR/NAME_vVERSION.zip: one top folder, weights inside, the same bytes every time.

    Args:
        bundle: the bundle's folder; its name becomes the zip's top folder.
        out_dir: where the zip goes. An older zip of that version is replaced only when the new one is whole.
    """
    from monai_kd.hub import pack_bundle

    packed = pack_bundle(bundle, out_dir)
    print(f"packed: {packed.path} ({packed.size / 1e6:.2f} MB, {packed.files} files)\nsha256: {packed.sha256}")


def index(*zips: str, base_url: str = "", out: str = "models/model_info.json") -> None:
    """Enter packed bundles into the download index, in the model zoo's form plus sha256.

    Args:
        zips: files made by `pack`.
        base_url: folder of the download addresses; the source of a zip is BASE_URL/NAME_vVERSION.zip.
        out: the index; other entries in it stay.
    """
    from monai_kd.hub import index_bundles

    for name in index_bundles(list(zips), base_url, out):
        print(f"indexed: {name}")


def verify(bundle: str, index_file: str = "", data_schema: str = "") -> None:
    """Check what the model zoo and MONAI's consumers demand of a bundle that is shared; exit code 1 if anything fails.

    Args:
        bundle: the bundle's folder.
        index_file: the download index; a version that is in it with other bytes is refused.
        data_schema: a local copy of the metadata schema; empty checks the rules stated in the documentation instead.
    """
    from monai_kd.hub import verify_bundle

    checks = verify_bundle(bundle, index_file or None, data_schema or None)
    for check in checks:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}{': ' + check.detail if check.detail else ''}")
    failed = [check for check in checks if not check.passed]
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed")
    if failed:
        sys.exit(1)


def doctor(bundle: str, dataset_dir: str = "", split_file: str = "", cases: int = 2) -> None:
    """Look for what makes a bundle or a distillation fail: configurations, weights, and with data the teacher.

    Args:
        bundle: the bundle's folder. Every config is parsed; a failing id is named with its reason in one line.
        dataset_dir: labelled data in the bundle's layout: the network, and the teacher of a student bundle, are scored
            on a few cases against their cards, and channel and class order are read off the confusion matrix.
        split_file: cases of the split's test section are used; empty uses the first labelled cases.
        cases: how many.
    """
    from monai_kd.hub import diagnose

    findings = diagnose(bundle, dataset_dir or None, split_file or None, cases)
    for finding in findings:
        print(f"{finding.level:<7} {finding.where}: {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    print(f"{errors} errors, {sum(finding.level == 'warning' for finding in findings)} warnings")
    if errors:
        sys.exit(1)


def calibrate(
    bundle: str,
    config_file: str | list[str] = "configs/train.yaml",
    batches: int = 10,
    ratio: float = 1.0,
    reference: str = "seg",
    warmup: int = 20,
    dataset_dir: str = "",
    split_file: str = "",
    **overrides: Any,
) -> None:
    """Measure how strongly each term pulls on the student on real batches, and suggest weights; nothing is written.

    Args:
        bundle: the bundle's folder.
        config_file: files of the training, "['configs/train.yaml','configs/distillers/cwd.yaml']"; relative to BUNDLE.
        batches: training batches to measure.
        ratio: wanted gradient norm of each term, relative to the reference's.
        reference: the supervised term.
        warmup: training iterations on the reference alone before that, in memory: a random start is not typical.
        dataset_dir: data in the bundle's layout; empty takes the configuration's.
        split_file: a split; empty takes the configuration's, "''" draws one by seed.
        overrides: any other id of the configuration, as in `monai.bundle run`: --terms::cwd::weight 2.3
    """
    from monai_kd.hub.calibrate import calibrate_terms

    given = {"dataset_dir": dataset_dir, "split_file": split_file}
    overrides |= {name: "" if text == "''" else text for name, text in given.items() if text}
    print(calibrate_terms(bundle, config_file, batches, ratio, reference, warmup, overrides).table())


def fetch(source: str, bundle_dir: str = ".", name: str = "", version: str = "", sha256: str = "") -> None:
    """Download a bundle, check its sha256 before unpacking, and put it into BUNDLE_DIR/NAME.

    Args:
        source: address of a zip (http, https or file); or github:OWNER/REPO/TAG; or hf:OWNER/REPO; or the address of a
            model_info.json, from which sha256 and address of NAME (and VERSION) are taken.
        bundle_dir: where the bundle's folder goes. A folder that stands there is kept aside, never reused or mixed.
        name: the bundle's name; needed for github, hf and an index that holds several.
        version: of the bundle; empty takes the newest.
        sha256: expected, 64 hex digits; an index states it itself.
    """
    from monai_kd.hub import fetch_bundle

    print(f"fetched: {fetch_bundle(source, bundle_dir, name or None, version or None, sha256 or None)}")


def push(bundle: str, repo: str, private: bool = True) -> None:
    """Upload a bundle to a Hugging Face repository, tag it with its version, and move `latest_version` to it.

    Args:
        bundle: the bundle's folder.
        repo: OWNER/NAME; made if it does not exist.
        private: of a repository that is made. The token is HF_TOKEN or the stored login.
    """
    from monai_kd.hub import push_to_hugging_face

    pushed = push_to_hugging_face(bundle, repo, private)
    print(f"pushed: {pushed.repo} {pushed.version} ({pushed.commit}){', the latest' if pushed.latest else ''}")


def materialize(run: str, out: str, bundle: str = "") -> None:
    """Turn a finished training run, with its overlays and overrides, into a bundle of its own that passes `verify`.

    Args:
        run: folder with run.json and model.pt.
        out: the new bundle's folder; its last part is the new bundle's name.
        bundle: the bundle that was trained; empty takes the one whose runs/ folder holds RUN.
    """
    from monai_kd.hub import materialize_run

    print(f"materialized: {materialize_run(run, out, bundle or None)}")


def export(bundle: str, formats: str = "onnx", out_dir: str = "", images: str = "", ckpt: str = "") -> None:
    """Export a bundle's network for other runtimes; a file stays only if it agrees with PyTorch on real images.

    Args:
        bundle: the bundle's folder.
        formats: comma separated: onnx, openvino, openvino-f16, openvino-int8, torchscript, torch-export, slicer,
            tensorrt (needs a GPU).
        out_dir: where the files and export.json (the parity record) go; empty is BUNDLE/models/exported.
        images: file or folder of images for the parity check and INT8 calibration; empty uses random volumes, which
            INT8 refuses.
        ckpt: weights; empty is BUNDLE/models/model.pt.
    """
    from monai_kd.export import export_bundle

    for result in export_bundle(bundle, formats.split(","), out_dir or None, images or None, ckpt or None):
        print(
            f"exported: {result.path} ({result.size / 1e6:.2f} MB), max logit difference "
            f"{result.max_logit_difference:.2e}, Dice between its labels and PyTorch's {result.dice:.4f}"
        )


def predict(bundle: str, images: str, out: str, engine: str = "pytorch", model: str = "") -> None:
    """Segment one image or a folder of images with a bundle's own preprocessing and sliding window.

    Args:
        bundle: the bundle's folder.
        images: an image, or a folder of them (its imagesTs if it has one): NIfTI, or photographs for bundles of those.
        out: folder for <image>_seg.nii.gz or <image>_seg.png, in each image's own grid.
        engine: pytorch, torchscript, torch-export, onnx or openvino.
        model: the model file; empty is the bundle's model.pt, or what `export` wrote for the engine.
    """
    from monai_kd.export import predict_images

    for path in predict_images(bundle, images, out, engine, model or None):
        print(f"written: {path}")


def compare(bundle: str, a: str, b: str, dataset_dir: str, split_file: str = "", section: str = "") -> None:
    """Compare two models on a bundle's task: Dice, size and time side by side, and the paired difference.

    Args:
        bundle: its evaluation protocol and preprocessing are used.
        a: a model: weights of the bundle's network (.pt), an export (.onnx, .xml, .ts, .pt2), or another bundle.
        b: the other model.
        dataset_dir: labelled data in the bundle's layout.
        split_file: a split; its section is scored.
        section: test, validation, train or all; empty is test with a split file and all without.
    """
    from monai_kd.hub import compare_cases

    print(compare_cases(bundle, a, b, dataset_dir, split_file or None, section or None).table())


def view(
    pred: str,
    out: str,
    image: str,
    label: str = "",
    bundle_root: str = "",
    class_names: list[str] | dict[int, str] | None = None,
    regions: dict[str, list[int]] | None = None,
    channel: int | str = 0,
    point: list[float] | None = None,
    window: list[float] | None = None,
    axis: str = "axial",
    fps: float = 10.0,
    gif_size: int = 480,
    smoothing: int = 30,
    page_triangles: int = 150_000,
    overwrite: bool = False,
) -> None:
    """Show predictions in 3-D: a page to turn them, slices, a GIF through the volume, STL and GLB surfaces.

    Args:
        pred: a label map, or a folder of them as inference writes it, <image>_seg.nii.gz; each gets a folder in OUT.
        out: folder to write; it appears whole or not at all.
        image: the image, or the folder of images (MSD layout, or BraTS with one folder per case), on the same grid.
        label: the truth, or its folder; empty shows predictions alone.
        bundle_root: bundle whose metadata.json names the classes.
        class_names: in its place, names of the values 1, 2, ... "['anterior','posterior']" or "{1:'core',4:'rim'}".
        regions: in its place, regions that may overlap, "{'whole_tumor':[1,2,3],'core':[1,3]}".
        channel: of a 4-D image, from 0; or a modality of BraTS: t1, t1ce, t2, flair.
        point: where the slices meet, "[x,y,z]" in RAS+ millimeters; empty takes those that show most.
        window: gray values of black and white, "[-160,240]" for soft tissue in CT; empty finds them.
        axis: of the GIF: axial, coronal or sagittal.
        fps: frames of the GIF a second.
        gif_size: its longest side in pixels.
        smoothing: rounds of smoothing of the surfaces; 0 shows voxels.
        page_triangles: triangles in the page at most; STL and GLB have all.
        overwrite: True replaces an older output in OUT.
    """
    from monai_kd.visualize.viewer import ViewerSettings, write_viewer

    settings = ViewerSettings(point, window, axis, fps, gif_size, smoothing, page_triangles)
    names = (bundle_root or None, class_names, regions)
    for shown in write_viewer(pred, out, image, label or None, *names, channel, settings, overwrite):
        scores = [
            f"{item['name']} {item['dice']:.3f}" for item in shown.record["structures"] if item.get("dice") is not None
        ]
        print(f"written: {shown.folder}{', Dice ' + ', '.join(scores) if scores else ''}")


def stages(bundle: str, out: str = "runs/stages", only: str = "", overlays: str = "", **overrides: Any) -> None:
    """Train a method of several stages, one after the other; finished ones are passed over, a stopped one goes on.

    Args:
        bundle: the bundle's folder; its configs/stages.json lists them.
        out: folder of the runs below BUNDLE, one for each stage.
        only: names of stages, comma separated; empty takes all. The others must be finished where these need them.
        overlays: configuration files of BUNDLE for every stage, comma separated: --overlays polyps.yaml.
        overrides: ids of the configuration, for all stages: --dataset_dir DIR --seed 1. Relative paths are seen from
            BUNDLE, or else from the current folder.
    """
    from monai_kd.hub import run_stages

    wanted, files = ([name for name in names.split(",") if name] for names in (only, overlays))
    for folder in run_stages(bundle, out, wanted, overrides, files):
        print(f"trained: {folder}")


def slices(dataset_dir: str, out: str, window: list[float] | None = None, pixel_size: float | None = None) -> None:
    """Write the slices of labelled volumes as PNG, with a table of where each came from.

    Args:
        dataset_dir: volumes in the MSD layout.
        out: folder that gets images, labels and slices.csv.
        window: "[-160,240]", least and greatest intensity; empty takes the percentiles 0.5 and 99.5 of each volume.
        pixel_size: mm, to which slices are resampled; empty keeps them.
    """
    from monai_kd.data import write_slices

    print(f"written: {write_slices(dataset_dir, out, window, pixel_size)}")


def sync(bundles_dir: str = "bundles", check: bool = False) -> None:
    """Bring shared blocks, infer.json and checksums of bundles in line with bundles/_shared, inference.yaml, weights.

    Args:
        bundles_dir: the folder with ``_shared`` and the bundles, or one bundle.
        check: only report; exit code 1 if anything differs.
    """
    from monai_kd.hub import sync_bundles

    changed = sync_bundles(bundles_dir, check=check)
    for path in changed:
        print(f"{'differs' if check else 'rewritten'}: {path}")
    print(f"{len(changed)} files {'differ' if check else 'rewritten'}")
    if check and changed:
        sys.exit(1)


def tables(results_dir: str = "docs/results", check: bool = False) -> None:
    """Regenerate the result tables of README, how-to pages and model cards from the run records.

    Args:
        results_dir: folder whose ``**/run.json`` are the only source of numbers.
        check: only report; exit code 1 if a table is out of date.
    """
    from monai_kd.visualize.documents import write_tables

    pages = [*Path("docs").glob("how_to/*.md"), *Path("bundles").glob("[!_]*/docs/README.md")]
    files = [Path("README.md"), *sorted(pages)]
    changed = write_tables(results_dir, files, check=check)
    for path in changed:
        print(f"{'out of date' if check else 'rewritten'}: {path}")
    print(f"{len(changed)} of {len(files)} files {'out of date' if check else 'rewritten'}")
    if check and changed:
        sys.exit(1)


def taps(bundle: str, input_shape: list[int] | None = None) -> None:
    """Print the stages of a bundle's network, and of its teacher's, that terms can read: name, shape, stride, module.

    Args:
        bundle: the bundle's folder.
        input_shape: of the image, "[1,1,96,96,96]"; empty takes what metadata.json states.
    """
    from monai_kd.hub import bundle_taps

    print(bundle_taps(bundle, input_shape).table())


def teacher(run_dir: str, bundle_root: str, out: str) -> None:
    """Turn a finished training run into a teacher folder for --teacher_root.

    Args:
        run_dir: folder with run.json and model.pt.
        bundle_root: the bundle that was trained.
        out: folder to write.
    """
    from monai_kd.hub import make_teacher

    print(make_teacher(run_dir, bundle_root, out))


COMMANDS: tuple[Callable[..., None], ...] = (
    pack,
    index,
    verify,
    doctor,
    calibrate,
    slices,
    stages,
    fetch,
    push,
    materialize,
    export,
    predict,
    compare,
    view,
    sync,
    tables,
    taps,
    teacher,
)


def _as_written(command: Callable[..., None]) -> Callable[..., Any]:
    """Keep texts as they were written: fire would make numbers of a folder 1e5, a sha256 of digits, a version."""
    texts = {name: str for name, item in inspect.signature(command).parameters.items() if item.annotation == "str"}
    return fire.decorators.SetParseFns(**texts)


def _refuse_unknown_options(arguments: list[str]) -> None:
    """Refuse an option that a command does not have before the command runs; fire would say so only afterwards."""
    commands = {command.__name__: command for command in COMMANDS}
    if not arguments or arguments[0] not in commands:
        return
    parameters = inspect.signature(commands[arguments[0]]).parameters
    if any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        return  # the command compares them with a configuration
    known = list(parameters)
    for word in arguments[1:]:
        if word == "--":
            return
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in (*known, *(f"no{item}" for item in known), "help"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"known: {', '.join(f'--{item}' for item in known)}"
            print(f"error: {arguments[0]} has no option --{name}; {hint}", file=sys.stderr)
            sys.exit(1)


def _in_one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors that speak of the input into one line and exit code 1; anything else is a defect and shows itself."""

    @_as_written(command)
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    return run


def main() -> None:
    """Run the command that the command line names."""
    words = sys.argv[1:]
    _refuse_unknown_options(words)
    if "--help" in words[1:]:  # a command that takes any option would take this one too
        words = [words[0], "--", "--help"]
    fire.Fire({command.__name__: _in_one_line(command) for command in COMMANDS}, command=words, name="monai_kd")


if __name__ == "__main__":
    main()
