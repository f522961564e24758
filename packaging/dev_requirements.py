# SPDX-License-Identifier: Apache-2.0
"""Prints what the `dev` extra of pyproject.toml names, one requirement a line.

Called by the Makefile, which installs the tools without building lockgate for it. Adversary: nobody.
"""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print("\n".join(requirement.replace(" ", "") for requirement in project["optional-dependencies"]["dev"]))
