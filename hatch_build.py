"""Hatchling's hook: compiles the C++ for the wheel; where that cannot be, the wheel goes without it."""

import importlib.util
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompilingHook(BuildHookInterface[Any]):
    """Builds into the source tree for an editable install, and afresh for any other wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library and add it to the wheel, which is then one for this platform."""
        build = _load(Path(self.root) / "whisper_flash_attention" / "csrc" / "build.py")
        try:
            if version == "editable":
                build.build()
                return
            # What lies in the tree may be another machine's.
            self.folder = tempfile.TemporaryDirectory()
            library = build.build(Path(self.folder.name) / build.LIBRARY.name)
        except build.BuildError as error:
            self.app.display_warning(f"Computing on a CPU will go without the compiled code: {error}")
            return
        build_data["force_include"][str(library)] = f"whisper_flash_attention/{library.name}"
        build_data["pure_python"] = False
        # Neither Python's version nor its ABI matters to what ctypes loads.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder that the library was built in."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
