"""Packages of the wheel; pyproject.toml says all else. In a clone conf/ lies beside the package, in a wheel inside."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bnlab*", "experiments*"]), "bnlab.conf"],
    package_dir={"bnlab.conf": "conf"},
    package_data={
        "bnlab": [
            "py.typed",
            "commands/demo/networks/*.safetensors",
            "common/digits.*",
            "doctor/codes.json",
            "doctor/page.html",
            "harness/reporting/templates/*",
        ],
        "bnlab.conf": ["*.yaml", "*/*.yaml", "help.txt", "new/**/*"],
        "experiments": ["answers/*.md", "papers/*.yaml", "*.md", "questions/drift/channel.csv"],
    },
)
