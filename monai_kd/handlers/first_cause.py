"""The error that knows what is wrong, inside those that MONAI raises around it."""

from __future__ import annotations

__all__ = ["first_cause"]


def first_cause(error: BaseException) -> BaseException:
    """Return the error itself, or the one that MONAI wrapped, once for every id and every transform on the way.

    An error that our own or other code raised from another one stays: it says more than its cause, for instance which
    file could not be read.
    """
    while _is_wrapper(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_wrapper(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    if raised_in.startswith("monai.bundle"):
        return True
    if raised_in == "monai.transforms.transform":  # "applying transform <... object at 0x...>"
        return True
    # monai.utils.module raises the error anew with its traceback, and "Failed to instantiate" at the end of its text
    return raised_in == "monai.utils.module" or _said_again(error)


def _said_again(error: BaseException) -> bool:
    return error.__cause__ is not None and str(error).startswith(f"{error.__cause__}\n")
