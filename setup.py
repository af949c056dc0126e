"""Build script: metadata lives in pyproject.toml; the default build compiles nothing."""

from setuptools import setup

setup()
