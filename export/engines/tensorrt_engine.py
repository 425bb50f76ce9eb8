"""An ONNX graph to a TensorRT plan: one builder for both of NVIDIA's libraries.

    tensorrt        NVIDIA's TensorRT: builds on the GPU that it builds for, where it times its
                    kernels. This path needs a GPU, and its parts have been executed only with
                    TensorRT for RTX in its place.
    tensorrt-rtx    TensorRT for RTX: builds without a GPU for given compute capabilities; the
                    plan's kernels are compiled on the machine that runs it.

Networks are strongly typed: the graph states the precision, and the plan is read back to check that
it was kept. TF32 is always off: the float32 parts of a float16 graph are there for their 24 bits,
and TF32 multiplies with 11, as float16 does.

Two builds of one graph differ in their bytes, since the libraries number and order their objects by
addresses in memory.
"""

import hashlib
import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import inliner

from drexperts.export.engines.inspection import (
    Expectation,
    Inspection,
    check,
    check_products,
    expectation_from_graph,
    inspection_from_json,
    inspection_from_plan,
    products_of_network,
)
from drexperts.export.engines.options import (
    HARDWARE,
    LIBRARIES,
    TURING,
    EngineOptions,
    Library,
    capabilities,
    check_options,
    import_library,
)
from drexperts.export.graph.half_products import half_products
from drexperts.runtime.compatibility import this_platform
from drexperts.runtime.errors import BuildError, PlanError, UnreadablePlanError, UserError
from drexperts.runtime.files import written_whole
from drexperts.runtime.manifest import BatchProfile, EnginePlan
from drexperts.runtime.progress import SILENT, Progress
from drexperts.runtime.wording import remedy

_logger = logging.getLogger(__name__)


def engine_from_onnx(
    proto: onnx.ModelProto,
    backend: str,
    out: Path,
    options: EngineOptions,
    progress: Progress = SILENT,
) -> EnginePlan:
    """Build a plan, read it back, and only then put it at `out`.

    A build that fails or is interrupted leaves what was at `out`. An interrupt takes effect at the
    library's next step, which may take seconds.

    Args:
        proto: a graph whose only dynamic dimension is the batch, the first of each input.
        backend: "tensorrt" or "tensorrt-rtx".
        progress: called from another thread, with the phases that the library names.

    Returns:
        What a machine must meet to run the plan. `fused_attention` is always True; the caller sets
        it for a graph that was changed against fusion. `inspected` is False, with a logged warning,
        if the plan could not be read.

    Raises:
        MissingDependencyError: the library is not installed.
        UserError: it is too old, does not support an option, or needs a GPU and finds none.
        BuildError: it refused the graph or could not build it.
        PlanError: the engine is not what the graph asks for.
        OSError: `out` cannot be written.
    """
    library = LIBRARIES[backend]
    check_options(library, options)
    trt = import_library(library)
    targets = capabilities(trt, library, options)
    # Opened first, so that a folder that cannot be written is reported before the build.
    with written_whole(out.resolve()) as aside, open(aside, "xb") as stream:
        build = _Build(trt, library, options, targets, _messages(trt), progress)
        plan, plugin_layers, inspected = build.run_with_or_without_plugin(proto)
        stream.write(plan)
    return EnginePlan(
        version=trt.__version__,
        capabilities=targets,
        platform=this_platform(),
        profiles=options.profiles,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        stripped=options.stripped,
        plugin_layers=plugin_layers,
        fused_attention=True,
        onnx_sha256=hashlib.sha256(proto.SerializeToString()).hexdigest(),
        inspected=inspected,
    )


@dataclass
class _Build:
    """One build: the library, its options and its messages."""

    trt: Any
    library: Library
    options: EngineOptions
    capabilities: tuple[str, ...]
    messages: "_Messages"
    progress: Progress
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run_with_or_without_plugin(self, proto: onnx.ModelProto) -> tuple[memoryview, int, bool]:
        """As `run`; if a plugin that is only preferred cannot be built, once more without it."""
        try:
            return self.run(proto)
        except BuildError as failure:
            if self.library.targets or self.options.plugin != "prefer":
                raise
            _logger.warning("the engine is built again, without the plugin: %s", failure)
            return replace(self, options=replace(self.options, plugin="off")).run(proto)

    def run(self, proto: onnx.ModelProto) -> tuple[memoryview, int, bool]:
        """The plan's bytes, its number of plugin layers, and whether it was read back."""
        self.messages.clear()
        plugin = self._registered_plugin()
        if self.library.targets and TURING in self.capabilities:
            proto = half_products(proto)
        elif plugin is None and not self.library.targets:
            # A plugin registered earlier in the process finds no node to replace.
            proto = inliner.inline_local_functions(proto)
        builder = self.trt.Builder(self.messages)
        if self.messages.errors:  # using a builder that was not made would crash the process
            raise self._failed("cannot start", [])
        network = self._parse(builder, proto)
        layers = self._count_plugin_layers(plugin, network)
        expected = expectation_from_graph(proto, functions=layers == 0)
        inspected = _read_back(lambda: self._inspect_network(network, expected))
        config = self._configure(builder, network)
        plan = self._serialise(builder, network, config)
        self._keep_timing_cache(config)
        inspected &= _read_back(lambda: self._inspect(plan, expected))
        return memoryview(plan), layers, inspected

    def _parse(self, builder: Any, proto: onnx.ModelProto) -> Any:
        # Version 11 ignores the flag, since its networks are always strongly typed.
        flags = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = self.trt.OnnxParser(network, self.messages)
        # A version-compatible plan needs this.
        parser.set_flag(self.trt.OnnxParserFlag.NATIVE_INSTANCENORM)
        if not parser.parse(proto.SerializeToString()):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            raise self._failed("does not take the graph", list(map(_parser_error, errors)))
        return network

    def _registered_plugin(self) -> Any:
        """The plugin's module with the plugin registered; None if it is not to be used."""
        if self.library.targets or self.options.plugin == "off":
            return None
        ampere = self.options.hardware_compatibility == "ampere+"
        try:
            plugin = importlib.import_module("drexperts.export.engines.tensorrt_plugin")
            plugin.register("8.0" if ampere else self.capabilities[0])
        except (ImportError, UserError) as cause:
            if self.options.plugin == "require":
                raise
            _logger.warning("the engine is built without the plugin: %s", cause)
            return None
        return plugin

    def _count_plugin_layers(self, plugin: Any, network: Any) -> int:
        layers = 0 if plugin is None else int(plugin.plugin_layers(network))
        if self.options.plugin == "require" and layers == 0:
            raise BuildError(
                "the parser put no plugin into the network, and one is required: export the bundle "
                f"again, or pass {remedy('--plugin prefer', 'plugin=prefer')}"
            )
        return layers

    def _configure(self, builder: Any, network: Any) -> Any:
        trt, options = self.trt, self.options
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = _monitor(trt, self.progress, self.cancelled)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        self._set_compatibility(config)
        if options.stripped:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        if options.timing_cache is not None:
            _load_timing_cache(config, options.timing_cache)
        for profile in options.profiles:
            config.add_optimization_profile(_profile(builder, network, profile))
        return config

    def _set_compatibility(self, config: Any) -> None:
        trt, options = self.trt, self.options
        if self.library.targets:
            # Without it, the runtime could not record its work as a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            config.num_compute_capabilities = len(self.capabilities)
            for i, capability in enumerate(self.capabilities):
                name = "SM" + capability.replace(".", "")
                config.set_compute_capability(trt.ComputeCapability.__members__[name], i)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatibility != "none":
            level = HARDWARE[options.hardware_compatibility]
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[level]

    def _serialise(self, builder: Any, network: Any, config: Any) -> Any:
        """Build in another thread, so that this one receives an interrupt at once."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(builder.build_serialized_network, network, config)
            try:
                plan = running.result()
            except KeyboardInterrupt:
                self.cancelled.set()  # leaving the block waits for the library's next step
                raise
        monitor = config.progress_monitor
        if monitor.error is not None:
            raise monitor.error
        if plan is None:
            raise self._failed("could not build the engine", [])
        return plan

    def _keep_timing_cache(self, config: Any) -> None:
        if self.options.timing_cache is not None:
            with written_whole(self.options.timing_cache.resolve()) as aside:
                aside.write_bytes(memoryview(config.get_timing_cache().serialize()))

    def _inspect_network(self, network: Any, expected: Expectation) -> None:
        check_products(products_of_network(self.trt, network), expected.products)

    def _inspect(self, plan: Any, expected: Expectation) -> None:
        if self.library.targets:
            found = inspection_from_plan(bytes(plan))
            self._check_header(found)
        else:
            found = inspection_from_json(self._inspector_document(plan))
        check(found, expected, self.options.stripped)

    def _check_header(self, found: Inspection) -> None:
        # The plan has one byte per number, in which the last, the build number, may not fit.
        version, library = (v.split(".")[:3] for v in (found.version or "", self.trt.__version__))
        if found.targets != self.capabilities or version != library:
            raise PlanError(
                f"the engine is of version {found.version} for {', '.join(found.targets)}, not of "
                f"{self.trt.__version__} for {', '.join(self.capabilities)}: build it for one "
                "compute capability at a time, and report this"
            )

    def _inspector_document(self, plan: Any) -> str:
        self.messages.clear()
        runtime = self.trt.Runtime(self.messages)
        if self.messages.errors:
            raise self._failed("cannot start its runtime", [])
        runtime.engine_host_code_allowed = self.options.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("cannot load the engine it built", [])
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def _failed(self, what: str, errors: list[str]) -> BuildError:
        said = errors or self.messages.errors[-3:] or ["it gives no reason"]
        return BuildError(f"{self.library.name} {what}: " + "; ".join(said))


def _read_back(inspect: Callable[[], None]) -> bool:
    """Whether a network or a plan could be read; raises PlanError if it is not as expected."""
    try:
        inspect()
    except UnreadablePlanError as unread:
        _logger.warning("the engine is built but not inspected: %s", unread)
        return False
    return True


class _Messages:
    """The error messages of a build; `_messages` combines this with the library's ILogger."""

    def clear(self) -> None:
        self.errors: list[str] = []


@cache
def _messages(trt: Any) -> Any:
    """The logger of a library, one per process: the library keeps the first that it is given."""

    class Messages(_Messages, trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def log(self, severity: Any, text: str) -> None:
            levels = trt.ILogger.Severity
            if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                self.errors.append(text)
            elif severity == levels.WARNING:
                _logger.debug("%s: %s", trt.__name__, text)

    return Messages()


def _monitor(trt: Any, progress: Progress, cancelled: threading.Event) -> Any:
    """The library's progress monitor, which keeps exceptions from passing through the library."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.error: Exception | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            self.tell(name, 0)

        def phase_finish(self, name: str) -> None:
            self.tell(name, self.steps[name])

        def step_complete(self, name: str, step: int) -> bool:
            self.tell(name, step + 1)
            return not cancelled.is_set() and self.error is None

        def tell(self, name: str, done: int) -> None:
            try:
                progress(name, done, self.steps[name])
            except Exception as error:
                self.error = error

    return Monitor()


def _parser_error(error: Any) -> str:
    return f"{error.node_name() or 'the graph'} ({error.node_operator() or '?'}): {error.desc()}"


def _profile(builder: Any, network: Any, profile: BatchProfile) -> Any:
    made = builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        rest = tuple(tensor.shape)[1:]
        sizes = [(size, *rest) for size in (profile.min, profile.opt, profile.max)]
        made.set_shape(tensor.name, *sizes)
    return made


def _load_timing_cache(config: Any, path: Path) -> None:
    known = path.read_bytes() if path.is_file() else b""
    # A cache of another version or GPU is refused; the build then starts with an empty one.
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
