"""The one step that setup.cfg has no word for: the wheel carries the single file, which saved pipelines take along."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSingleFile(build_py):
    """Copies pipelines/zimage_vl/pipeline.py into the wheel; an editable installation finds it where it lies."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            source = Path(__file__).parent / "pipelines" / "zimage_vl" / "pipeline.py"
            copyfile(source, Path(self.build_lib) / "zimage_vl" / "single_file_pipeline.txt")


setup(cmdclass={"build_py": BuildWithSingleFile})
