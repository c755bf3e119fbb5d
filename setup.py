"""The packages of the wheel. Some lie elsewhere in the repository, which pyproject.toml cannot express.

In a clone, `sleep_trl/trainers`, `sleep_trl/rewards` and `sleep_trl/launch` are symbolic links, which Python and tools
follow. They are not read here, so that a clone without them, as on Windows, builds the same wheel.
"""

from setuptools import find_packages, setup

LINKED = ("trainers", "rewards", "launch")
BY_NAME = [f"sleep_trl.{package}" for package in find_packages(include=[f"{name}*" for name in LINKED])]
QUICKSTART = "sleep_trl.data.shipped.quickstart"

setup(
    packages=[
        *find_packages(include=["sleep_trl*"], exclude=[f"sleep_trl.{name}*" for name in LINKED]),
        *BY_NAME,
        QUICKSTART,
    ],
    package_dir={
        **{package: package.removeprefix("sleep_trl.").replace(".", "/") for package in BY_NAME},
        QUICKSTART: "examples/quickstart",
    },
)
