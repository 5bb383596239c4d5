"""How a piece is run and timed: torch or ONNX Runtime on a processor, torch on a GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from nasc_evo.errors import UserError, one_line
from nasc_evo.measurement.pieces import Piece
from nasc_evo.supernet.evaluation import keep_freed_memory

BACKENDS = ("torch", "onnxruntime")
PROCESSORS = ("cpu", "cuda")
LAUNCHES = ("eager", "graph")
CAPTURE_RUNS = 3
"""Runs before a capture, in which libraries choose their algorithms and make their tensors."""


@dataclass(frozen=True)
class Prepared:
    """A piece that is ready to run.

    Attributes:
        timed: Runs it once and returns the milliseconds that it took.
        repeat: Runs it so many times: what a caller waits for one by one, other pieces in a row
            with one wait at the end.
    """

    timed: Callable[[], float]
    repeat: Callable[[int], None]


class Backend(Protocol):
    """Prepares pieces for timing."""

    def prepare(self, piece: Piece, *, graph: bool, whole: bool) -> Prepared:
        """Return what runs and times a piece.

        Args:
            piece: The piece.
            graph: Whether as a CUDA graph.
            whole: Whether what a caller waits for counts, from the call to the output; else what
                the processor works at.
        """

    def describe(self) -> dict[str, Any]:
        """Return what runs the pieces, for the header of a table."""


def create_backend(backend: str, processor: str, threads: int, launch: str) -> Backend:
    """Return the backend of that name on a processor.

    Raises:
        UserError: If an option is unknown, or what it needs is missing.
    """
    for name, value, allowed in (
        ("backend", backend, BACKENDS),
        ("processor", processor, PROCESSORS),
        ("launch", launch, LAUNCHES),
    ):
        if value not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, got '{value}'.")
    if launch == "graph" and processor == "cpu":
        raise UserError("launch=graph needs processor=cuda; a CPU has no CUDA graphs.")
    if backend == "onnxruntime":
        if processor == "cuda":
            raise UserError("backend=onnxruntime measures on processor=cpu only, got cuda.")
        return OnnxCpu(threads)
    if processor == "cpu":
        return TorchCpu(threads)
    if not torch.cuda.is_available():
        raise UserError("processor=cuda needs a CUDA device and there is none; use processor=cpu.")
    return TorchCuda()


class TorchCpu:
    """torch, eager, convolutions and activations fused by oneDNN, channels last.

    Args:
        threads: Threads of torch.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()

    def prepare(self, piece: Piece, *, graph: bool = False, whole: bool = False) -> Prepared:
        """Return what runs and times a piece."""
        return on_the_clock(piece.fold().runner())

    def describe(self) -> dict[str, Any]:
        """Return versions."""
        return {
            "backend": "torch, eager, folded convolutions by oneDNN, channels last, float32",
        }


class OnnxCpu:
    """ONNX Runtime with all its optimisations.

    Args:
        threads: Threads of a session.

    Raises:
        UserError: If ONNX Runtime is not installed.
    """

    def __init__(self, threads: int) -> None:
        missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
        if missing:
            raise UserError(
                f"backend=onnxruntime needs {' and '.join(missing)}; install them with "
                "`pip install 'nasc-evo[onnx]'` or use backend=torch."
            )
        torch.set_num_threads(threads)
        self._threads = threads

    def prepare(self, piece: Piece, *, graph: bool = False, whole: bool = False) -> Prepared:
        """Return what runs and times a piece; input and output stay where they are."""
        import onnxruntime

        from nasc_evo.measurement.onnx_graph import INPUT, OUTPUT, onnx_model

        deployed = piece.fold(channels_last=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                onnx_model(deployed).SerializeToString(), options, ["CPUExecutionProvider"]
            )
        except Exception as error:  # its own types have no common ancestor
            raise UserError(f"ONNX Runtime refuses a network: {one_line(error)}.") from error
        binding = session.io_binding()
        binding.bind_cpu_input(INPUT, np.ascontiguousarray(deployed.x.numpy()))
        binding.bind_output(OUTPUT)
        return on_the_clock(lambda: session.run_with_iobinding(binding))

    def describe(self) -> dict[str, Any]:
        """Return versions."""
        from importlib.metadata import version

        return {
            "backend": "ONNX Runtime, CPU, all graph optimisations, float32",
            "onnxruntime": version("onnxruntime"),
        }


def on_the_clock(run: Callable[[], Any]) -> Prepared:
    """Return what repeats a run and times it by the clock; it returns when its work has ended."""

    def timed() -> float:
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) * 1e-6

    def repeat(runs: int) -> None:
        for _ in range(runs):
            run()

    return Prepared(timed, repeat)


class TorchCuda:
    """torch on a GPU, eager or as CUDA graphs; the input is on the GPU already.

    Blocks are timed by events on the GPU, runs of whole networks by the clock from the call to the
    end of the work, which is what a caller waits for.
    """

    def __init__(self) -> None:
        torch.backends.cudnn.benchmark = True
        self._wake()

    @staticmethod
    def _wake() -> None:
        """Work for half a second, so that clocks are up."""
        a = torch.randn(2048, 2048, device="cuda")
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            a @ a
            torch.cuda.synchronize()

    def prepare(self, piece: Piece, *, graph: bool, whole: bool) -> Prepared:
        """Return what runs and times a piece."""
        run: Callable[[], Any] = piece.fold("cuda", channels_last=False).runner()
        if graph:
            run = captured(run)
        if whole:

            def run_to_the_end() -> None:
                run()
                torch.cuda.synchronize()

            return on_the_clock(run_to_the_end)
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)

        def timed() -> float:
            start.record()
            run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)

        def repeat(runs: int) -> None:
            for _ in range(runs):
                run()
            torch.cuda.synchronize()

        return Prepared(timed, repeat)

    def describe(self) -> dict[str, Any]:
        """Return versions."""
        return {
            "backend": "torch, folded convolutions by cuDNN, float32 in and out",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32),
        }


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of a run captured as a CUDA graph."""
    torch.cuda.empty_cache()  # each graph has memory of its own, also those that are gone
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(CAPTURE_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
