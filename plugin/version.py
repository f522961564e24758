# SPDX-License-Identifier: Apache-2.0
"""The version of the whole, for `--version`, the API and the build. No imports here: the build reads it too."""

VERSION = "0.1.0"
