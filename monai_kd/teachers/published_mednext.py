"""The authors' weights of MedNeXt for ``OfficialMedNeXt``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from monai_kd.teachers.published import check_tensors, fill_published, read_published, refuse, without_wrapper

__all__ = ["convert_published_mednext", "load_published_mednext"]

_LEVELS = 4
_UNUSED = "dummy_tensor"
_LAYER = r"(?:conv[123]|norm|res_conv)\.(?:weight|bias)"
_HEAD = r"conv_out\.(?:weight|bias)"
# a part of theirs, its number where it has one, and what follows; ours count decoder and heads from the lowest level up
_KNOWN = re.compile(
    rf"(?P<kept>stem\.(?:weight|bias)|bottleneck\.\d+\.{_LAYER}|out_0\.{_HEAD})"
    rf"|(?P<part>(?:enc|dec)_block|down|up)_(?P<level>[0-3])\.(?P<rest>(?:\d+\.)?{_LAYER})"
    rf"|out_(?P<head>[1-4])\.(?P<of_head>{_HEAD})"
)
_PARTS = {"enc_block": "enc_stages", "down": "down_blocks", "dec_block": "dec_stages", "up": "up_blocks"}
_FROM_BELOW = ("dec_block", "up")


def load_published_mednext(network: nn.Module, path: str | Path, freeze: bool = True) -> nn.Module:
    """Give a network the weights of a file that the authors' code saved, freeze it, and return it.

    Args:
        network: :class:`monai_kd.networks.nets.official_mednext.OfficialMedNeXt` of the file's variant, kernel size,
            channels and classes. Heads of deep supervision that it lacks are left out.
        path: a checkpoint of their nnU-Net v1 (``.model``), or a state dict as in
            :func:`~monai_kd.teachers.load_weights`.
        freeze: ``False`` leaves it as it is, to be trained from these weights on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its weights are another network's; names those that do not fit.
    """
    heads = any(key.startswith("out_blocks.") for key in network.state_dict())
    return fill_published(network, convert_published_mednext(read_published(path), heads), path, freeze)


def convert_published_mednext(state: Mapping[str, Tensor], deep_supervision: bool = False) -> dict[str, Tensor]:
    """Return the authors' weights under the names of ``OfficialMedNeXt``, which are MONAI's.

    Args:
        state: under their names, such as ``enc_block_0.1.conv1.weight``, with or without the ``module.`` of
            data-parallel training. Their ``dummy_tensor`` is left out: no output depends on it.
        deep_supervision: keep the heads below full resolution.

    Raises:
        ValueError: names that their network does not have, the response norm among them, which the paper's lack.

    Source: names from the repository MIC-DKFZ/MedNeXt, nnunet_mednext/network_architecture/mednextv1.
    """
    bare = without_wrapper(state)
    bare.pop(_UNUSED, None)
    what = "these are not the weights of the authors' MedNeXt"
    check_tensors(bare, what)
    names = {key: _name(key) for key in bare}
    refuse(what, {"it has no": [key for key, name in names.items() if name is None]})
    if not bare:
        raise ValueError(f"{what}: there are none")
    return {
        name: bare[key]
        for key, name in names.items()
        if name is not None and (deep_supervision or not name.startswith("out_blocks."))
    }


def _name(key: str) -> str | None:
    """Return our name of a weight; None if there is no such."""
    found = _KNOWN.fullmatch(key)
    if found is None:
        return None
    if found["kept"]:
        return key
    if found["head"]:
        return f"out_blocks.{_LEVELS - int(found['head'])}.{found['of_head']}"
    level = int(found["level"])
    index = _LEVELS - 1 - level if found["part"] in _FROM_BELOW else level
    return f"{_PARTS[found['part']]}.{index}.{found['rest']}"
