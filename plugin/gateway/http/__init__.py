# SPDX-License-Identifier: Apache-2.0
"""The HTTP API of a virtual network."""
