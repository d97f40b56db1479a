"""Sparse convolutions of spconv and mmcv: the layouts of their kernels, and their threads on the CPU."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

Layout = Literal["spconv1", "spconv2"]
"""Axes of a kernel: (k, k, k, in, out) in spconv 1 and mmcv, (out, k, k, k, in) in spconv 2."""


def sparse_convolutions(module: nn.Module) -> dict[str, nn.Module]:
    """The sparse convolutions within a module, by name."""
    return {name: part for name, part in module.named_modules() if _is_sparse(part)}


def sparse_kernels(module: nn.Module) -> dict[str, nn.Module]:
    """The same by the name of their kernel in the module's state dict."""
    return {f"{name}.weight".lstrip("."): part for name, part in sparse_convolutions(module).items()}


def _is_sparse(module: nn.Module) -> bool:
    return any(parent.__name__ == "SparseConvolution" for parent in type(module).__mro__)


def layout_of(module: nn.Module) -> Layout:
    """The layout of a sparse convolution's own kernel, by the library that it comes from."""
    parent = next(parent for parent in type(module).__mro__ if parent.__name__ == "SparseConvolution")
    return "spconv1" if parent.__module__.startswith("mmcv.") else "spconv2"


def in_layout(kernel: Shaped[Tensor, "a b c d e"], source: Layout, target: Layout) -> Shaped[Tensor, "_ _ _ _ _"]:
    """A kernel's values with the axes of another layout."""
    if source == target:
        return kernel
    return kernel.movedim(-1, 0) if target == "spconv2" else kernel.movedim(0, -1)


def possible_layouts(module: nn.Module, weights: Mapping[str, Tensor]) -> set[Layout]:
    """The layouts in which all kernels of a state dict have the shapes of the module's.

    A file holds one layout. Shapes of a kernel fit both only where k = in = out, so that real detectors have one.
    """
    possible: set[Layout] = {"spconv1", "spconv2"}
    for name, part in sparse_kernels(module).items():
        kernel, own = weights.get(name), _kernel(part)
        if kernel is not None and kernel.dim() == own.dim():
            possible = {one for one in possible if in_layout(kernel, one, layout_of(part)).shape == own.shape}
    return possible


def converted(module: nn.Module, weights: Mapping[str, Tensor], source: Layout) -> dict[str, Tensor]:
    """The state dict with every sparse kernel in the module's own layout."""
    kernels = sparse_kernels(module)
    return {
        name: in_layout(value, source, layout_of(kernels[name])) if name in kernels else value
        for name, value in weights.items()
    }


def _kernel(module: nn.Module) -> Tensor:
    kernel = module.weight
    assert isinstance(kernel, Tensor)
    return kernel


@contextmanager
def one_thread() -> Iterator[None]:
    """Run sparse convolutions on the CPU with one thread.

    spconv's CPU operators (2.3.8) add into shared rows without a lock: with more than one thread sums are lost,
    differently in each run (tests/cache/teacher/test_sparse.py). One thread is exact, and faster as well.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def training_on_cpu() -> Iterator[None]:
    """Let sparse convolutions be trained without a GPU: with one thread, and spconv without a CUDA stream."""
    with one_thread(), _without_stream():
        yield


@contextmanager
def _without_stream() -> Iterator[None]:
    """Give spconv no CUDA stream.

    Its CPU branch (2.3.8, `indice_conv_backward`) does not use the stream, but asks for it first, which raises.
    """
    if importlib.util.find_spec("spconv") is None:
        yield
        return
    from spconv.pytorch import ops

    asked = ops.get_current_stream
    ops.get_current_stream = lambda: 0
    try:
        yield
    finally:
        ops.get_current_stream = asked


_CUDA_WHEELS = (118, 121, 124, 126)
"""CUDA versions that spconv 2.3.8 has wheels for; the project's extras voxel-cu118, ..."""


def spconv_extra() -> str:
    """The extra with the spconv that fits this torch: of the newest CUDA version not above its own, or the CPU's."""
    if torch.version.cuda is None:
        return "voxel"
    major, minor = map(int, torch.version.cuda.split(".")[:2])
    fitting = [version for version in _CUDA_WHEELS if version <= 10 * major + minor]
    return f"voxel-cu{max(fitting, default=_CUDA_WHEELS[0])}"


def spconv_advice() -> str:
    """Which spconv this machine needs, in a sentence."""
    if not torch.cuda.is_available():
        return "voxel teachers run on the CPU, with spconv's CPU wheel"
    extra = spconv_extra()
    return f"on this GPU voxel teachers need `make setup WITH={extra}`; with spconv's CPU wheel, --device cpu"


def run_in_one_thread(encoder: nn.Module) -> None:
    """Make a module with sparse convolutions run with one thread wherever its input is on the CPU; see `one_thread`."""
    encoder.forward = _in_one_thread(encoder.forward)


def _in_one_thread(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(features: Tensor, *rest: Any, **options: Any) -> Any:
        if features.device.type != "cpu":
            return forward(features, *rest, **options)
        with one_thread():
            return forward(features, *rest, **options)

    return run
